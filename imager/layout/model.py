"""The values that describe a disk: partitions, their table, volumes, gaps, and all of it together.

All offsets and sizes are in bytes. They go into an image as JSON (see `record`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from imager.extents import Extents
from imager.layout.record import Record

_MAX_BYTES = 1 << 63
EXTENDED_TYPES = frozenset({"0x5", "0xf", "0x85"})
"""MBR types of partitions that only contain others (DOS, Windows 95 with LBA, Linux)."""


@dataclass(frozen=True)
class Partition(Record):
    """One entry of a partition table."""

    number: int
    """The number that Linux gives: GPT entry index + 1; MBR primaries 1-4, logicals from 5."""
    start: int
    size: int
    type: str
    """GPT: the type GUID in lower case; MBR: the type byte as "0x83"."""
    uuid: str | None
    """Linux's PARTUUID: the GPT's unique GUID, or the MBR's signature and number; or None."""
    name: str | None
    """The GPT's name, as found: it may hold any character but NUL."""
    flags: int
    """The GPT's 64 attribute bits, or the MBR's boot indicator (0x80: active)."""

    def __post_init__(self) -> None:
        _check_range(self.start, self.size)
        if self.number < 1:
            raise ValueError("a partition's number is below 1")

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + self.size

    @property
    def extended(self) -> bool:
        """Whether this is an MBR's extended partition, which only contains others."""
        return self.type in EXTENDED_TYPES


@dataclass(frozen=True)
class PartitionTable(Record):
    """A partition table as parsed, and where its bytes are."""

    kind: Literal["gpt", "mbr", "none"]
    uuid: str | None
    """The GPT's disk GUID or the MBR's disk signature as 8 hexadecimal digits."""
    partitions: tuple[Partition, ...]
    extents: Extents
    """The table's own bytes: sector 0, both GPT headers and entry arrays, every EBR."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NestedVolume(Record):
    """What lies in a volume that is no file system: in LVM, LUKS or a RAID."""

    name: str | None
    """What its container calls it: "group/volume" in LVM; None where that has no name for it."""
    size: int
    kind: str | None
    """As of `VolumeLayout`, like the following."""
    label: str | None
    uuid: str | None
    usage: str | None
    version: str | None
    stored: Literal["used", "raw"]
    reason: str | None
    used: int
    """Bytes of this disk that are stored of it."""
    fs_size: int | None
    notes: tuple[str, ...] = ()
    children: tuple[NestedVolume, ...] = ()

    def __post_init__(self) -> None:
        _check_range(0, self.size)


@dataclass(frozen=True)
class VolumeLayout(Record):
    """A partition, or a disk without partitions, and how it is stored."""

    number: int | None
    """The partition's number; None for a whole disk."""
    start: int
    size: int
    kind: str | None
    """What blkid calls it ("ext4", "vfat", "LVM2_member"), None if it knows nothing there."""
    label: str | None
    """As found, untrusted: it may hold control characters."""
    uuid: str | None
    usage: str | None
    """blkid's class: "filesystem", "raid", "crypto" or "other"."""
    version: str | None
    partition: Partition | None
    stored: Literal["used", "raw", "excluded"]
    reason: str | None
    """Why it is stored whole, or left out."""
    used: int
    """Bytes that are stored."""
    fs_size: int | None
    """Bytes that the file system says it spans, where it was understood."""
    notes: tuple[str, ...] = ()
    children: tuple[NestedVolume, ...] = ()
    """What lies in it, where it is no file system."""

    def __post_init__(self) -> None:
        _check_range(self.start, self.size)
        if self.used > self.size:
            raise ValueError("a volume uses more than its size")

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + self.size


@dataclass(frozen=True)
class Gap(Record):
    """A range of the disk that belongs to no volume."""

    start: int
    size: int
    stored: bool
    """Whether all of it is stored; else only what the first and last 16 MiB of the disk and the
    partition table cover."""
    reason: str

    def __post_init__(self) -> None:
        _check_range(self.start, self.size)

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + self.size


@dataclass(frozen=True)
class DiskLayout(Record):
    """A whole disk: its volumes and the gaps between them, both in disk order."""

    size: int
    sector_size: int
    table: PartitionTable
    volumes: tuple[VolumeLayout, ...]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 512 <= self.sector_size <= 65536 or self.sector_size & (self.sector_size - 1):
            raise ValueError("the sector size is no power of two in range")
        if self.table.extents and self.table.extents.end > self.size:
            raise ValueError("the partition table reaches past the disk's end")
        if any(partition.end > self.size for partition in self.table.partitions):
            raise ValueError("a partition reaches past the disk's end")
        known = {partition.number: partition for partition in self.table.partitions}
        if any(v.partition and known.get(v.partition.number) != v.partition for v in self.volumes):
            raise ValueError("a volume's partition is not in the table")
        end = 0
        pieces: list[VolumeLayout | Gap] = [*self.volumes, *self.gaps]
        for piece in sorted(pieces, key=lambda piece: piece.start):
            if piece.start < end or piece.end > self.size:
                raise ValueError("volumes and gaps overlap or reach past the disk's end")
            end = piece.end


def all_volumes(layout: DiskLayout) -> Iterator[VolumeLayout | NestedVolume]:
    """Every volume, each followed by what lies in it."""
    todo: list[VolumeLayout | NestedVolume] = [*reversed(layout.volumes)]
    while todo:
        volume = todo.pop()
        yield volume
        todo += reversed(volume.children)


def _check_range(start: int, size: int) -> None:
    if start < 0 or size < 1 or start + size > _MAX_BYTES:
        raise ValueError("a range of the disk makes no sense")
