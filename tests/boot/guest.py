"""A small real Debian system on a disk: it boots on BIOS, UEFI and Secure Boot from any bus, says
over the serial line who it is, and switches off.

    | GPT | 1: GRUB for BIOS | 2: ESP (shim, GRUB) | 3: ext4, the system | GPT |

Made by mmdebstrap from the machine's own package sources, and kept by a hash of what makes it.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from tests.boot import debian
from tests.boot.debian import MIB, UUID, write
from tests.boot.vm import Vm, VmDisk
from tests.disks import clone
from tests.loop import LoopDevice, mounted, run

SIZE = 640 * MIB
"""Of the disk, bytes."""
SECONDS = 150
"""A boot that takes longer has failed."""
_TABLE = f"{debian.TABLE}-\n"
_PAYLOAD = random.Random(7).randbytes(6 * MIB)
PAYLOAD_HASH = hashlib.sha256(_PAYLOAD).hexdigest()
_MODULES = ("virtio_pci", "virtio_blk", "ahci", "sd_mod", "nvme", "ext4", "crc32c_generic")
_GRUB = debian.menu(f"UUID={UUID}")
_UNIT = """\
[Unit]
Description=Say who this is, then switch off
After=local-fs.target systemd-machine-id-commit.service
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/who-is-this
StandardOutput=tty
TTYPath=/dev/ttyS0
"""
_SCRIPT = """\
#!/bin/sh
boots=$(($(cat /var/lib/boots) + 1))
echo $boots > /var/lib/boots
efi=no
[ -d /sys/firmware/efi ] && efi=yes
echo "GUEST machine-id=$(cat /etc/machine-id) payload=$(sha256sum < /root/payload | cut -c1-64)" \
"boots=$boots root=$(findmnt --noheadings --output SOURCE /) efi=$efi."
sync
systemctl --no-block poweroff
"""


@dataclass(frozen=True)
class Report:
    """What the guest says of itself."""

    machine_id: str
    payload: str
    boots: int
    root: str
    """The device that it runs from."""
    efi: bool

    @property
    def is_sound(self) -> bool:
        """Whether its payload is what it was made with."""
        return self.payload == PAYLOAD_HASH


def make_guest(cache: Path) -> Path:
    """The disk, never booted; from `cache`, or made now. Not to be changed. Needs root."""
    recipe = [*debian.RECIPE, str(SIZE), _UNIT, _SCRIPT, *debian.KERNEL, *debian.GRUB, *_MODULES]
    return debian.cached(cache, "guest-%s.raw", [*recipe, PAYLOAD_HASH], _make)


def boot(disks: list[VmDisk], firmware: str) -> Report:
    """Boot the first of `disks` until the guest has switched itself off; what it said."""
    with Vm(disks, firmware, memory=512) as vm:
        said = vm.serial.wait(
            r"GUEST machine-id=(\w+) payload=(\w+) boots=(\d+) root=(\S+) efi=(yes|no)\.", SECONDS
        )
        vm.wait_off(60)
    return Report(said[1], said[2], int(said[3]), said[4], said[5] == "yes")


def fresh_copy(guest: Path, place: Path) -> Path:
    """A copy to be booted and changed."""
    return clone(guest, place)


def _make(work: Path, packages: Path) -> Path:
    """The disk, in the folder `work`."""
    files = work / "files"
    write(files / "etc/hostname", "guest\n")
    write(files / "etc/fstab", f"UUID={UUID} / ext4 defaults 0 1\n")
    write(files / "etc/systemd/system/who.service", _UNIT)
    write(files / "usr/local/sbin/who-is-this", _SCRIPT).chmod(0o755)
    write(files / "var/lib/boots", "0\n")
    write(files / "boot/grub/grub.cfg", _GRUB)
    wants = files / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "who.service").symlink_to("../who.service")
    (files / "root").mkdir(mode=0o700)
    (files / "root/payload").write_bytes(_PAYLOAD)
    debian.bootstrap(work, packages, (*debian.KERNEL, *debian.GRUB), _MODULES, files)
    with LoopDevice(work / "disk", SIZE) as device:
        run("sfdisk", "--quiet", device.path, stdin=_TABLE)
        device.scan()
        run("mkfs.ext4", "-q", "-L", "GUESTROOT", "-U", UUID, device.partition(3))
        with mounted(device.partition(3), work / "place") as place:
            debian.unpack(work, place)
        debian.write_esp(work, device.partition(2))
    debian.write_grub(work, work / "disk")
    return work / "disk"
