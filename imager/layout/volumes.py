"""One volume of a disk: what it is, and which of its bytes are in use."""

from __future__ import annotations

from dataclasses import replace

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Allocation, Volume, read_allocation
from imager.layout.blkid import Identity
from imager.layout.boot_record import FOREIGN_SPAN, refuse_slices
from imager.layout.model import Partition, VolumeLayout
from imager.layout.table import read_table

Piece = tuple[VolumeLayout, Extents]
"""A volume, and the bytes of the disk (not of the volume) that are stored of it."""


def store_raw(disk: Volume, at: Partition | None, identity: Identity | None, reason: str) -> Piece:
    """The volume of partition `at`, or of the whole disk without one, stored whole."""
    start, size = (at.start, at.size) if at else (0, disk.size)
    layout = VolumeLayout(
        number=at.number if at else None,
        start=start,
        size=size,
        kind=identity.kind if identity else None,
        label=identity.label if identity else None,
        uuid=identity.uuid if identity else None,
        usage=identity.usage if identity else None,
        version=identity.version if identity else None,
        partition=at,
        stored="raw",
        reason=reason,
        used=size,
        fs_size=None,
    )
    return layout, Extents.span(start, start + size)


def leave_out(disk: Volume, at: Partition, identity: Identity | None) -> Piece:
    """The volume of partition `at`, not stored at all."""
    layout, _ = store_raw(disk, at, identity, "left out by request")
    return replace(layout, stored="excluded", used=0), Extents()


def require_kind(volume: Volume, identity: Identity | None, nested: bool) -> str:
    """What a volume is, by blkid; NotUnderstoodError where that is not clear.

    With `nested` the volume is a partition or lies in one, and should not be partitioned itself.
    """
    if identity is None or identity.kind is None:
        raise NotUnderstoodError("no file system recognised")
    if nested and volume.size >= FOREIGN_SPAN:
        refuse_slices(volume.read(0, FOREIGN_SPAN))
    if nested and identity.table and read_table(volume).partitions:
        raise NotUnderstoodError(f"it has both {identity.kind} and a partition table")
    return identity.kind


def used_extents(kind: str, volume: Volume, still: bool) -> tuple[Allocation, Extents]:
    """What a file system has in use, and that as whole sectors, with all that lies behind it.

    `still` says that it is mounted and frozen. NotUnderstoodError where what is in use cannot be proven,
    ReadFailedError.
    """
    allocation = read_allocation(kind, volume, still)
    if allocation.size > volume.size:
        raise NotUnderstoodError("file system is larger than its volume")
    used = allocation.allocated
    if allocation.size < volume.size:
        behind = Extents.span(allocation.size, volume.size)
        used = used.clip(0, allocation.size) | behind
    unit = volume.sector_size
    if any((start | end) % unit for start, end in used):
        used = used.align(unit).clip(0, volume.size)
    return allocation, used
