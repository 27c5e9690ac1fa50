"""Members of RAID: a mirror is read through, whatever is not proven to be in sync is kept whole."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.layout.analyse import Analysis, analyse
from imager.layout.blkid import identify
from imager.layout.md import read_member
from tests import sample_disk
from tests.command import imager
from tests.comparing import files_of
from tests.disks import MIB, clone, copy_into, get, make_disk, put
from tests.fake_sysfs import FakeSystem
from tests.loop import LoopDevice, run
from tests.lvm_volumes import make_ext4
from tests.md_volumes import SET, Array, data_range, super_offset, write_superblock
from tests.small_disk import garbage
from tests.volumes import FileVolume

SIZE = 64 * MIB + 512
START, LENGTH = 17 * MIB, 30 * MIB + 3072
FS = 28 * MIB
VERSIONS = ("0.90", "1.0", "1.1", "1.2")


@pytest.fixture(scope="module")
def file_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 of the size that an array of each version has in a partition."""
    folder = tmp_path_factory.mktemp("md")
    sample_disk.write_tree(folder / "files", 2 * MIB, 1)
    (folder / "files/deleted").write_bytes(random.Random(2).randbytes(5 * MIB))
    return make_ext4(folder / "ext4", FS, folder / "files", "-L", "mirror")


def make_member(folder: Path, file_system: Path, array: Array) -> Path:
    """A disk with a member of a mirror in its only partition."""
    disk = make_disk(folder / f"disk-{array.version}", SIZE)
    run("sfdisk", disk, stdin=f"label: dos\nstart={START // 512}, size={LENGTH // 512}\n")
    data, _ = data_range(array, LENGTH)
    copy_into(file_system, disk, START + data)
    write_superblock(disk, array, START, LENGTH)
    return disk


def look(path: Path) -> Analysis:
    return analyse(FileVolume(path, size=SIZE), path)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_mirror_is_read_through(tmp_path: Path, file_system: Path, version: str) -> None:
    array = Array(version)
    disk = make_member(tmp_path, file_system, array)
    part = tmp_path / "part"
    part.write_bytes(get(disk, START, LENGTH))
    said = run("mdadm", "--examine", part)
    assert "raid1" in said and " - correct" in said and "Version : " + version in said
    found = look(disk)
    (volume,) = found.layout.volumes
    data, length = data_range(array, LENGTH)
    (child,) = volume.children
    assert (volume.kind, volume.stored, volume.reason) == ("linux_raid_member", "used", None)
    assert volume.notes == (f"RAID1, md {version}",)
    assert (child.kind, child.label, child.stored, child.size) == ("ext4", "mirror", "used", length)
    # All that is around the data, and no more of the data than the file system uses.
    alone = analyse(FileVolume(file_system), file_system).layout.volumes[0]
    assert child.used == alone.used + (length - FS)
    around = Extents.span(START + data, START + data + length).complement(START, START + LENGTH)
    assert not around - found.used
    assert volume.used == child.used + around.total


def test_restored_mirror(tmp_path: Path, file_system: Path) -> None:
    disk = make_member(tmp_path, file_system, Array("1.2"))
    imager("capture", disk, tmp_path / "image")
    garbage(tmp_path / "target", SIZE)
    with LoopDevice(tmp_path / "target") as device, LoopDevice(file_system) as old:
        imager("restore", "--yes", tmp_path / "image", device.path)
        device.scan()
        assert " - correct" in run("mdadm", "--examine", device.partition(1))
        inside = tmp_path / "inside"
        inside.write_bytes(get(device.path, START + MIB, FS))
        with LoopDevice(inside, read_only=True) as new:
            expected = files_of(old.path, "ext4", tmp_path)
            assert files_of(new.path, "ext4", tmp_path) == expected


BROKEN = {
    "a bad block": Array(fields={8: ("I", 8)}),
    "recovering": Array(fields={8: ("I", 2)}),
    "reshaping": Array(fields={8: ("I", 4)}),
    "journal": Array(fields={8: ("I", 512)}),
    "unknown feature": Array(fields={8: ("I", 1 << 20)}),
    "not in sync": Array(fields={208: ("Q", 0)}),
    "half in sync": Array(fields={208: ("Q", 5000)}),
    "write-mostly": Array(fields={184: ("B", 1)}),
    "spare": Array(roles=(0xFFFF, 1)),
    "faulty": Array(roles=(0xFFFE, 1)),
    "no such role": Array(number=127, roles=()),
    "RAID5": Array(level=5, disks=3),
    "RAID0": Array(level=0),
    "linear of two": Array(level=-1),
    "unknown level": Array(level=77),
    "larger": Array(fields={80: ("Q", LENGTH)}),
    "2^64 sectors": Array(fields={80: ("Q", (1 << 64) - 1), 136: ("Q", (1 << 64) - 1)}),
    "no data": Array(fields={80: ("Q", 0)}),
    "data over the superblock": Array(fields={128: ("Q", 0)}),
    "bitmap in the data": Array(fields={8: ("I", 1), 96: ("i", 3000)}),
    "bitmap before the disk": Array(fields={8: ("I", 1), 96: ("i", -20000)}),
    "too many devices": Array(fields={220: ("I", 1 << 31)}),
    "no devices": Array(fields={220: ("I", 0)}),
    "0.90 dirty": Array("0.90", words={33: 0}),
    "0.90 with errors": Array("0.90", words={33: 3}),
    "0.90 reshaping": Array("0.90", words={2: 91}),
    "0.90 spare": Array("0.90", words={996: 0}),
    "0.90 larger": Array("0.90", words={8: 1 << 31}),
    "0.90 of an unknown level": Array("0.90", words={7: 77}),
    "0.90 of nothing": Array("0.90", words={8: 0}),
}


UNCLEAN = {"not in sync", "half in sync", "0.90 dirty"}


@pytest.mark.parametrize("name", BROKEN)
def test_what_proves_nothing(tmp_path: Path, name: str) -> None:
    member = make_disk(tmp_path / "member", 4 * MIB)
    write_superblock(member, BROKEN[name])
    if name in UNCLEAN:
        assert not read_member(FileVolume(member)).clean
    else:
        with pytest.raises(NotUnderstoodError):
            read_member(FileVolume(member))


@pytest.mark.parametrize("name", ["not in sync", "recovering", "0.90 dirty"])
def test_what_proves_nothing_is_whole(tmp_path: Path, file_system: Path, name: str) -> None:
    disk = make_member(tmp_path, file_system, BROKEN[name])
    found = look(disk)
    assert found.used.covers(START, START + LENGTH)
    (volume,) = found.layout.volumes
    assert volume.stored == "raw" and "RAID" in (volume.reason or "")


def test_bitmap_beside_the_data(tmp_path: Path, file_system: Path) -> None:
    array = Array(fields={8: ("I", 1), 96: ("i", 8)})
    (volume,) = look(make_member(tmp_path, file_system, array)).layout.volumes
    assert volume.stored == "used"


def test_linear_array_of_one_disk(tmp_path: Path, file_system: Path) -> None:
    array = Array(level=-1, disks=1, roles=(0,), fields={208: ("Q", 0)})
    (volume,) = look(make_member(tmp_path, file_system, array)).layout.volumes
    assert [child.stored for child in volume.children] == ["used"]


@pytest.mark.parametrize("version", ["0.90", "1.2"])
def test_single_flipped_bits(tmp_path: Path, file_system: Path, version: str) -> None:
    array = Array(version)
    disk = make_member(tmp_path, file_system, array)
    volume = FileVolume(disk, START, LENGTH)
    sound = read_member(volume)
    at = START + super_offset(array, LENGTH)
    for offset in range(0, 512, 7):
        byte = get(disk, at + offset, 1)
        put(disk, at + offset, bytes((byte[0] ^ 16,)))
        with pytest.raises(NotUnderstoodError):
            read_member(volume)
        put(disk, at + offset, byte)
    assert read_member(volume) == sound and sound.uuid == str(SET)


def test_superblock_that_is_cut_off(tmp_path: Path) -> None:
    for size in (0, 512, 4096, 8192, 65536, 131072):
        path = make_disk(tmp_path / f"{size}", size)
        with pytest.raises(NotUnderstoodError):
            read_member(FileVolume(path))


def test_two_superblocks(tmp_path: Path, file_system: Path) -> None:
    disk = make_member(tmp_path, file_system, Array("1.2"))
    write_superblock(disk, Array("1.0"), START, LENGTH)
    assert look(disk).used.covers(START, START + LENGTH)


@pytest.mark.parametrize(
    ("state", "action", "resync", "stored"),
    [
        ("in_sync", "idle", "none", "used"),
        ("in_sync", "resync", "4096", "raw"),
        ("in_sync,write_mostly", "idle", "none", "raw"),
        ("spare", "recover", "none", "raw"),
    ],
)
def test_the_kernel_knows_an_active_array(
    tmp_path: Path, file_system: Path, state: str, action: str, resync: str, stored: str
) -> None:
    """While it is written to, the superblock says "not in sync"; the kernel says whether it is."""
    disk = make_member(tmp_path, file_system, Array(fields={208: ("Q", 0)}))
    fake = FakeSystem(tmp_path / "fake")
    fake.add_disk("sda", 0x800)
    fake.add_partition("sda", "sda1", 0x801)
    (fake.sys / "class/block/sda1/start").write_text(f"{START // 512}\n")
    (fake.sys / "class/block/sda1/size").write_text(f"{LENGTH // 512}\n")
    md = fake.add_disk("md0", 0x900, made_of=("sda1",)) / "md"
    (md / "dev-sda1").mkdir(parents=True)
    (md / "dev-sda1/state").write_text(f"{state}\n")
    (md / "sync_action").write_text(f"{action}\n")
    (md / "resync_start").write_text(f"{resync}\n")
    node = fake.node("sda")
    found = analyse(
        FileVolume(disk, size=SIZE),
        node,
        identify=lambda path, start, size: identify(disk, start, size),
        system=fake.system,
    )
    assert found.layout.volumes[0].stored == stored


def test_whole_disk_of_a_mirror(tmp_path: Path, file_system: Path) -> None:
    disk = make_disk(tmp_path / "disk", SIZE)
    copy_into(file_system, disk, MIB)
    write_superblock(disk, Array("1.2"))
    (volume,) = look(disk).layout.volumes
    assert (volume.number, volume.kind, volume.stored) == (None, "linux_raid_member", "used")
    assert [child.kind for child in volume.children] == ["ext4"]


def test_versions_do_not_get_in_the_way(tmp_path: Path, file_system: Path) -> None:
    """A copy of another disk's superblock, at a place where that of this disk could be."""
    disk = make_member(tmp_path, file_system, Array("1.2"))
    other = clone(disk, tmp_path / "other")
    write_superblock(other, replace(Array("1.1"), name="x"), START, LENGTH)
    assert look(other).used.covers(START, START + LENGTH)


@pytest.mark.parametrize("version", ["0.90", "1.0", "1.2"])
def test_superblocks_changed_at_random(tmp_path: Path, version: str) -> None:
    """With a right checksum: what is understood lies within the member, beside the superblock."""
    member = make_disk(tmp_path / "member", 4 * MIB)
    chance = random.Random(7)
    understood = 0
    for _ in range(300):
        value = chance.choice((0, 1, 2, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1))
        if version == "0.90":
            array = Array(version, words={chance.randrange(1024): value})
        else:
            array = Array(version, fields={chance.randrange(64) * 4: ("I", value)})
        write_superblock(member, array)
        try:
            found = read_member(FileVolume(member))
        except NotUnderstoodError:
            continue
        understood += 1
        assert 0 <= found.start < found.start + found.size <= 4 * MIB
        at = super_offset(array, 4 * MIB)
        assert not found.start <= at < found.start + found.size
    assert 0 < understood < 300
