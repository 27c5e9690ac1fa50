"""GUID partition tables: against sfdisk, sgdisk and libparted; damaged and hostile ones."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.layout.model import PartitionTable
from imager.layout.table import read_table
from tests.disks import (
    MIB,
    attached,
    clone,
    get,
    make_disk,
    parted_partitions,
    put,
    reseal_header,
    run,
    sfdisk_json,
    sfdisk_numbers,
)
from tests.volumes import BytesVolume, FileVolume

SIZE = 64 * MIB


class Disk(NamedTuple):
    path: Path
    sector: int
    sfdisk: dict[str, Any]
    numbers: list[int]
    parted: list[list[int]]

    def read(self) -> PartitionTable:
        return read_table(FileVolume(self.path, sector_size=self.sector))


@pytest.fixture(scope="module", params=[512, 4096])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """A disk with partitions 1, 2, 3 and 7, not in disk order, as sgdisk makes it."""
    sector: int = request.param
    path = make_disk(tmp_path_factory.mktemp("gpt") / "disk", SIZE)
    with attached(path, sector) as device:
        run("sgdisk", "-a", "1", "-n", "1:4096:6000", "-t", "1:ef00", "-c", "1:EFI Système ✓",
            "-n", "2:10000:10000", "-A", "2:set:2", "-A", "2:set:63",
            "-n", "3:12000:14000", "-n", "7:2048:4095", "-t", "7:8200", "-c", "7:" + "x" * 36,
            device)  # fmt: skip
        sfdisk = sfdisk_json(device)
        numbers = sfdisk_numbers(device)
        parted = parted_partitions(device)
    return Disk(path, sector, sfdisk, numbers, parted)


@pytest.fixture
def disk(made: Disk, tmp_path: Path) -> Disk:
    """A copy of `made` that the test may change."""
    return made._replace(path=clone(made.path, tmp_path / "copy"))


@pytest.fixture(scope="module")
def small_table(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small disk with two adjacent partitions, 512-byte sectors."""
    path = make_disk(tmp_path_factory.mktemp("small") / "disk", 2 * MIB)
    run("sfdisk", path, text="label: gpt\nstart=2048 size=953\nstart=3001 size=500\n")
    return path.read_bytes()


@pytest.fixture
def small(small_table: bytes) -> bytearray:
    """The small disk, in memory."""
    return bytearray(small_table)


def test_as_sfdisk_and_parted_see_it(made: Disk) -> None:
    table = made.read()
    assert (table.kind, table.notes) == ("gpt", ())
    assert table.uuid == made.sfdisk["id"].lower()
    assert [partition.number for partition in table.partitions] == [1, 2, 3, 7]
    theirs = dict(zip(made.numbers, made.sfdisk["partitions"], strict=True))
    for partition in table.partitions:
        entry = theirs.pop(partition.number)
        assert partition.start == entry["start"] * made.sector
        assert partition.size == entry["size"] * made.sector
        assert partition.type == entry["type"].lower()
        assert partition.uuid == entry["uuid"].lower()
        assert partition.name == entry.get("name")
    assert not theirs
    assert [partition.flags for partition in table.partitions] == [0, 1 << 63 | 1 << 2, 0, 0]
    in_order = sorted(table.partitions, key=lambda partition: partition.start)
    units = [[p.number, p.start // made.sector, p.size // made.sector] for p in in_order]
    assert units == made.parted


def test_table_extents_are_all_that_is_needed(made: Disk, tmp_path: Path) -> None:
    table = made.read()
    array = -(-128 * 128 // made.sector) * made.sector
    assert table.extents == Extents.of(
        [(0, 2 * made.sector + array), (SIZE - made.sector - array, SIZE)]
    )
    blank = make_disk(tmp_path / "blank", SIZE)
    for start, end in table.extents:
        put(blank, start, get(made.path, start, end - start))
    assert read_table(FileVolume(blank, sector_size=made.sector)) == table
    with attached(blank, made.sector) as device:
        assert "No problems found" in run("sgdisk", "-v", device)


@pytest.mark.parametrize(
    ("place", "note"),
    [
        (lambda disk: disk.sector + 40, "primary partition table is damaged"),
        (lambda disk: 2 * disk.sector + 8, "primary partition table is damaged"),
        (lambda disk: SIZE - disk.sector + 3, "backup partition table is damaged"),
        (lambda disk: SIZE - disk.sector - 128 * 128 + 7, "backup partition table is damaged"),
    ],
)
def test_one_good_copy_is_enough(disk: Disk, place: Callable[[Disk], int], note: str) -> None:
    before = disk.read()
    put(disk.path, place(disk), b"\xa5")
    after = disk.read()
    assert after.partitions == before.partitions
    assert after.extents == before.extents
    assert len(after.notes) == 1
    assert note in after.notes[0]


def test_unreadable_copy_is_a_damaged_one(made: Disk) -> None:
    class BadSector(FileVolume):
        def read(self, offset: int, size: int) -> bytes:
            if offset <= SIZE - 1 < offset + size:
                raise ReadFailedError("medium error")
            return super().read(offset, size)

    table = read_table(BadSector(made.path, sector_size=made.sector))
    assert table.partitions == made.read().partitions
    assert table.notes == ("the backup partition table is damaged (it cannot be read)",)


def test_two_damaged_copies(disk: Disk) -> None:
    put(disk.path, disk.sector + 40, b"\xa5")
    put(disk.path, SIZE - disk.sector + 40, b"\xa5")
    with pytest.raises(NotUnderstoodError, match=r"damaged \(its header's checksum is wrong\)"):
        disk.read()


def test_two_good_copies_that_differ(disk: Disk, tmp_path: Path) -> None:
    other = clone(disk.path, tmp_path / "other")
    with attached(other, disk.sector) as device:
        run("sgdisk", "-d", "3", device)
    tail = 1 * MIB
    put(disk.path, SIZE - tail, get(other, SIZE - tail, tail))
    with pytest.raises(NotUnderstoodError, match="two copies of the partition table differ"):
        disk.read()


def test_grown_disk(disk: Disk) -> None:
    before = disk.read()
    with disk.path.open("r+b") as file:
        file.truncate(2 * SIZE)
    after = disk.read()
    assert after.partitions == before.partitions
    assert after.extents == before.extents
    assert after.notes == ("the backup partition table is not at the disk's end",)
    put(disk.path, disk.sector, bytes(8))
    with pytest.raises(NotUnderstoodError, match="it has no signature"):
        disk.read()


def test_truncated_disk(disk: Disk) -> None:
    with disk.path.open("r+b") as file:
        file.truncate(SIZE - MIB)
    with pytest.raises(NotUnderstoodError, match="usable range is impossible"):
        disk.read()


def test_made_for_another_sector_size(made: Disk) -> None:
    other = 4096 if made.sector == 512 else 512
    with pytest.raises(NotUnderstoodError, match=f"made for {made.sector}-byte sectors"):
        read_table(FileVolume(made.path, sector_size=other))


def test_hybrid(disk: Disk) -> None:
    before = disk.read()
    with attached(disk.path, disk.sector) as device:
        run("sgdisk", "-h", "1:3", device)
    after = disk.read()
    assert after.partitions == before.partitions
    assert after.notes == ("sector 0 also lists partitions (hybrid MBR); the GPT is used",)


def test_without_protective_mbr(disk: Disk) -> None:
    put(disk.path, 446, bytes(66))
    with pytest.raises(NotUnderstoodError, match="no protective MBR"):
        disk.read()
    linux = struct.pack("<B3sB3sII", 0x80, bytes(3), 0x83, bytes(3), 2048, 2048)
    put(disk.path, 446, linux + bytes(48) + b"\x55\xaa")
    with pytest.raises(NotUnderstoodError, match="no protective MBR"):
        disk.read()


def test_stale_backup_of_an_earlier_table(disk: Disk) -> None:
    put(disk.path, 0, bytes(MIB))
    assert disk.read().kind == "none"


def test_dynamic_disk(disk: Disk) -> None:
    with attached(disk.path, disk.sector) as device:
        run("sgdisk", "-t", "3:4200", device)
    with pytest.raises(NotUnderstoodError, match="dynamic disk"):
        disk.read()


def test_no_partitions(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    run("sgdisk", "-o", path)
    table = read_table(FileVolume(path))
    assert (table.kind, table.partitions) == ("gpt", ())


def test_name_that_is_no_unicode(small: bytearray) -> None:
    edit_entry(small, 0, 56, b"\x00\xd8a\0" + bytes(68))
    assert read_table(BytesVolume(small)).partitions[0].name == "\ufffda"


def edit_header(data: bytearray, at: int, value: bytes) -> None:
    """Change bytes of the primary header, set its checksum, and spoil the backup's."""
    data[512 + at : 512 + at + len(value)] = value
    header = data[512:1024]
    reseal_header(header)
    data[512:1024] = header
    data[-512] = 0


def edit_entry(data: bytearray, index: int, at: int, value: bytes) -> None:
    """Change bytes of an entry of the primary array and set both checksums."""
    start = 1024 + 128 * index + at
    data[start : start + len(value)] = value
    edit_header(data, 88, struct.pack("<I", zlib.crc32(data[1024 : 1024 + 128 * 128])))


@pytest.mark.parametrize(
    ("at", "layout", "value"),
    [
        (8, "<I", 0x00020000),
        (12, "<I", 0),
        (12, "<I", 91),
        (12, "<I", 513),
        (12, "<I", 0xFFFFFFFF),
        (24, "<Q", 0),
        (24, "<Q", 5000),
        (32, "<Q", 1),
        (40, "<Q", 0),
        (40, "<Q", 3000),
        (40, "<Q", (1 << 64) - 1),
        (48, "<Q", 4095),
        (48, "<Q", (1 << 64) - 1),
        (48, "<Q", 0),
        (72, "<Q", 0),
        (72, "<Q", 1),
        (72, "<Q", 33),
        (72, "<Q", 4095),
        (72, "<Q", (1 << 64) - 1),
        (80, "<I", 0),
        (80, "<I", 1 << 31),
        (80, "<I", 0xFFFFFFFF),
        (84, "<I", 0),
        (84, "<I", 64),
        (84, "<I", 129),
        (84, "<I", 0xFFFFFFF8),
        (88, "<I", 0),
    ],
)
def test_hostile_header(small: bytearray, at: int, layout: str, value: int) -> None:
    edit_header(small, at, struct.pack(layout, value))
    with pytest.raises(NotUnderstoodError):
        read_table(BytesVolume(small))


def test_array_of_gigabytes() -> None:
    """The size of the disk alone would allow it."""

    class Endless:
        size = 16 << 40
        sector_size = 512

        def read(self, offset: int, size: int) -> bytes:
            assert size <= 8 * MIB
            return self.start[offset : offset + size].ljust(size, b"\0")

        def __init__(self, start: bytes) -> None:
            self.start = start

    array, sectors = 64 << 30, (16 << 40) // 512
    data = bytearray(1024)
    data[446:512] = (
        struct.pack("<B3sB3sII", 0, bytes(3), 0xEE, bytes(3), 1, 0xFFFFFFFF).ljust(64, b"\0")
        + b"\x55\xaa"
    )
    data[512:604] = struct.pack(
        "<8s4I4Q16sQ3I", b"EFI PART", 0x10000, 92, 0, 0, 1, sectors - 1,
        2 + array // 512, sectors - 34, bytes(16), 2, array // 128, 128, 0,
    )  # fmt: skip
    header = data[512:]
    reseal_header(header)
    data[512:] = header
    with pytest.raises(NotUnderstoodError, match="number of entries is impossible"):
        read_table(Endless(bytes(data)))


def test_own_backup_far_away(small: bytearray) -> None:
    """An impossible place of the backup costs only the backup."""
    edit_header(small, 32, struct.pack("<Q", (1 << 64) - 1))
    table = read_table(BytesVolume(small))
    assert len(table.partitions) == 2
    assert "backup partition table is damaged" in table.notes[0]


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (3000, 3500, "partition 1 and partition 2 overlap"),
        (2048, 2048, "partition 2 and partition 1 overlap"),
        (33, 40, "outside the usable range"),
        (3500, 3499, "outside the usable range"),
        (3500, 4080, "outside the usable range"),
        ((1 << 64) - 2, (1 << 64) - 1, "outside the usable range"),
    ],
)
def test_hostile_entry(small: bytearray, first: int, last: int, message: str) -> None:
    edit_entry(small, 1, 32, struct.pack("<QQ", first, last))
    with pytest.raises(NotUnderstoodError, match=message):
        read_table(BytesVolume(small))


def test_longer_header_and_entries(small: bytearray) -> None:
    """A header of a later revision may be longer, an entry 128 x 2^n bytes."""
    entries = b"".join(
        bytes(small[1024 + 128 * index : 1152 + 128 * index]) + bytes(128) for index in range(64)
    )
    small[1024 : 1024 + len(entries)] = entries
    edit_header(small, 80, struct.pack("<III", 64, 256, zlib.crc32(entries)))
    edit_header(small, 12, struct.pack("<I", 512))
    table = read_table(BytesVolume(small))
    assert [partition.number for partition in table.partitions] == [1, 2]


def test_flipped_bits_never_change_what_is_seen(small: bytearray) -> None:
    """All is covered by checksums: the partitions stay, or the table is not understood."""
    before = read_table(BytesVolume(small)).partitions
    places = [*range(446, 1024 + 3 * 128), *range(len(small) - 33 * 512, len(small))]
    refused = 0
    for seed in range(600):
        chance = random.Random(seed)
        data = bytearray(small)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.choice(places)] ^= 1 << chance.randrange(8)
        try:
            assert read_table(BytesVolume(data)).partitions == before
        except NotUnderstoodError:
            refused += 1
    assert 0 < refused < 600


def test_garbage_behind_a_protective_mbr(small: bytearray) -> None:
    for seed in range(200):
        chance = random.Random(seed)
        data = bytearray(small[:512]) + chance.randbytes(len(small) - 512)
        data[512:520] = b"EFI PART"
        with pytest.raises(NotUnderstoodError):
            read_table(BytesVolume(data))
