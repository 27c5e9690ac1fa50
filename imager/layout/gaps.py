"""The ranges of a disk that belong to no volume: which of them are stored, and why.

|<- before the first ->|  volume  |<- gap ->|  volume  |<----- larger gap ----->|<- 16 MiB ->|
 stored (boot loader)              stored              stored if a signature is   stored
                                   (<= 16 MiB)         there, or if asked for
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from imager.errors import ReadFailedError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout.model import Gap
from imager.layout.signatures import find_signature
from imager.layout.slice import Slice

KEPT_WHOLE = 16 << 20
"""Gaps up to this size, and this much at the disk's start and end, are always stored (bytes)."""
_STEP = 1 << 20

NextData = Callable[[int], int | None]
"""The first offset at or after the given one that may not be a hole, or None (SEEK_DATA)."""


def find_gaps(
    volume: Volume,
    occupied: Extents,
    keep_reason: str | None = None,
    next_data: NextData | None = None,
) -> tuple[Gap, ...]:
    """All gaps between the `occupied` ranges; with `keep_reason` all of them are stored.

    A gap that cannot be read where a signature might be is stored. On a medium without holes a
    large gap costs one read per MiB; `next_data` spares those in a sparse file.
    """
    return tuple(
        _judge(volume, start, end, occupied, keep_reason, next_data)
        for start, end in occupied.complement(0, volume.size)
    )


def _judge(
    volume: Volume,
    start: int,
    end: int,
    occupied: Extents,
    keep_reason: str | None,
    next_data: NextData | None,
) -> Gap:
    size = end - start
    if keep_reason is not None:
        return Gap(start, size, True, keep_reason)
    if start == 0 and occupied:
        return Gap(start, size, True, "before the first partition")
    if size <= KEPT_WHOLE:
        return Gap(start, size, True, "up to 16 MiB")
    try:
        gap = Slice(volume, start, size)
        for offset in _places(start, end, next_data):
            name = find_signature(gap, offset - start)
            if name is not None:
                reason = f"signature of {name} at byte {offset}: perhaps a lost partition"
                return Gap(start, size, True, reason)
    except ReadFailedError:
        return Gap(start, size, True, "it could not be searched for lost partitions")
    return Gap(start, size, False, "unpartitioned, nothing recognised in it")


def _places(start: int, end: int, next_data: NextData | None) -> Iterator[int]:
    """The gap's start and each 1 MiB boundary in it, but for those in the midst of a hole."""
    yield start
    offset = (start // _STEP + 1) * _STEP
    while offset < end:
        if next_data is not None:
            data = next_data(offset)
            if data is None:
                return
            offset = max(offset, data // _STEP * _STEP)
            if offset >= end:
                return
        yield offset
        offset += _STEP
