"""Reading whatever partition table a disk has."""

from __future__ import annotations

from dataclasses import replace

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout import boot_record, gpt, mbr
from imager.layout.model import Partition, PartitionTable

__all__ = ["Partition", "PartitionTable", "read_table", "table_sectors"]


def read_table(volume: Volume) -> PartitionTable:
    """The partition table of a disk; kind "none" where it has none.

    Raises NotUnderstoodError where the table is damaged, contradicts itself, is of a kind that is
    only recognised, or was made for another sector size; ReadFailedError where it cannot be read.
    """
    if volume.size < boot_record.FOREIGN_SPAN or volume.size < 2 * volume.sector_size:
        return PartitionTable("none", None, (), Extents())
    start = volume.read(0, max(boot_record.FOREIGN_SPAN, volume.sector_size))
    boot_record.refuse_foreign(start)
    sector = start[: volume.sector_size]
    entries = boot_record.read_entries(sector)
    if entries is not None and boot_record.is_protective(entries):
        table = gpt.describe(gpt.read_gpt(volume), volume)
        if sum(1 for entry in entries if entry.size_in_lba) > 1:
            note = "sector 0 also lists partitions (hybrid MBR); the GPT is used"
            return replace(table, notes=(*table.notes, note))
        return table
    if gpt.has_primary(volume):
        raise NotUnderstoodError("a GPT is there but no protective MBR says that it is in use")
    return mbr.read_mbr(volume, sector)


def table_sectors(volume: Volume, extents: Extents) -> list[list[object]]:
    """The sectors of a table's `extents` that are not zero, as [byte offset, hexadecimal]."""
    sectors: list[list[object]] = []
    for start, end in extents:
        for offset in range(start, end, volume.sector_size):
            data = volume.read(offset, min(volume.sector_size, end - offset))
            if any(data):
                sectors.append([offset, data.hex()])
    return sectors
