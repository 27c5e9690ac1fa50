"""MBR tables against sfdisk, partx and libparted; boot sectors that are none; hostile chains."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.layout.table import read_table
from tests.disks import (
    MIB,
    attached,
    copy_into,
    make_disk,
    parted_partitions,
    put,
    run,
    sfdisk_json,
    sfdisk_numbers,
)
from tests.volumes import BytesVolume, FileVolume

SIZE = 128 * MIB
ENTRY = struct.Struct("<B3sB3sII")


def entry(kind: int, start: int, size: int, boot: int = 0) -> bytes:
    return ENTRY.pack(boot, bytes(3), kind, bytes(3), start, size)


def record(*entries: bytes, signature: int = 0) -> bytes:
    """A sector with the given partition records and 55 AA."""
    table = b"".join(entries).ljust(64, b"\0")
    return bytes(440) + struct.pack("<I", signature) + bytes(2) + table + b"\x55\xaa"


def disk(*sectors: tuple[int, bytes], size: int = 1 << 14) -> BytesVolume:
    """A disk of `size` sectors of which some are given as (LBA, content)."""
    data = bytearray(size * 512)
    for lba, content in sectors:
        data[lba * 512 : lba * 512 + len(content)] = content
    return BytesVolume(data)


@pytest.mark.parametrize("sector", [512, 4096])
def test_as_other_tools_see_it(tmp_path: Path, sector: int) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    unit = MIB // sector
    script = (
        "label: dos\nlabel-id: 0x1234abcd\n"
        f"2: start={60 * unit} size={10 * unit} type=7 bootable\n"
        f"1: start={unit} size={4 * unit} type=c\n"
        f"4: start={8 * unit} size={50 * unit} type=f\n"
        f"5: start={10 * unit} size={5 * unit} type=83\n"
        f"6: start={30 * unit} size={unit} type=82\n"
        f"7: start={40 * unit} size={18 * unit} type=8e\n"
    )
    with attached(path, sector) as device:
        run("sfdisk", device, text=script)
        theirs = dict(zip(sfdisk_numbers(device), sfdisk_json(device)["partitions"], strict=True))
        partx = run("partx", "-rgo", "NR,START,SECTORS,UUID,TYPE", device).split("\n")[:-1]
        parted = parted_partitions(device)
    table = read_table(FileVolume(path, sector_size=sector))
    assert (table.kind, table.uuid, table.notes) == ("mbr", "1234abcd", ())
    assert sorted(theirs) == [p.number for p in sorted(table.partitions, key=lambda p: p.number)]
    for partition in table.partitions:
        known = theirs[partition.number]
        assert partition.start == known["start"] * sector
        assert int(partition.type, 16) == int(known["type"], 16)
        assert partition.flags == (0x80 if known.get("bootable") else 0)
        assert partition.extended == (partition.number == 4)
        assert partition.size == known["size"] * sector
    by_parted = {
        number: [start * sector, size * sector] for number, start, size in parted if number > 0
    }
    assert {p.number: [p.start, p.size] for p in table.partitions} == by_parted
    by_partx = {int(line.split()[0]): line.split()[3:] for line in partx}
    assert {p.number: [p.uuid, p.type] for p in table.partitions} == by_partx
    records = [8 * MIB, *(start for start, end in table.extents if start > 8 * MIB)]
    assert len(records) == 3
    blank = make_disk(tmp_path / "blank", SIZE)
    for start, end in table.extents:
        assert end - start == sector
        put(blank, start, FileVolume(path).read(start, end - start))
    assert read_table(FileVolume(blank, sector_size=sector)) == table


def test_no_partitions(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    run("sfdisk", path, text="label: dos\n")
    table = read_table(FileVolume(path))
    assert (table.kind, table.partitions) == ("mbr", ())
    assert table.extents == Extents.span(0, 512)


def test_no_signature() -> None:
    table = read_table(disk((0, record(signature=0))))
    assert table.uuid is None
    assert read_table(disk((0, record(entry(0x83, 1, 1))))).partitions[0].uuid is None


@pytest.mark.parametrize(
    "command",
    [
        ("mkfs.fat", "-F", "32"),
        ("mkfs.fat", "-F", "16", "--mbr=y"),
        ("mkfs.fat", "-F", "12", "-s", "128", "--mbr=n"),
        ("mkfs.ntfs", "-qF"),
        ("mkfs.ext4", "-q"),
        ("mkswap",),
    ],
    ids=" ".join,
)
def test_unpartitioned(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    run(*command, path)
    table = read_table(FileVolume(path))
    assert (table.kind, table.partitions) == ("none", ())


def test_boot_sector_with_partitions(tmp_path: Path) -> None:
    """A disk that was one FAT volume once and is partitioned now, or the reverse."""
    path = make_disk(tmp_path / "disk", SIZE)
    run("mkfs.fat", "-F", "32", "--mbr=n", path)
    put(path, 446, entry(0x83, 2048, 4096))
    with pytest.raises(NotUnderstoodError, match="both a boot sector and a partition table"):
        read_table(FileVolume(path))


def test_boot_indicator() -> None:
    table = read_table(disk((0, record(entry(0x83, 64, 64, boot=0x42)))))
    assert table.kind == "none"
    assert table.notes == ("sector 0 holds no valid partition table",)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("mac", "an Apple partition map"),
        ("bsd", "a BSD disk label"),
        ("sun", "a Sun disk label"),
        ("dvh", "an SGI disk label"),
        ("pc98", "a PC-98 partition table"),
    ],
)
def test_labels_that_are_only_recognised(tmp_path: Path, label: str, name: str) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    run("parted", "-s", path, "mklabel", label)
    with pytest.raises(NotUnderstoodError, match=name):
        read_table(FileVolume(path))


def test_dynamic_disk() -> None:
    with pytest.raises(NotUnderstoodError, match="dynamic disk"):
        read_table(disk((0, record(entry(0x42, 63, 10000)))))


@pytest.mark.parametrize("sector", [512, 4096])
def test_made_for_another_sector_size(tmp_path: Path, sector: int) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    unit = MIB // sector
    with attached(path, sector) as device:
        run("sfdisk", device, text=f"label: dos\nstart={unit} size={8 * unit}\n")
    file_system = make_disk(tmp_path / "fs", 8 * MIB)
    run("mkfs.ext4", "-q", file_system)
    copy_into(file_system, path, MIB)
    assert read_table(FileVolume(path, sector_size=sector)).partitions[0].start == MIB
    other = 4096 if sector == 512 else 512
    with pytest.raises(NotUnderstoodError, match=f"made for {sector}-byte sectors"):
        read_table(FileVolume(path, sector_size=other))


EXTENDED = entry(0x5, 1000, 4000)
GOOD = (
    (0, record(entry(0x83, 100, 800), EXTENDED, signature=0x1020304)),
    (1000, record(entry(0x83, 10, 90), entry(0x5, 2000, 1000))),
    (3000, record(entry(0x83, 10, 90), entry(0x5, 200, 1000))),
    (1200, record(entry(0x82, 10, 90))),
)


def test_chain_that_goes_back() -> None:
    table = read_table(disk(*GOOD))
    found = [(p.number, p.start // 512, p.size // 512) for p in table.partitions]
    assert found == [(1, 100, 800), (2, 1000, 4000), (5, 1010, 90), (6, 3010, 90), (7, 1210, 90)]
    assert [start // 512 for start, _ in table.extents] == [0, 1000, 1200, 3000]
    assert table.partitions[-1].uuid == "01020304-07"


def test_record_without_a_partition_takes_no_number() -> None:
    first = (1000, record(bytes(16), entry(0x5, 2000, 1000)))
    table = read_table(disk(GOOD[0], first, (3000, record(entry(0x83, 10, 90)))))
    assert [p.number for p in table.partitions] == [1, 2, 5]


@pytest.mark.parametrize(
    ("sectors", "message"),
    [
        ([(0, record(entry(0x83, 1, 1 << 14)))], "partition 1 reaches past the disk's end"),
        ([(0, record(entry(0x83, 0xFFFFFFFF, 0xFFFFFFFF)))], "past the disk's end"),
        ([(0, record(entry(0x83, 0, 10), entry(0x83, 20, 10)))], "sector 0 and partition 1"),
        ([(0, record(entry(0x83, 1, 10), entry(0x83, 10, 10)))], "partition 1 and partition 2"),
        ([(0, record(entry(0x83, 1, 2000), EXTENDED))], "partition 1 and partition 2 overlap"),
        ([(0, record(EXTENDED, entry(0xF, 5000, 100)))], "two extended partitions"),
        ([(0, record(EXTENDED))], "chain of logical partitions is broken"),
        ([GOOD[0], (1000, record(entry(0x83, 1, 1, boot=7)))], "chain .* is broken"),
        ([GOOD[0], (1000, record(entry(0x83, 10, 90), entry(0x5, 0, 10)))], "does not end"),
        ([*GOOD[:2], (3000, record(bytes(16), entry(0x5, 0, 10)))], "does not end"),
        ([*GOOD[:2], (3000, record(bytes(16), entry(0x5, 2000, 10)))], "does not end"),
        ([GOOD[0], (1000, record(bytes(16), entry(0x5, 4000, 10)))], "is outside the extended"),
        ([GOOD[0], (1000, record(bytes(16), entry(0x5, 0xFFFFFFFF, 10)))], "is outside"),
        ([GOOD[0], (1000, record(entry(0x83, 10, 4000)))], "partition 5 leaves the extended"),
        ([GOOD[0], (1000, record(entry(0x83, 0xFFFFFFFF, 10)))], "past the disk's end"),
        ([GOOD[0], (1000, record(entry(0x83, 0, 10)))], "an extended boot record .* overlap"),
        ([*GOOD[:3], (1200, record(entry(0x82, 1700, 900)))], "overlap"),
        ([GOOD[0], (1000, record(entry(0x83, 1, 9), entry(0x83, 20, 9)))], "more than one"),
        ([GOOD[0], (1000, record(entry(0x5, 1, 9), entry(0xF, 20, 9)))], "more than one"),
    ],
)
def test_hostile(sectors: list[tuple[int, bytes]], message: str) -> None:
    with pytest.raises(NotUnderstoodError, match=message):
        read_table(disk(*sectors))


def test_endless_chain() -> None:
    links = [
        (1000 + 2 * index, record(entry(0x83, 1, 1), entry(0x5, 2 * index + 2, 2)))
        for index in range(1500)
    ]
    with pytest.raises(NotUnderstoodError, match="does not end"):
        read_table(disk(GOOD[0], *links))


def test_flipped_bytes() -> None:
    """Whatever is read is inside the disk and disjoint, or the table is not understood."""
    places = [
        lba * 512 + at for lba in (0, 1000, 3000, 1200) for at in (*range(8), *range(440, 512))
    ]
    refused = 0
    for seed in range(1500):
        chance = random.Random(seed)
        volume = disk(*GOOD)
        assert isinstance(volume.data, bytearray)
        for _ in range(chance.choice((1, 1, 2, 4))):
            volume.data[chance.choice(places)] = chance.choice(
                (0, 1, 5, 0xFF, chance.randrange(256))
            )
        try:
            table = read_table(volume)
        except NotUnderstoodError:
            refused += 1
            continue
        end = 0
        for partition in sorted(table.partitions, key=lambda p: p.start):
            if not partition.extended:
                assert end <= partition.start < partition.end <= volume.size
                assert not table.extents.clip(partition.start, partition.end)
                end = partition.end
    assert 0 < refused < 1500


def test_unreadable_partition_is_not_the_tables_fault() -> None:
    class BadSector(BytesVolume):
        def read(self, offset: int, size: int) -> bytes:
            if offset <= 100 * 512 < offset + size and offset:
                raise ReadFailedError("medium error")
            return super().read(offset, size)

    sector = record(entry(0x83, 100, 800))
    table = read_table(BadSector(bytearray(sector.ljust(1 << 20, b"\0"))))
    assert [partition.number for partition in table.partitions] == [1]


def test_tiny_disks() -> None:
    for size in (0, 1, 511, 512, 1024, 4095, 4096, 8192):
        assert read_table(BytesVolume(bytes(size))).kind == "none"
        assert read_table(BytesVolume(bytes(size), 4096)).kind == "none"
