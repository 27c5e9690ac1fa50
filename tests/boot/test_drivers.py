"""File systems as the kernel's own drivers leave them, when the power goes, and after an unmount."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from tests.boot.bare_kernel import BareKernel
from tests.boot.vm import VmDisk
from tests.disks import MIB
from tests.loop import run, sparse_file
from tests.volumes import FileVolume

LONG = 600
KINDS = {
    "f2fs": ("f2fs", "f2fs", "mkfs.f2fs -q -f -O extra_attr,inode_checksum,sb_checksum"),
    "exfat": ("exfat", "exfat", "mkfs.exfat -c 4K"),
    "vfat": ("vfat", "vfat", "mkfs.vfat -F 32 -s 1"),
    "ntfs3": ("ntfs3", "ntfs", "mkfs.ntfs -q -f -F"),
    "xfs-v4": ("xfs", "xfs", "mkfs.xfs -q -m crc=0"),
    "xfs-v5": ("xfs", "xfs", "mkfs.xfs -q"),
}
"""The driver's name, blkid's name, and how a volume is made."""

_AGE = """\
mount -t {driver} /dev/vda /a || echo NO MOUNT
mkdir /a/d0 /a/d1 /a/d2
i=0
while [ $i -lt 240 ]; do
    dd if=/dev/urandom of=/a/d$((i % 3))/file-$i bs=$((i * 7919 % 50000 + 1)) count=$((i % 5 + 1)) 2>/dev/null
    [ $((i % 4)) = 3 ] && rm /a/d$(((i - 2) % 3))/file-$((i - 2))
    [ $((i % 60)) = 59 ] && sync
    i=$((i + 1))
done
i=0
while [ $i -lt 40 ]; do
    dd if=/dev/urandom of=/a/d1/file-4 bs=4096 count=2 seek=$((i * 37 % 50)) conv=notrunc 2>/dev/null
    i=$((i + 1))
done
sync
"""
_FSYNC = """\
i=0
while [ $i -lt 30 ]; do
    dd if=/dev/urandom of=/a/d2/late-$i bs=9000 count=$((i % 4 + 1)) conv=fsync 2>/dev/null
    [ $((i % 5)) = 4 ] && rm /a/d2/late-$((i - 1))
    i=$((i + 1))
done
dd if=/dev/urandom of=/a/d0/file-0 bs=70000 count=2 conv=fsync,notrunc 2>/dev/null
echo "ALL IS WRITTEN"
sleep 600
"""
_COMPARE = """\
mount -t {driver} {options} /dev/vda /a || echo NO MOUNT
mount -t {driver} {options} /dev/vdb /b || echo NO MOUNT
cd /a; find . -type f | sort | xargs sha256sum > /tmp/a
cd /b; find . -type f | sort | xargs sha256sum > /tmp/b
cd /; cmp /tmp/a /tmp/b && echo "EQUAL: $(wc -l < /tmp/a) FILES, $(grep -c late /tmp/a) LATE"
umount /a; umount /b
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareKernel]:
    """Made once."""
    yield BareKernel(tmp_path_factory.mktemp("kernel") / "kernel")


def copy_of_allocated(volume: Path, allocation: Allocation, copy: Path) -> Path:
    """A volume with what is allocated, and garbage elsewhere."""
    size = volume.stat().st_size
    chance = random.Random(1)
    with sparse_file(copy, size).open("r+b") as out, volume.open("rb") as file:
        for start, end in Extents.span(0, size) - allocation.allocated:
            for at in range(start, end, MIB):
                out.seek(at)
                out.write(chance.randbytes(min(MIB, end - at)))
        for start, end in allocation.allocated:
            for at in range(start, end, MIB):
                file.seek(at)
                out.seek(at)
                out.write(file.read(min(MIB, end - at)))
    return copy


@pytest.mark.parametrize("name", KINDS)
def test_power_cut_and_unmount(name: str, kernel: BareKernel, tmp_path: Path) -> None:
    """What fsync promised is in a copy of what is allocated, mounted by the same driver."""
    driver, kind, make = KINDS[name]
    volume = sparse_file(tmp_path / "volume", 300 * MIB)
    run(*make.split(), volume)
    with kernel.running((_AGE + _FSYNC).format(driver=driver), [VmDisk(volume)]) as vm:
        vm.serial.wait("ALL IS WRITTEN", LONG)
        assert "NO MOUNT" not in vm.serial.text
        vm.cut_power()
    allocation = read_allocation(kind, FileVolume(volume))
    assert allocation.allocated.total < 150 * MIB
    copy = copy_of_allocated(volume, allocation, tmp_path / "copy")
    # ntfs3 mounts a volume that is marked dirty only by force; a copy of an XFS has the same UUID.
    options = {"ntfs3": "-o force", "xfs": "-o nouuid"}.get(driver, "")
    compare = _COMPARE.format(driver=driver, options=options)
    with kernel.running(compare, [VmDisk(volume), VmDisk(copy)]) as vm:
        found = vm.serial.wait(r"EQUAL: (\d+) FILES, (\d+) LATE", LONG)
        vm.wait_off(LONG)
    assert int(found[1]) > 180
    assert int(found[2]) >= 24
    # Both are unmounted now, so that nothing has to be brought back any more.
    clean = read_allocation(kind, FileVolume(volume))
    copy.unlink()
    copy_of_allocated(volume, clean, copy)
    with kernel.running(compare, [VmDisk(volume), VmDisk(copy)]) as vm:
        vm.serial.wait(f"EQUAL: {found[1]} FILES", LONG)
