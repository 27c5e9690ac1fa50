"""The walk through all directories."""

from __future__ import annotations

from array import array

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.filesystems.exfat.boot import Geometry
from imager.filesystems.exfat.chains import LARGEST_DIRECTORY, Chains, Stream
from imager.filesystems.exfat.directory import children

_FLUSH = 1 << 16
"""Unmarked ranges that are collected before they are merged: bounds the memory for them."""


def find_unmarked(
    volume: Volume, geometry: Geometry, chains: Chains, root: Stream, marked: Extents
) -> Extents:
    """The clusters that files and directories have although `marked` leaves them out, in bytes.

    Raises NotUnderstoodError where files have more clusters than there are, so that some have the
    same: this ends every walk through directories that contain each other.
    """
    left = geometry.clusters
    unmarked = Extents()
    pending: array[int] = array("Q")
    waiting = [root]
    while waiting:
        for stream, directory in children(volume, geometry, chains, waiting.pop()):
            for first, count in stream.runs:
                left -= count
                start, end = geometry.offset(first), geometry.offset(first + count)
                if not marked.covers(start, end):
                    pending.extend((start, end))
            if left < 0:
                raise NotUnderstoodError("files have more clusters than the volume")
            if directory:
                if stream.size > LARGEST_DIRECTORY:
                    raise NotUnderstoodError("a directory is too large")
                waiting.append(stream)
            if len(pending) > 2 * _FLUSH:
                unmarked |= _ranges(pending)
                del pending[:]
    return (unmarked | _ranges(pending)) - marked if pending or unmarked else unmarked


def _ranges(pending: array[int]) -> Extents:
    return Extents.of(zip(pending[0::2], pending[1::2], strict=True))
