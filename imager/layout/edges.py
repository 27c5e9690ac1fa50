"""The ends of a disk and of its volumes, where signatures stand: wiped first, written last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout.table import read_table

EDGE = 1 << 20
"""Bytes at each end of a disk or volume that count as its end."""


def ends(ranges: Iterable[tuple[int, int]]) -> Extents:
    """The first and the last MiB of each range."""
    found = []
    for start, end in ranges:
        found.append((start, min(start + EDGE, end)))
        found.append((max(start, end - EDGE), end))
    return Extents.of(found)


def old_ends(target: Volume) -> Extents:
    """The ends of the volumes that are on a disk now, as far as they are known."""
    with contextlib.suppress(NotUnderstoodError, ReadFailedError):
        return ends((old.start, old.end) for old in read_table(target).partitions)
    return Extents()
