"""MBR partition tables with extended and logical partitions.

Sources: UEFI 2.10, section 5.2.1 (the record); the chain of extended boot records and the numbers
of logical partitions as Linux has them (block/partitions/msdos.c): an EBR's first record counts
from that EBR, the link to the next from the start of the extended partition.
"""

from __future__ import annotations

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout import boot_record
from imager.layout.boot_record import Entry
from imager.layout.model import EXTENDED_TYPES, Partition, PartitionTable
from imager.layout.ranges import refuse_overlap
from imager.layout.signatures import find_signature

_FIRST_LOGICAL = 5
_MAX_LOGICAL = 256
_SECTOR_SIZES = (512, 4096)


def read_mbr(volume: Volume, sector: bytes) -> PartitionTable:
    """The table in `sector`, the disk's first; kind "none" where it is no table.

    Raises NotUnderstoodError where the table is damaged, may be something else, or belongs to a
    Windows dynamic disk.
    """
    entries = boot_record.read_entries(sector)
    if entries is None:
        return _no_table()
    used = [(slot, entry) for slot, entry in enumerate(entries, 1) if entry.size_in_lba]
    boot_sector = boot_record.is_file_system_boot_sector(sector)
    if not boot_record.is_plausible(entries):
        return _no_table() if boot_sector else _no_table("sector 0 holds no valid partition table")
    if len(used) == 1 and used[0][1].starting_lba == 0:
        # mkfs.fat and mkudffs write one such record, over the whole disk, for Windows' sake.
        return _no_table("sector 0 holds a mock partition table")
    if boot_sector and used:
        raise NotUnderstoodError("sector 0 is both a boot sector and a partition table")
    if boot_sector:
        return _no_table()
    if any(entry.os_type == boot_record.DYNAMIC_DISK for _, entry in used):
        raise NotUnderstoodError("the disk is a Windows dynamic disk (LDM)")
    return _read_partitions(volume, used, boot_record.disk_signature(sector))


def _no_table(*notes: str) -> PartitionTable:
    return PartitionTable("none", None, (), Extents(), notes)


def _read_partitions(
    volume: Volume, used: list[tuple[int, Entry]], signature: str | None
) -> PartitionTable:
    unit = volume.sector_size
    primaries = [_partition(volume, slot, entry, 0, signature) for slot, entry in used]
    refuse_overlap([(0, unit, "sector 0"), *map(_named, primaries)])
    containers = [partition for partition in primaries if partition.extended]
    if len(containers) > 1:
        raise NotUnderstoodError("the disk has two extended partitions")
    logicals: list[Partition] = []
    records: list[int] = []
    for container in containers:
        logicals, records = _read_chain(volume, container, signature)
    partitions = (*primaries, *logicals)
    _refuse_other_sector_size(volume, partitions)
    extents = Extents.of([(0, unit), *((start, start + unit) for start in records)])
    return PartitionTable("mbr", signature, partitions, extents)


def _read_chain(
    volume: Volume, container: Partition, signature: str | None
) -> tuple[list[Partition], list[int]]:
    """The logical partitions, and where the extended boot records stand (bytes).

    A chain that turns back on itself ends at the limit, like one that is too long.
    """
    unit = volume.sector_size
    logicals: list[Partition] = []
    records: list[int] = []
    start: int | None = container.start
    while start is not None:
        if len(records) == _MAX_LOGICAL:
            raise NotUnderstoodError("the chain of logical partitions does not end")
        if not container.start <= start < container.end:
            raise NotUnderstoodError("a logical partition's record is outside the extended one")
        records.append(start)
        entries = boot_record.read_entries(volume.read(start, unit))
        if entries is None or not boot_record.is_plausible(entries):
            raise NotUnderstoodError("the chain of logical partitions is broken")
        data, link = _split(entries)
        if data is not None:
            number = _FIRST_LOGICAL + len(logicals)
            logicals.append(_partition(volume, number, data, start, signature))
        start = container.start + link.starting_lba * unit if link is not None else None
    for logical in logicals:
        if logical.start < container.start or logical.end > container.end:
            raise NotUnderstoodError(f"partition {logical.number} leaves the extended partition")
    refuse_overlap(
        [
            *map(_named, logicals),
            *((record, record + unit, "an extended boot record") for record in records),
        ]
    )
    return logicals, records


def _split(entries: tuple[Entry, ...]) -> tuple[Entry | None, Entry | None]:
    """An EBR's data record and link; each may be missing, nothing else may be there."""
    used = [entry for entry in entries if entry.size_in_lba]
    links = [entry for entry in used if _type(entry) in EXTENDED_TYPES]
    data = [entry for entry in used if entry not in links]
    if len(links) > 1 or len(data) > 1:
        raise NotUnderstoodError("an extended boot record has more than one partition")
    return (data[0] if data else None), (links[0] if links else None)


def _partition(
    volume: Volume, number: int, entry: Entry, base: int, signature: str | None
) -> Partition:
    """The partition of a record that counts from `base` (bytes)."""
    start = base + entry.starting_lba * volume.sector_size
    size = entry.size_in_lba * volume.sector_size
    if start + size > volume.size:
        raise NotUnderstoodError(f"partition {number} reaches past the disk's end")
    uuid = f"{signature}-{number:02x}" if signature else None
    return Partition(number, start, size, _type(entry), uuid, None, entry.boot_indicator)


def _type(entry: Entry) -> str:
    return f"{entry.os_type:#x}"


def _named(partition: Partition) -> tuple[int, int, str]:
    return partition.start, partition.end, f"partition {partition.number}"


def _refuse_other_sector_size(volume: Volume, partitions: tuple[Partition, ...]) -> None:
    """An MBR does not tell its sector size: see whether the file systems stand elsewhere."""
    if any(_signature(volume, partition.start) for partition in partitions):
        return
    for other in _SECTOR_SIZES:
        starts = [partition.start // volume.sector_size * other for partition in partitions]
        if other != volume.sector_size and any(_signature(volume, at) for at in starts):
            raise NotUnderstoodError(f"the partition table was made for {other}-byte sectors")


def _signature(volume: Volume, offset: int) -> str | None:
    """The signature at `offset`, None also where it cannot be read: that says nothing."""
    try:
        return find_signature(volume, offset)
    except ReadFailedError:
        return None
