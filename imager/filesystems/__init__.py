"""What is in use inside a volume: one module per file system, volume in, allocated extents out.

A reader is a function `read_allocation(volume) -> Allocation` that raises `NotUnderstoodError`
unless it understands the volume *fully* (known feature flags, valid checksums, consistent
structures): a sector may only be skipped on proof. Free-space counters in superblocks are stale on
healthy volumes; they prove nothing and reject nothing.

A file system that never looks clean while it is mounted can have `read_still(volume)` beside it: the
same for one that is mounted and frozen, so that all it knows is on the volume.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems.recognised import reason_to_keep


class Volume(Protocol):
    """Something with sectors: a partition, a whole disk, a part of a disk-image file."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def sector_size(self) -> int:
        """Logical sector size in bytes (512 or 4096)."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset` bytes; ReadFailedError if that is impossible."""


@dataclass(frozen=True)
class Allocation:
    """What a file system has in use."""

    allocated: Extents
    """Byte ranges of the volume that must be kept, within [0, size)."""
    size: int
    """Bytes that the file system says it spans; the caller keeps what lies behind it."""
    notes: tuple[str, ...] = ()
    """What a person should know, as short clauses: "journal not replayed"."""


_READERS: dict[str, str] = {
    "btrfs": "imager.filesystems.btrfs",
    "exfat": "imager.filesystems.exfat",
    "ext2": "imager.filesystems.ext",
    "ext3": "imager.filesystems.ext",
    "ext4": "imager.filesystems.ext",
    "f2fs": "imager.filesystems.f2fs",
    "hfsplus": "imager.filesystems.hfsplus",
    "msdos": "imager.filesystems.fat",
    "ntfs": "imager.filesystems.ntfs",
    "swap": "imager.filesystems.swap",
    "swsuspend": "imager.filesystems.swap",
    "vfat": "imager.filesystems.fat",
    "xfs": "imager.filesystems.xfs",
}
"""The registry: blkid's name of a type to the module that reads it; imported only on use."""


def is_known(kind: str | None) -> bool:
    """Whether there is a reader for what blkid calls `kind`."""
    return kind in _READERS


def read_allocation(kind: str, volume: Volume, still: bool = False) -> Allocation:
    """The allocation of `volume`, which blkid calls `kind`; `still` if it is mounted and frozen.

    Raises NotUnderstoodError with the reason where the whole volume has to be stored, and
    ReadFailedError where metadata cannot be read.
    """
    module = _READERS.get(kind)
    if module is None:
        raise NotUnderstoodError(reason_to_keep(kind))
    reader = importlib.import_module(module)
    read = getattr(reader, "read_still", None) if still else None
    allocation: Allocation = (read or reader.read_allocation)(volume)
    if allocation.allocated and allocation.allocated.end > volume.size:
        raise NotUnderstoodError("file system is larger than its volume")
    return allocation
