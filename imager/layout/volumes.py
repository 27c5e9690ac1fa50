"""One volume of a disk: what it is, and which of its bytes are in use."""

from __future__ import annotations

from dataclasses import replace

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Allocation, Volume, read_allocation
from imager.layout.blkid import Identity
from imager.layout.model import Partition, VolumeLayout
from imager.layout.slice import Slice
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


def store_used(disk: Volume, at: Partition | None, identity: Identity | None) -> Piece:
    """The volume of partition `at`, or of the whole disk, without the bytes proven to be unused.

    What lies behind the end of the file system is stored. Where there is any doubt, all is.
    """
    start, size = (at.start, at.size) if at else (0, disk.size)
    volume = Slice(disk, start, size)
    try:
        allocation = _allocation(volume, identity, nested=at is not None)
    except NotUnderstoodError as doubt:
        return store_raw(disk, at, identity, str(doubt))
    except ReadFailedError:
        return store_raw(disk, at, identity, "its metadata cannot be read")
    layout, _ = store_raw(disk, at, identity, "")
    used = _whole_sectors(allocation, volume)
    layout = replace(
        layout,
        stored="used",
        reason=None,
        used=used.total,
        fs_size=allocation.size,
        notes=allocation.notes,
    )
    return layout, used.shift(start) if start else used


def _allocation(volume: Volume, identity: Identity | None, nested: bool) -> Allocation:
    """What the file system has in use; NotUnderstoodError where that cannot be proven.

    With `nested` the volume is a partition, which should not be partitioned itself.
    """
    if identity is None or identity.kind is None:
        raise NotUnderstoodError("no file system recognised")
    if nested and identity.table and read_table(volume).partitions:
        raise NotUnderstoodError(f"it has both {identity.kind} and a partition table")
    allocation = read_allocation(identity.kind, volume, identity.still)
    if allocation.size > volume.size:
        raise NotUnderstoodError("file system is larger than its volume")
    return allocation


def _whole_sectors(allocation: Allocation, volume: Volume) -> Extents:
    """All that is in use or behind the file system, grown to whole sectors."""
    used = allocation.allocated
    if allocation.size < volume.size:
        behind = Extents.span(allocation.size, volume.size)
        used = used.clip(0, allocation.size) | behind
    unit = volume.sector_size
    if any((start | end) % unit for start, end in used):
        used = used.align(unit).clip(0, volume.size)
    return used
