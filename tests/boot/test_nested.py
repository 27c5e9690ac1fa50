"""LVM, LUKS and RAID as the kernel makes them, in each other: captured open, closed and mounted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.boot.keys import DOWN, ENTER, Keys
from tests.boot.lab import LONG
from tests.boot.medium import ci_medium
from tests.boot.vm import Vm, VmDisk
from tests.disks import MIB, make_disk
from tests.loop import run

_SCRIPT = Path(__file__).with_name("nested.sh")
_USED = {
    "LVM2_member/ext4": 1,
    "LVM2_member/swap": 1,
    "crypto_LUKS/LVM2_member/ext4": 2,
    "linux_raid_member/ext4": 1,
    "LVM2_member/crypto_LUKS/ext4": 1,
}
"""How the file systems lie, and how many of each."""


def test_nested(tmp_path: Path) -> None:
    """Everything is stored by what is in use, and holds what it held, file by file."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(_SCRIPT, folder)
    work = make_disk(tmp_path / "disk", 700 * MIB)
    run("mkfs.ext4", "-q", "-F", "-L", "WORK", "-d", folder, work)
    disks = [
        VmDisk(ci_medium(), "usb", keep=False),
        VmDisk(make_disk(tmp_path / "source", 260 * MIB), "virtio", "SOURCE"),
        VmDisk(make_disk(tmp_path / "twin", 40 * MIB), "virtio", "TWIN"),
        VmDisk(work, "virtio", "WORKDISK"),
    ]
    with Vm(disks) as vm:
        keys = Keys(vm)
        keys.start()
        keys.press(*[DOWN] * 7, ENTER)
        vm.serial.wait("This is a shell", LONG)
        vm.serial.send("mount -L WORK /mnt && sh /mnt/nested.sh\r")
        ended = vm.serial.wait("NESTED (is well|failed at: [^\r\n]*)[\r\n]", LONG)
        said = vm.serial.text
    assert ended[1] == "is well", "\n".join(said.splitlines()[-60:])
    for image in ("open", "unlocked", "live"):
        part = said[said.index(f"## capturing what is {_PHASES[image]}") :]
        lines = re.findall(r"^(\S+/\S+|\S+) (used|raw) (\d+) ", part, re.MULTILINE)[:6]
        assert {way: [w for w, *_ in lines].count(way) for way, *_ in lines} == _USED, image
        assert {stored for _, stored, _ in lines} == {"used"}, image
        assert all(int(percent) < 80 for _, _, percent in lines), image


_PHASES = {"open": "open", "unlocked": "closed", "live": "mounted"}
