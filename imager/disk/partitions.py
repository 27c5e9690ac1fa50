"""Making the kernel use the partition table that is on a disk now."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from imager.disk import abi, programs
from imager.disk.sysfs import BlockTree

_ATTEMPTS = 10
_PAUSE = 0.1
"""Seconds; udev opens a new partition for a moment to look at it, and that blocks a reread."""
_SECTOR = 512
"""What sysfs and partx count in."""
_EXTENDED = 4096
"""To the kernel an extended partition has room for a boot loader only, at most this many bytes."""


def reread(fd: int, path: Path) -> bool:
    """Whether the kernel has read the table of the whole disk `fd`, whose node is `path`, anew.

    A partition has no table to reread: nothing is done. Raises MissingToolError without partx.
    """
    tree = BlockTree()
    name = tree.name_of_number(os.fstat(fd).st_rdev)
    if name is None:
        return False
    if tree.parent(name):
        return True
    for attempt in range(_ATTEMPTS):
        try:
            abi.reread_partitions(fd)
            return True
        except OSError as error:
            if error.errno != errno.EBUSY or attempt + 1 == _ATTEMPTS:
                break
            time.sleep(_PAUSE)
    # A loop device without partition scan says EINVAL; partx tells it of each partition itself, and
    # where one is in use it still changes the others. (Not by --update: it exits 0 and leaves out
    # a partition whose number or place overlaps the old ones'.) So the outcome is checked.
    _partx("--delete", path)
    _partx("--add", path)
    return _agrees(path, name, tree)


def _partx(*arguments: str | Path) -> str:
    """What partx prints; nothing where it fails, as it does on a disk without a table."""
    return programs.run("partx", "util-linux", *map(str, arguments)).stdout


def _agrees(path: Path, name: str, tree: BlockTree) -> bool:
    """Whether the kernel has the partitions that are in the table."""
    columns = "--output=NR,START,SECTORS"
    table = {}
    for line in _partx("--raw", "--noheadings", columns, path).splitlines():
        number, start, sectors = map(int, line.split())
        table[number] = (start * _SECTOR, sectors * _SECTOR)
    known = {
        tree.number(part, "partition"): (tree.start(part), tree.size(part))
        for part in tree.partitions(name)
    }
    return table.keys() == known.keys() and all(
        start == known[number][0] and (size == known[number][1] or known[number][1] <= _EXTENDED)
        for number, (start, size) in table.items()
    )
