"""The ranges of a disk that belong to no volume: which of them are stored, and why.

|<- before the first ->|  volume  |<- gap ->|  volume  |<----- larger gap ----->|<- 16 MiB ->|
 stored (boot loader)              stored              stored if a signature is   stored
                                   (<= 16 MiB)         there, or if asked for
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

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
Report = Callable[[int, int], None]
"""Called with bytes of gaps looked at, and in all: on a hard disk it takes hours for terabytes."""


def _no_report(done: int, total: int) -> None:
    """Ignore how far it is."""


def find_gaps(
    volume: Volume,
    occupied: Extents,
    keep_reason: str | None = None,
    next_data: NextData | None = None,
    report: Report = _no_report,
    known: Mapping[tuple[int, int], Gap] | None = None,
) -> tuple[Gap, ...]:
    """All gaps between the `occupied` ranges; with `keep_reason` all of them are stored.

    A gap that cannot be read where a signature might be is stored. On a medium without holes a
    large gap costs one read per MiB; `next_data` spares those in a sparse file, and what is `known`
    by start and end was judged before.
    """
    known = known or {}
    ranges = occupied.complement(0, volume.size)
    searched = [
        (start, end)
        for start, end in ranges
        if start and end - start > KEPT_WHOLE and (start, end) not in known
    ]
    total = sum(end - start for start, end in searched)
    gaps: list[Gap] = []
    done = 0
    for start, end in ranges:
        places = _reporting(_places(start, end, next_data), done - start, total, report)
        judged = known.get((start, end))
        gaps.append(judged or _judge(volume, start, end, occupied, keep_reason, places))
        done += end - start if (start, end) in searched else 0
    return tuple(gaps)


def _judge(
    volume: Volume,
    start: int,
    end: int,
    occupied: Extents,
    keep_reason: str | None,
    places: Iterator[int],
) -> Gap:
    """Whether one gap is stored; `places` are where a lost partition may begin in it."""
    size = end - start
    if keep_reason is not None:
        return Gap(start, size, True, keep_reason)
    if start == 0 and occupied:
        return Gap(start, size, True, "before the first partition")
    if size <= KEPT_WHOLE:
        return Gap(start, size, True, "up to 16 MiB")
    try:
        gap = Slice(volume, start, size)
        for offset in places:
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


def _reporting(places: Iterator[int], shift: int, total: int, report: Report) -> Iterator[int]:
    """`places`, each of which is reported before it is looked at."""
    for offset in places:
        report(offset + shift, total)
        yield offset
