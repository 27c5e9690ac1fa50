"""GUID partition tables.

Source: UEFI specification 2.10, section 5.3. A disk has two copies of header and entry array, the
primary from LBA 1 on and a backup, normally in the last sectors. One good copy is enough; two good
ones must agree.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout.model import Partition, PartitionTable
from imager.layout.ranges import refuse_overlap

SIGNATURE = b"EFI PART"
PRIMARY_LBA = 1
HEADER = struct.Struct("<8s4I4Q16sQ3I")
ENTRY = struct.Struct("<16s16s3Q72s")

_REVISION = 0x00010000
_MAX_ENTRY_SIZE = 4096
_MAX_ARRAY = 4 << 20
_SECTOR_SIZES = (512, 1024, 2048, 4096)
_DYNAMIC_DISK = frozenset(
    {"5808c8aa-7e8f-42e0-85d2-e1e90434cfb3", "af9b60a0-1431-4f62-bc68-3311714a69ad"}
)
"""Types of LDM metadata and LDM data partitions (Windows' PARTITION_INFORMATION_GPT)."""


class Header(NamedTuple):
    """A GPT header (UEFI 2.10, table 5-5)."""

    signature: bytes
    revision: int
    header_size: int
    header_crc32: int
    reserved: int
    my_lba: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: bytes
    partition_entry_lba: int
    number_of_partition_entries: int
    size_of_partition_entry: int
    partition_entry_array_crc32: int


class Entry(NamedTuple):
    """A GPT partition entry (UEFI 2.10, table 5-6)."""

    partition_type_guid: bytes
    unique_partition_guid: bytes
    starting_lba: int
    ending_lba: int
    attributes: int
    partition_name: bytes


@dataclass(frozen=True)
class Copy:
    """One good copy of the table: both checksums are right and all numbers in range."""

    header: Header
    block: bytes
    """The header's sector."""
    array: bytes
    """All entries."""

    def says_the_same(self, other: Copy) -> bool:
        """Whether the other copy describes the same partitions and usable range."""
        return self.array == other.array and self._about_disk() == other._about_disk()

    def _about_disk(self) -> Header:
        return self.header._replace(
            header_crc32=0, my_lba=0, alternate_lba=0, partition_entry_lba=0
        )


@dataclass(frozen=True)
class Gpt:
    """The copies that are good, at least one of them."""

    primary: Copy | None
    backup: Copy | None
    notes: tuple[str, ...]

    @property
    def good(self) -> Copy:
        """The copy to believe."""
        copy = self.primary or self.backup
        if copy is None:
            raise NotUnderstoodError("no copy of the partition table is good")
        return copy


def read_gpt(volume: Volume) -> Gpt:
    """Both copies of the table on `volume`, whose protective MBR has been seen.

    Raises NotUnderstoodError where neither copy is good, or where they contradict each other.
    """
    last = volume.size // volume.sector_size - 1
    notes = []
    primary, primary_fault = _try_copy(volume, PRIMARY_LBA)
    place = primary.header.alternate_lba if primary else last
    backup, backup_fault = _try_copy(volume, place)
    if backup is None and place != last:
        backup, _ = _try_copy(volume, last)
        place = last if backup else place
    if primary is None and backup is None:
        _refuse_other_sector_size(volume)
        raise NotUnderstoodError(f"the partition table is damaged ({primary_fault})")
    if primary and backup and not primary.says_the_same(backup):
        raise NotUnderstoodError("the two copies of the partition table differ")
    if primary is None:
        notes.append(f"the primary partition table is damaged ({primary_fault}): backup used")
    elif backup is None:
        notes.append(f"the backup partition table is damaged ({backup_fault})")
    elif place != last:
        notes.append("the backup partition table is not at the disk's end")
    return Gpt(primary, backup, tuple(notes))


def has_primary(volume: Volume) -> bool:
    """Whether a good primary copy is there, whatever sector 0 says."""
    return _try_copy(volume, PRIMARY_LBA)[0] is not None


def describe(gpt: Gpt, volume: Volume) -> PartitionTable:
    """The table as Linux numbers it; NotUnderstoodError for a Windows dynamic disk."""
    header = gpt.good.header
    disk_guid = str(UUID(bytes_le=header.disk_guid))
    partitions = tuple(list_partitions(header, gpt.good.array, volume.sector_size))
    if any(partition.type in _DYNAMIC_DISK for partition in partitions):
        raise NotUnderstoodError("the disk is a Windows dynamic disk (LDM)")
    return PartitionTable("gpt", disk_guid, partitions, _extents(gpt, volume), gpt.notes)


def array_sectors(header: Header, sector_size: int) -> int:
    """How many sectors the entry array takes."""
    return -(-header.number_of_partition_entries * header.size_of_partition_entry // sector_size)


def list_partitions(header: Header, array: bytes, unit: int) -> list[Partition]:
    """The entries in use; NotUnderstoodError unless all are apart and in the usable range."""
    partitions = []
    for index in range(header.number_of_partition_entries):
        entry = Entry(*ENTRY.unpack_from(array, index * header.size_of_partition_entry))
        if not any(entry.partition_type_guid):
            continue
        first, last = entry.starting_lba, entry.ending_lba
        if not header.first_usable_lba <= first <= last <= header.last_usable_lba:
            raise NotUnderstoodError(f"partition {index + 1} is outside the usable range")
        name = entry.partition_name.decode("utf-16-le", "replace").split("\0", 1)[0]
        partitions.append(
            Partition(
                index + 1,
                first * unit,
                (last - first + 1) * unit,
                str(UUID(bytes_le=entry.partition_type_guid)),
                str(UUID(bytes_le=entry.unique_partition_guid)),
                name or None,
                entry.attributes,
            )
        )
    refuse_overlap([(p.start, p.end, f"partition {p.number}") for p in partitions])
    return partitions


def _try_copy(volume: Volume, lba: int) -> tuple[Copy | None, str]:
    """The copy whose header is at `lba`, or None and what is wrong with it."""
    try:
        return _read_copy(volume, lba), ""
    except NotUnderstoodError as fault:
        return None, str(fault)
    except ReadFailedError:
        return None, "it cannot be read"


def _read_copy(volume: Volume, lba: int) -> Copy:
    """Read and check one copy (UEFI 2.10, 5.3.2, "to determine if a GPT is valid")."""
    unit = volume.sector_size
    sectors = volume.size // unit
    if not PRIMARY_LBA <= lba < sectors:
        raise NotUnderstoodError("its header is outside the disk")
    block = volume.read(lba * unit, unit)
    header = Header(*HEADER.unpack_from(block))
    _check_header(header, block, lba)
    _check_geometry(header, unit, sectors)
    array_size = header.number_of_partition_entries * header.size_of_partition_entry
    array = volume.read(header.partition_entry_lba * unit, array_sectors(header, unit) * unit)
    array = array[:array_size]
    if zlib.crc32(array) != header.partition_entry_array_crc32:
        raise NotUnderstoodError("its entries' checksum is wrong")
    list_partitions(header, array, unit)
    return Copy(header, block, array)


def _check_header(header: Header, block: bytes, lba: int) -> None:
    if header.signature != SIGNATURE:
        raise NotUnderstoodError("it has no signature")
    if header.revision != _REVISION:
        raise NotUnderstoodError(f"its revision {header.revision:#x} is unknown")
    if not HEADER.size <= header.header_size <= len(block):
        raise NotUnderstoodError("its header has an impossible size")
    covered = bytearray(block[: header.header_size])
    covered[16:20] = bytes(4)
    if zlib.crc32(covered) != header.header_crc32:
        raise NotUnderstoodError("its header's checksum is wrong")
    if header.my_lba != lba:
        raise NotUnderstoodError("its header belongs to another sector")
    if header.alternate_lba == lba:
        raise NotUnderstoodError("its header is its own backup")


def _check_geometry(header: Header, unit: int, sectors: int) -> None:
    """Sizes in bounds, and the array apart from both the header and the usable range."""
    size, count = header.size_of_partition_entry, header.number_of_partition_entries
    if size < ENTRY.size or size % 8 or size > _MAX_ENTRY_SIZE:
        raise NotUnderstoodError("its entries have an impossible size")
    if not 0 < count <= _MAX_ARRAY // size:
        raise NotUnderstoodError("its number of entries is impossible")
    first, last = header.first_usable_lba, header.last_usable_lba
    if not PRIMARY_LBA < first <= last + 1 <= sectors:
        raise NotUnderstoodError("its usable range is impossible")
    start = header.partition_entry_lba
    end = start + array_sectors(header, unit)
    if start <= PRIMARY_LBA or end > sectors:
        raise NotUnderstoodError("its entries are outside the disk")
    headers = (header.my_lba, header.alternate_lba)
    if (start <= last and first < end) or any(first <= lba <= last for lba in headers):
        raise NotUnderstoodError("it overlaps its usable range")


def _extents(gpt: Gpt, volume: Volume) -> Extents:
    """Sector 0 and both copies; where one is damaged, the place where it is expected."""
    unit = volume.sector_size
    length = array_sectors(gpt.good.header, unit)
    last = volume.size // unit - 1
    ranges = [(0, 1)]
    for copy, places in (
        (gpt.primary, [(PRIMARY_LBA, PRIMARY_LBA + 1 + length)]),
        (gpt.backup, [(last - length, last + 1)]),
    ):
        if copy:
            header = copy.header
            array = header.partition_entry_lba
            places = [(header.my_lba, header.my_lba + 1), (array, array + length)]
        ranges += places
    return Extents.of((max(start, 0) * unit, min(end, last + 1) * unit) for start, end in ranges)


def _refuse_other_sector_size(volume: Volume) -> None:
    """Say so if the header stands where LBA 1 is with sectors of another size."""
    for other in _SECTOR_SIZES:
        if other != volume.sector_size and volume.size >= 2 * other + volume.sector_size:
            start = other // volume.sector_size * volume.sector_size
            block = volume.read(start, max(other, volume.sector_size))[other - start :]
            if block.startswith(SIGNATURE):
                raise NotUnderstoodError(f"the partition table was made for {other}-byte sectors")
