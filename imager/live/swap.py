"""Swap in use on a disk: a freeze does not stop it, and nobody needs what is in it.

A swap partition is known to its reader (`filesystems.swap`). A swap file looks like any other file;
its extents, from FIEMAP, are unused but for the page with its header, which a restored system needs.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from imager.disk.system import System
from imager.extents import Extents
from imager.live import abi

_HEADER = 4096
_PHYSICAL = frozenset(("ext4", "ext3", "xfs"))
"""Where FIEMAP's addresses are those of the device; btrfs has its own."""


def swap_in_use(source: Path, start: int) -> Extents:
    """The swapped-on ranges of the disk or partition `source`, in bytes of it, without headers.

    `start` is where `source` begins on its disk. Swap above LVM or encryption is not among them.
    """
    system = System()
    found: list[tuple[int, int]] = []
    name = system.name_of_path(source)
    disk = name and (system.tree.parent(name) or name)
    for area in system.swaps:
        device = system.name_of_path(area)
        if device is not None:
            if (system.tree.parent(device) or device) == disk:
                at = system.tree.start(device)
                found.append((at + _HEADER, at + system.tree.size(device)))
        else:
            found += _file(area, system, disk)
    size = system.tree.size(name) if name else 0
    moved = [(max(a - start, 0), min(b - start, size)) for a, b in found if b > start]
    return Extents.of((a, b) for a, b in moved if a < b)


def _file(area: Path, system: System, disk: str | None) -> list[tuple[int, int]]:
    """A swap file's ranges on the disk; none where they cannot be told: then all of it counts."""
    found: list[tuple[int, int]] = []
    with contextlib.suppress(OSError, ValueError):
        status = area.stat()
        device = system.tree.name_of_number(status.st_dev)
        kinds = {mount.fs_type for mount in system.mounts if mount.device == status.st_dev}
        if (
            not stat.S_ISREG(status.st_mode)
            or device is None
            or (system.tree.parent(device) or device) != disk
            or not kinds <= _PHYSICAL
        ):
            return []
        at = system.tree.start(device) if system.tree.parent(device) else 0
        fd = os.open(area, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for extent in abi.file_extents(fd):
                kept = max(_HEADER - extent.logical, 0)
                found.append((at + extent.physical + kept, at + extent.physical + extent.length))
        finally:
            os.close(fd)
    return [(a, b) for a, b in found if a < b]
