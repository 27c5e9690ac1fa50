"""Stores on the file systems of sticks and of Windows, written by the kernel's own drivers.

FAT, exFAT and NTFS; there is no such driver on many machines that build and test this.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.boot.script import run_script
from tests.boot.vm import VmDisk
from tests.disks import MIB
from tests.loop import LoopDevice, mounted, run

_MAKE = {
    "vfat": ("mkfs.vfat", "-F", "32"),
    "exfat": ("mkfs.exfat",),
    "ntfs3": ("mkfs.ntfs", "-q", "-F"),
}
_SCRIPT = """\
kind=$1; source=/dev/$2; disk=/dev/$3; target=/dev/$4
mkdir -p /s /d
mount -t $kind $disk /s
grep " /s " /proc/mounts
imager store init /s/store
night() {
    mount $source /d
    for file in $2; do dd if=/dev/urandom of=/d/$file bs=1M count=1 conv=notrunc status=none; done
    echo "night $1" >> /d/log
    umount /d
    imager capture -q $source --store /s/store
}
night 0 ""
night 1 "a b c d e f g h i j k l"
night 2 "a b"
find /s/store -name '*.img*'
imager list /s/store
sync
before=$(df --output=used -k /s | tail -1)
imager prune /s/store --keep-last 1 --grace 0h
sync
after=$(df --output=used -k /s | tail -1)
echo "used $before before, $after after"
night 3 "c d"
imager list /s/store
imager status /s/store
umount /s
mount -t $kind $disk /s
newest=$(imager list --json /s/store | tr ',' '\\n' | sed -n 's/.*"path": "\\(.*\\.img\\)".*/\\1/p' | head -1)
imager check $newest --against $source
imager restore -q --yes $newest $target
cmp $source $target && echo "the same came back"
umount /s
e2fsck -fn $target
echo "$kind is fine"
"""


@pytest.mark.parametrize("kind", sorted(_MAKE))
def test_a_store_on(kind: str, tmp_path: Path) -> None:
    """A full image, three nights, a prune that gives space back, and the newest comes back."""
    noise = random.Random(3)
    source, store, target = (tmp_path / name for name in ("source", "store", "target"))
    with LoopDevice(source, 48 * MIB) as device:
        run("mkfs.ext4", "-q", device.path)
        with mounted(device.path, tmp_path / "place") as place:
            for name in "abcdefghijklmnop":
                (place / name).write_bytes(noise.randbytes(MIB))
    with LoopDevice(store, 256 * MIB) as device:
        run(*_MAKE[kind], device.path)
    target.write_bytes(b"")
    with target.open("r+b") as file:
        file.truncate(48 * MIB)
    disks = [VmDisk(path, "virtio", path.name) for path in (source, store, target)]
    said = run_script(tmp_path, f"set -- {kind} vda vdb vdc\n{_SCRIPT}", disks)
    assert f"/s {kind} " in said
    assert len(re.findall(r"\.img\.0001\.last$", said, re.MULTILINE)) == 3 * (kind == "vfat")
    found = re.search(r"used +(\d+) before, +(\d+) after", said)
    assert found is not None and int(found[1]) - int(found[2]) > 8 << 10
    assert "the same came back" in said and f"{kind} is fine" in said
