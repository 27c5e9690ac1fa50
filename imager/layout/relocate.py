"""Fitting a GPT to a disk of another size: the backup belongs into its last sectors.

Source: UEFI specification 2.10, sections 5.2.3 (protective MBR) and 5.3.2 (header).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from imager.errors import NotUnderstoodError, RefusedError
from imager.filesystems import Volume
from imager.layout import boot_record
from imager.layout.gpt import (
    ENTRY,
    HEADER,
    PRIMARY_LBA,
    Entry,
    Gpt,
    Header,
    array_sectors,
    list_partitions,
    read_gpt,
)

_MAX_LBA32 = 0xFFFFFFFF
_TYPE_SIZE = 16
"""Bytes of an entry's type, which come first; all zero where the entry is free."""


def relocate(
    source: Volume, new_size: int, added: Sequence[Entry] = ()
) -> tuple[tuple[int, bytes], ...]:
    """The (offset, bytes) to write so that the GPT of `source` fits a disk of `new_size` bytes.

    `source` is the disk, or its image, that the table describes; the other disk has the same sector
    size. A damaged copy is made anew from the good one. Boot code and hybrid records stay. The
    pieces come in the order in which to write them, what makes the table visible last. `added` are
    partitions that go into the first free entries.
    Raises NotUnderstoodError as `gpt.read_gpt`, and RefusedError where the partitions do not fit.
    """
    unit = source.sector_size
    gpt = read_gpt(source)
    length = array_sectors(gpt.good.header, unit)
    last = new_size // unit - 1
    needed = smallest_size(gpt, unit)
    if new_size < needed:
        raise RefusedError(f"the partitions do not fit: the disk needs at least {needed} bytes")
    primary_array = _primary_array(gpt, length)
    backup_array = last - length
    entries = _with_entries(gpt.good.header, gpt.good.array, added)
    header = gpt.good.header._replace(
        last_usable_lba=backup_array - 1, partition_entry_array_crc32=zlib.crc32(entries)
    )
    list_partitions(header, entries, unit)
    primary = header._replace(
        my_lba=PRIMARY_LBA, alternate_lba=last, partition_entry_lba=primary_array
    )
    backup = header._replace(
        my_lba=last, alternate_lba=PRIMARY_LBA, partition_entry_lba=backup_array
    )
    array = entries.ljust(length * unit, b"\0")
    return (
        (backup_array * unit, array),
        (last * unit, _sealed(backup, gpt.good.block)),
        (primary_array * unit, array),
        (PRIMARY_LBA * unit, _sealed(primary, gpt.good.block)),
        (0, _protective(source.read(0, unit), last)),
    )


def smallest_size(gpt: Gpt, sector_size: int) -> int:
    """The smallest disk, in bytes, that holds all partitions and the backup behind them."""
    header = gpt.good.header
    partitions = list_partitions(header, gpt.good.array, sector_size)
    end = max((partition.end for partition in partitions), default=0)
    end = max(end, header.first_usable_lba * sector_size)
    return end + (array_sectors(header, sector_size) + 1) * sector_size


def _with_entries(header: Header, array: bytes, added: Sequence[Entry]) -> bytes:
    """The entry array with `added` in its first free entries; RefusedError where it is full."""
    entries = bytearray(array)
    size = header.size_of_partition_entry
    free = (
        place
        for place in range(0, len(entries), size)
        if not any(array[place : place + _TYPE_SIZE])
    )
    for entry in added:
        place = next(free, None)
        if place is None:
            raise RefusedError("the partition table has no free entry")
        ENTRY.pack_into(entries, place, *entry)
    return bytes(entries)


def _primary_array(gpt: Gpt, length: int) -> int:
    """Where the primary entries stand, or belong if that copy is lost."""
    if gpt.primary:
        return gpt.primary.header.partition_entry_lba
    start = PRIMARY_LBA + 1
    if start + length > gpt.good.header.first_usable_lba:
        raise NotUnderstoodError("there is no room for the primary partition table")
    return start


def _sealed(header: Header, block: bytes) -> bytes:
    """The sector `block` with `header` in it and its checksum set."""
    blank = HEADER.pack(*header._replace(header_crc32=0)) + block[HEADER.size :]
    checksum = zlib.crc32(blank[: header.header_size])
    return HEADER.pack(*header._replace(header_crc32=checksum)) + block[HEADER.size :]


def _protective(sector: bytes, last: int) -> bytes:
    """Sector 0 whose protective record, if it is alone, spans the disk up to LBA `last`."""
    entries = boot_record.read_entries(sector)
    if entries is None or sum(1 for entry in entries if entry.os_type) != 1:
        return sector
    fitted = [
        entry._replace(size_in_lba=min(last, _MAX_LBA32))
        if entry.os_type == boot_record.GPT_PROTECTIVE and entry.starting_lba == PRIMARY_LBA
        else entry
        for entry in entries
    ]
    start, end = boot_record.ENTRIES_OFFSET, boot_record.BOOT_SIGNATURE_OFFSET
    return sector[:start] + b"".join(map(boot_record.pack_entry, fitted)) + sector[end:]
