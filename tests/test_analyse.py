"""Which ranges of a disk are stored: partitions, gaps, edges, and every kind of doubt."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imager.disk.source import SourceDevice
from imager.errors import NotUnderstoodError, ReadFailedError, UsageError
from imager.extents import Extents
from imager.filesystems import Allocation, Volume
from imager.layout.analyse import Analysis, analyse
from imager.layout.model import DiskLayout, Gap, VolumeLayout
from tests.disks import MIB, attached, copy_into, get, make_disk, put, run
from tests.volumes import FileVolume

SIZE = 512 * MIB
EDGE = 16 * MIB


def reads(
    *ranges: tuple[int, int], behind: int = 0, notes: tuple[str, ...] = ()
) -> Callable[[Volume], Allocation]:
    """A file-system reader that finds `ranges`, and ends `behind` bytes before its volume."""
    return lambda volume: Allocation(Extents.of(ranges), volume.size - behind, notes)


def fails(error: Exception) -> Callable[[Volume], Allocation]:
    """A file-system reader that raises."""

    def reader(volume: Volume) -> Allocation:
        raise error

    return reader


class Readers(dict[str, Callable[[Volume], Allocation]]):
    """The readers of file systems in this test; takes the place of `import_module`, too."""

    def load(self, kind: str) -> SimpleNamespace:
        return SimpleNamespace(read_allocation=self[kind])


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Readers:
    known = Readers(ext4=reads((0, MIB), (2 * MIB, 2 * MIB + 4096)), vfat=reads((0, 65536)))
    # The registry names modules; here a kind's module is called as the kind.
    names = SimpleNamespace(get=lambda kind: kind if kind in known else None)
    monkeypatch.setattr("imager.filesystems._READERS", names)
    loader = SimpleNamespace(import_module=known.load)
    monkeypatch.setattr("imager.filesystems.importlib", loader)
    return known


@pytest.fixture(scope="module")
def file_systems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small volume of each kind."""
    folder = tmp_path_factory.mktemp("volumes")
    run("mkfs.ext4", "-q", "-L", "root\n✓", "-U", "01234567-89ab-cdef-0123-456789abcdef",
        make_disk(folder / "ext4", 8 * MIB))  # fmt: skip
    run("mkfs.fat", "-F", "16", "-n", "EFI SYS", make_disk(folder / "vfat", 16 * MIB))
    run("mkswap", "-q", make_disk(folder / "swap", MIB))
    return folder


@pytest.fixture
def disk(tmp_path: Path, file_systems: Path) -> Path:
    """512 MiB: 1 vfat 1-17, 2 ext4 20-28, gap, 3 nothing 100-110, gap, 4 swap 500-501 MiB."""
    path = make_disk(tmp_path / "disk", SIZE)
    script = "label: gpt\n" + "".join(
        f"start={start}MiB size={size}MiB type={kind}\n"
        for start, size, kind in ((1, 16, "U"), (20, 8, "L"), (100, 10, "L"), (500, 1, "S"))
    )
    run("sfdisk", path, text=script)
    copy_into(file_systems / "vfat", path, MIB)
    copy_into(file_systems / "ext4", path, 20 * MIB)
    copy_into(file_systems / "swap", path, 500 * MIB)
    return path


def look(path: Path, sector_size: int = 512, **options: Any) -> Analysis:
    """Analyse, and check what holds for every analysis."""
    volume = FileVolume(path, size=disk_size(path), sector_size=sector_size)
    found = analyse(volume, path, **options)
    layout = found.layout
    assert DiskLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    pieces: list[VolumeLayout | Gap] = [*layout.volumes, *layout.gaps]
    whole = Extents.of((piece.start, piece.end) for piece in pieces)
    assert whole == Extents.span(0, layout.size)
    assert not found.used & found.excluded
    assert not layout.table.extents - found.used
    assert found.used.align(sector_size).clip(0, layout.size) == found.used
    edges = Extents.of([(0, EDGE), (max(layout.size - EDGE, 0), layout.size)])
    assert not edges.clip(0, layout.size) - found.used - found.excluded
    return found


def disk_size(path: Path) -> int:
    """The size of a file or block device."""
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def volume_of(found: Analysis, number: int | None) -> VolumeLayout:
    """The volume with the number."""
    (volume,) = (volume for volume in found.layout.volumes if volume.number == number)
    return volume


def mib(*ranges: tuple[float, float]) -> Extents:
    """Ranges given in MiB."""
    return Extents.of((int(start * MIB), int(end * MIB)) for start, end in ranges)


def reasons(found: Analysis) -> list[tuple[bool, str]]:
    """Each gap: whether it is stored, and why."""
    return [(gap.stored, gap.reason) for gap in found.layout.gaps]


@pytest.mark.usefixtures("readers")
def test_a_usual_disk(disk: Path) -> None:
    found = look(disk)
    page = 4096 / MIB
    assert found.used == mib((0, 16), (17, 21), (22, 22 + page), (28, 28), (100, 110), (496, 512))
    assert found.excluded == Extents()
    esp, root, nothing, swap = found.layout.volumes
    assert (esp.number, esp.kind, esp.label, esp.stored) == (1, "vfat", "EFI SYS", "used")
    assert (esp.used, esp.fs_size, esp.reason, esp.usage) == (65536, esp.size, None, "filesystem")
    assert (root.start, root.size, root.kind) == (20 * MIB, 8 * MIB, "ext4")
    assert (root.label, root.uuid) == ("root\n✓", "01234567-89ab-cdef-0123-456789abcdef")
    assert (root.used, root.partition) == (MIB + 4096, found.layout.table.partitions[1])
    assert (nothing.kind, nothing.stored, nothing.used) == (None, "raw", 10 * MIB)
    assert nothing.reason == "no file system recognised"
    assert (swap.kind, swap.stored) == ("swap", "raw")
    assert swap.reason == "swap is not read by this version"
    assert reasons(found) == [
        (True, "before the first partition"),
        (True, "up to 16 MiB"),
        (False, "unpartitioned, nothing recognised in it"),
        (False, "unpartitioned, nothing recognised in it"),
        (True, "up to 16 MiB"),
    ]


@pytest.mark.usefixtures("readers")
def test_the_source_is_only_read(tmp_path: Path, file_systems: Path) -> None:
    disk = make_disk(tmp_path / "disk", 32 * MIB)
    run("sfdisk", disk, text="label: gpt\nstart=20MiB size=8MiB\n")
    copy_into(file_systems / "ext4", disk, 20 * MIB)
    put(disk, 512, bytes(8))
    before = disk.read_bytes(), disk.stat().st_mtime_ns
    look(disk)
    assert (disk.read_bytes(), disk.stat().st_mtime_ns) == before


@pytest.mark.usefixtures("readers")
def test_raw(disk: Path) -> None:
    found = look(disk, raw=True)
    assert found.used == Extents.span(0, SIZE)
    assert {volume.reason for volume in found.layout.volumes} == {"every sector was asked for"}
    assert volume_of(found, 2).kind == "ext4"
    assert all(gap.stored for gap in found.layout.gaps)


@pytest.mark.usefixtures("readers")
def test_raw_volume(disk: Path) -> None:
    found = look(disk, raw_volumes={2: "it is mounted"})
    assert (volume_of(found, 2).stored, volume_of(found, 2).reason) == ("raw", "it is mounted")
    assert found.used.covers(20 * MIB, 28 * MIB)
    assert volume_of(found, 1).stored == "used"


@pytest.mark.usefixtures("readers")
def test_keep_gaps(disk: Path) -> None:
    found = look(disk, keep_gaps=True)
    assert all(gap.stored for gap in found.layout.gaps)
    assert found.used.covers(28 * MIB, SIZE)
    assert not found.used.covers(20 * MIB, 28 * MIB)


@pytest.mark.usefixtures("readers")
def test_only_and_exclude(disk: Path) -> None:
    found = look(disk, only=[2, 3])
    assert found.excluded == mib((1, 17), (500, 501))
    assert found.used == mib((0, 1), (17, 21), (22, 22 + 4096 / MIB), (100, 110), (496, 500),
                             (501, 512))  # fmt: skip
    assert [volume.stored for volume in found.layout.volumes] == ["excluded", "used", "raw",
                                                                  "excluded"]  # fmt: skip
    assert volume_of(found, 1).kind == "vfat"
    assert volume_of(found, 1).used == 0
    assert look(disk, exclude=[4, 1]) == found
    assert look(disk, only=[2, 3, 4], exclude=[4]) == found
    assert look(disk, exclude=[1, 4], raw=True).used == Extents.span(0, SIZE) - found.excluded


@pytest.mark.usefixtures("readers")
def test_unknown_partition(disk: Path) -> None:
    with pytest.raises(UsageError, match=r"no partition 7; it has: 1, 2, 3, 4"):
        look(disk, exclude=[7])
    with pytest.raises(UsageError, match=r"no partition 9"):
        look(disk, only=[1, 9])


def test_a_doubt_about_a_volume(disk: Path, readers: Readers) -> None:
    readers["ext4"] = fails(NotUnderstoodError("feature 0x8000 is unknown"))
    readers["vfat"] = fails(ReadFailedError("medium error"))
    found = look(disk)
    assert volume_of(found, 2).reason == "feature 0x8000 is unknown"
    assert volume_of(found, 1).reason == "its metadata cannot be read"
    assert found.used.covers(0, 28 * MIB)


def test_file_system_larger_than_its_partition(disk: Path, readers: Readers) -> None:
    readers["ext4"] = reads((0, 4096), behind=-512)
    assert volume_of(look(disk), 2).reason == "file system is larger than its volume"


def test_what_lies_behind_a_file_system(disk: Path, readers: Readers) -> None:
    readers["ext4"] = reads((0, 4096), (8 * MIB - 2048, 8 * MIB), behind=MIB, notes=("dirty",))
    found = look(disk)
    volume = volume_of(found, 2)
    assert (volume.fs_size, volume.used, volume.notes) == (7 * MIB, MIB + 4096, ("dirty",))
    assert found.used.clip(18 * MIB, 30 * MIB) == mib((18, 20 + 4096 / MIB), (27, 28))


def test_whole_sectors(tmp_path: Path, file_systems: Path, readers: Readers) -> None:
    readers["ext4"] = reads((1, 2), (5000, 8193), behind=3)
    path = make_disk(tmp_path / "disk", 64 * MIB)
    with attached(path, 4096) as device:
        run("sfdisk", device, text="label: gpt\nstart=20MiB size=8MiB\n")
        copy_into(file_systems / "ext4", path, 20 * MIB)
        found = look(device, sector_size=4096)
    assert volume_of(found, 1).used == 4 * 4096
    start = 20 * MIB
    expected = [(start, start + 3 * 4096), (start + 8 * MIB - 4096, start + 8 * MIB)]
    assert found.used.clip(start, start + 8 * MIB) == Extents.of(expected)


@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize("place", [28.0, 60.0, 99.0, 110.0, 300.0])
def test_a_lost_partition(disk: Path, file_systems: Path, place: float) -> None:
    copy_into(file_systems / "ext4", disk, int(place * MIB))
    found = look(disk)
    stored = [gap for gap in found.layout.gaps if gap.size > EDGE and gap.stored]
    assert [(gap.start <= place * MIB < gap.end) for gap in stored] == [True]
    assert stored[0].reason == (
        f"signature of ext2/3/4 at byte {int(place * MIB)}: perhaps a lost partition"
    )
    assert found.used.covers(stored[0].start, stored[0].end)


@pytest.mark.usefixtures("readers")
def test_gap_that_cannot_be_read(disk: Path) -> None:
    class BadSector(FileVolume):
        def read(self, offset: int, size: int) -> bytes:
            if offset <= 60 * MIB < offset + size:
                raise ReadFailedError("medium error")
            return super().read(offset, size)

    found = analyse(BadSector(disk), disk)
    assert reasons(found)[2] == (True, "it could not be searched for lost partitions")


def test_huge_sparse_disk(tmp_path: Path, file_systems: Path, readers: Readers) -> None:
    path = make_disk(tmp_path / "disk", 2 << 40)
    run("sfdisk", path, text="label: gpt\nstart=1MiB size=16MiB\nstart=1TiB size=1GiB\n")
    copy_into(file_systems / "vfat", path, MIB)
    copy_into(file_systems / "ext4", path, (1 << 40) + 100 * (1 << 30))
    asked = 0

    def next_data(offset: int) -> int | None:
        nonlocal asked
        asked += 1
        with path.open("rb") as file:
            try:
                return os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return None

    found = look(path, next_data=next_data, exclude=[2])
    assert [gap.stored for gap in found.layout.gaps] == [True, False, True]
    assert "signature of ext2/3/4" in found.layout.gaps[2].reason
    assert asked < 100


def test_damaged_table(disk: Path) -> None:
    put(disk, 512, bytes(8))
    put(disk, SIZE - 512, bytes(8))
    found = look(disk)
    assert found.used == Extents.span(0, SIZE)
    assert volume_of(found, None).reason == "the partition table is damaged (it has no signature)"
    with pytest.raises(UsageError, match="cannot be left out of this disk: the partition table"):
        look(disk, exclude=[1])


def test_unreadable_table(disk: Path) -> None:
    class Dead(FileVolume):
        def read(self, offset: int, size: int) -> bytes:
            raise ReadFailedError("medium error")

    found = analyse(Dead(disk), disk)
    assert found.used == Extents.span(0, SIZE)
    assert volume_of(found, None).reason == "the partition table cannot be read"


def test_file_system_without_a_table(tmp_path: Path, readers: Readers) -> None:
    readers["ext4"] = reads((0, 20 * MIB), (40 * MIB, 41 * MIB), behind=512)
    path = make_disk(tmp_path / "disk", 128 * MIB)
    run("mkfs.ext4", "-q", "-L", "data", path)
    found = look(path)
    (volume,) = found.layout.volumes
    assert (volume.number, volume.kind, volume.label, volume.stored) == (
        None, "ext4", "data", "used",
    )  # fmt: skip
    assert found.used == mib((0, 20), (40, 41), (112, 128))
    assert found.layout.gaps == ()
    assert volume_of(look(path, raw_volumes={None: "mounted"}), None).stored == "raw"
    with pytest.raises(UsageError, match="it has: none"):
        look(path, only=[1])


@pytest.mark.usefixtures("readers")
def test_boot_code_in_front_of_a_file_system(tmp_path: Path, file_systems: Path) -> None:
    """55 AA and an empty table do not hide the file system; nor does mkfs.fat's mock table."""
    path = make_disk(tmp_path / "disk", 16 * MIB)
    copy_into(file_systems / "ext4", path, 0)
    put(path, 510, b"\x55\xaa")
    assert volume_of(look(path), None).kind == "ext4"
    assert volume_of(look(path), None).stored == "used"
    path = make_disk(tmp_path / "fat", 64 * MIB)
    run("mkfs.fat", "-F", "16", "--mbr=y", path)
    assert volume_of(look(path), None).kind == "vfat"
    assert volume_of(look(path), None).stored == "used"


@pytest.mark.parametrize("script", ["", "label: dos\n"])
def test_nothing_recognised(tmp_path: Path, script: str) -> None:
    path = make_disk(tmp_path / "disk", 128 * MIB)
    if script:
        run("sfdisk", path, text=script)
    found = look(path)
    assert found.used == Extents.span(0, 128 * MIB)
    assert volume_of(found, None).reason == "no file system recognised"


def test_gpt_without_partitions(tmp_path: Path, file_systems: Path) -> None:
    path = make_disk(tmp_path / "disk", 128 * MIB)
    run("sfdisk", path, text="label: gpt\n")
    found = look(path)
    assert found.layout.volumes == ()
    assert reasons(found) == [(False, "unpartitioned, nothing recognised in it")]
    assert found.used == mib((0, 16), (112, 128))
    copy_into(file_systems / "ext4", path, MIB)
    assert look(path).used == Extents.span(0, 128 * MIB)


@pytest.mark.usefixtures("readers")
def test_logical_partitions(tmp_path: Path, file_systems: Path) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    run(
        "sfdisk", path,
        text="label: dos\nstart=20MiB size=16MiB type=c\nstart=40MiB size=400MiB type=f\n"
        "start=42MiB size=8MiB\nstart=100MiB size=8MiB\n",
    )  # fmt: skip
    copy_into(file_systems / "vfat", path, 20 * MIB)
    copy_into(file_systems / "ext4", path, 100 * MIB)
    found = look(path)
    assert [volume.number for volume in found.layout.volumes] == [1, 5, 6]
    assert [gap.stored for gap in found.layout.gaps] == [True, True, False, False]
    record = found.layout.table.extents.next_start(50 * MIB)
    assert record is not None
    assert found.used == mib((0, 20 + 65536 / MIB), (36, 50), (100, 101), (102, 102 + 4096 / MIB),
                             (496, 512)) | Extents.span(record, record + 512)  # fmt: skip
    with pytest.raises(UsageError, match=r"no partition 2; it has: 1, 5, 6"):
        look(path, exclude=[2])
    left_out = look(path, exclude=[6])
    assert left_out.excluded == mib((100, 108))
    assert record in left_out.used


@pytest.mark.usefixtures("readers")
def test_a_signature_of_the_whole_disk_keeps_the_gaps(disk: Path, file_systems: Path) -> None:
    run("sfdisk", disk, text="label: dos\nstart=20MiB size=8MiB\n")
    copy_into(file_systems / "ext4", disk, 20 * MIB)
    put(disk, 1024, get(file_systems / "ext4", 1024, 1024))
    found = look(disk)
    assert volume_of(found, 1).stored == "used"
    assert {reason for _, reason in reasons(found)} == {
        "the disk as a whole has a signature of ext4"
    }
    assert all(gap.stored for gap in found.layout.gaps)


@pytest.mark.usefixtures("readers")
def test_member_of_a_raid(disk: Path) -> None:
    """Intel's fake RAID keeps its metadata in the last but one sector."""
    put(disk, SIZE - 1024, b"Intel Raid ISM Cfg Sig. 1.1.00")
    found = look(disk)
    assert found.used == Extents.span(0, SIZE)
    assert volume_of(found, None).reason == ("the whole disk is part of a RAID (isw_raid_member)")


def md_superblock() -> bytes:
    """An md superblock of version 0.90, as md(4) keeps it 64 KiB before the end."""
    block = bytearray(4096)
    struct.pack_into("<9I", block, 0, 0xA92B4EFC, 0, 90, 3, 0, 0x11223344, 0, 1, 0)
    total = sum(struct.unpack("<1024I", block))
    struct.pack_into("<I", block, 152, (total & 0xFFFFFFFF) + (total >> 32))
    return bytes(block)


@pytest.mark.parametrize(("size", "whole"), [("", False), ("size=200MiB", True)])
def test_raid_in_the_last_partition(tmp_path: Path, size: str, whole: bool) -> None:
    """A superblock at the disk's end belongs to the partition that reaches up to there."""
    path = make_disk(tmp_path / "disk", 256 * MIB)
    run("sfdisk", path, text=f"label: dos\nstart=1MiB {size}\n")
    put(path, 256 * MIB - 65536, md_superblock())
    found = look(path)
    assert found.layout.volumes[0].number == (None if whole else 1)
    assert found.layout.volumes[0].kind == (None if whole else "linux_raid_member")
    assert ("part of a RAID" in (found.layout.volumes[0].reason or "")) == whole


@pytest.mark.usefixtures("readers")
def test_partition_table_inside_a_partition(disk: Path) -> None:
    put(disk, 20 * MIB + 446, get(disk, 446, 4) + b"\x83" + bytes(3) + b"\0\x08\0\0\0\x08\0\0")
    put(disk, 20 * MIB + 510, b"\x55\xaa")
    found = look(disk)
    assert volume_of(found, 2).reason == "it has both ext4 and a partition table"
    put(disk, 20 * MIB + 446, bytes(64))
    assert volume_of(look(disk), 2).stored == "used"


@pytest.mark.usefixtures("readers")
def test_progress(disk: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    look(disk, progress=lambda *step: steps.append(step))
    assert steps[0] == ("reading the partition table", 0, 0)
    assert ("reading partition 2", 0, 0) in steps


def test_progress_of_the_search_in_large_gaps(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", 400 * MIB)
    script = "label: gpt\nstart=20MiB, size=20MiB\nstart=50MiB, size=50MiB\n"
    run("sfdisk", disk, text=script)
    put(disk, 200 * MIB, b"data")
    steps: list[tuple[str, int, int]] = []
    with SourceDevice(disk) as device:
        analyse(
            device,
            disk,
            next_data=device.next_data,
            progress=lambda *step: steps.append(step),
        )
    # Only what is searched counts: not the first 20 MiB, which are kept, nor the small gap.
    searched = [step[1:] for step in steps if "gaps" in step[0]]
    assert searched[:2] == [(0, 300 * MIB), (100 * MIB, 300 * MIB)]
