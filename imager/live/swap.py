"""Swap in use on a disk: a freeze does not stop it, and nobody needs what is in it.

A swap partition is known to its reader (`filesystems.swap`). A swap file looks like any other file;
its extents, from FIEMAP, are unused but for the page with its header, which a restored system needs.
So are swap volumes of LVM and swap on LUKS, wherever on the disk they lie.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from imager.disk.mapper import Piece, pieces
from imager.disk.system import System
from imager.extents import Extents
from imager.live import abi

_HEADER = 4096
_PHYSICAL = frozenset(("ext4", "ext3", "xfs"))
"""Where FIEMAP's addresses are those of the device; btrfs has its own."""


def swap_in_use(source: Path, start: int) -> Extents:
    """The swapped-on ranges of the disk or partition `source`, in bytes of it, without headers.

    `start` is where `source` begins on its disk. Where a place cannot be told, all of it counts.
    """
    system = System()
    name = system.name_of_path(source)
    if name is None:
        return Extents()
    disk = system.tree.parent(name) or name
    found: list[tuple[int, int]] = []
    for area in system.swaps:
        device = system.name_of_path(area)
        if device is not None:
            ranges = [(_HEADER, system.tree.size(device))]
        else:
            device, ranges = _file(area, system)
        if device is not None:
            placed = pieces(system, device, disk) or ()
            found += (each for begin, end in ranges for each in _on_disk(placed, begin, end))
    size = system.tree.size(name)
    moved = [(max(a - start, 0), min(b - start, size)) for a, b in found if b > start]
    return Extents.of((a, b) for a, b in moved if a < b)


def _on_disk(placed: tuple[Piece, ...], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the bytes [start, end) of a device lie on the disk."""
    for piece in placed:
        begin, stop = max(start, piece.start), min(end, piece.start + piece.size)
        if begin < stop:
            moved = piece.disk_start - piece.start
            yield begin + moved, stop + moved


def _file(area: Path, system: System) -> tuple[str | None, list[tuple[int, int]]]:
    """The device that a swap file lies on, and its ranges there; no device where nobody knows."""
    found: list[tuple[int, int]] = []
    device = None
    try:
        status = area.stat()
        device = system.tree.name_of_number(status.st_dev)
        kinds = {mount.fs_type for mount in system.mounts if mount.device == status.st_dev}
        if not stat.S_ISREG(status.st_mode) or device is None or not kinds <= _PHYSICAL:
            return None, []
        fd = os.open(area, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for extent in abi.file_extents(fd):
                kept = max(_HEADER - extent.logical, 0)
                found.append((extent.physical + kept, extent.physical + extent.length))
        finally:
            os.close(fd)
    except (OSError, ValueError):
        pass  # what was found so far is swap all the same
    return device, [(a, b) for a, b in found if a < b]
