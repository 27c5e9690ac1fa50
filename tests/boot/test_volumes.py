"""File systems that this machine's kernel may lack: searched for images by the medium's."""

from __future__ import annotations

import shutil
from pathlib import Path

from imager.check import check
from tests.boot.kernel_line import with_orders
from tests.boot.lab import LONG, TARGET
from tests.boot.medium import ci_medium
from tests.boot.vm import Vm, VmDisk
from tests.comparing import digest
from tests.disks import MIB, make_disk
from tests.loop import LoopDevice, mounted, run
from tests.small_disk import SMALL_SIZE, Small

_TABLE = "label: gpt\nsize=160MiB\nsize=160MiB\nsize=320MiB\nsize=160MiB\n"
_FOUND = "Looking into vd.{} \\({}\\): {}, "


def test_vfat_ntfs_xfs_exfat(small: Small, tmp_path: Path) -> None:
    """Each is mounted, the newest image is found among them, and none of them changes."""
    disk = tmp_path / "disk"
    with LoopDevice(disk, 820 * MIB) as device:
        run("sfdisk", device.path, stdin=_TABLE)
        device.scan()
        vfat, ntfs, xfs, exfat = (device.partition(number) for number in range(1, 5))
        run("mkfs.vfat", "-n", "FATVOL", vfat)
        run("mcopy", "-i", vfat, small.image, "::small.img")
        run("mkfs.ntfs", "-q", "-f", "-L", "NTFSVOL", ntfs)
        run("mkfs.xfs", "-q", "-L", "XFSVOL", xfs)
        run("mkfs.exfat", "-L", "EXFATVOL", exfat)
        for device_, kind in ((ntfs, "ntfs-3g"), (xfs, "xfs")):
            with mounted(device_, tmp_path / kind, fs_type=kind) as place:
                shutil.copy(small.image, place / "small.img")
    before = digest(disk)
    words = f"imager.restore=auto imager.image=newest imager.target=serial:{TARGET}"
    iso = with_orders(ci_medium(), words, tmp_path / "medium.iso")
    target = make_disk(tmp_path / "target", SMALL_SIZE // 512 * 512)
    disks = [
        VmDisk(iso, "usb", keep=False),
        VmDisk(disk, "virtio", "STORE1"),
        VmDisk(target, "sata", TARGET),
    ]
    with Vm(disks) as vm:
        for number, (label, kind) in enumerate(
            (("FATVOL", "vfat"), ("NTFSVOL", "ntfs"), ("XFSVOL", "xfs"), ("EXFATVOL", "exfat")), 1
        ):
            vm.serial.wait(_FOUND.format(number, label, kind), LONG)
        vm.serial.wait("The restore is finished", LONG)
        assert "cannot be mounted" not in vm.serial.text
        vm.wait_off(LONG)
    assert digest(disk) == before
    assert check(small.image, against=target).verdict == "ok"
