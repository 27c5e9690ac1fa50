"""Revised images: segments that replace what earlier ones say of a part of the disk.

    written     0 |----------| 1 |----------| 2 |-----|      3 |---|        4 |--|
    disk        |    0     | 3 |  0  |   1  | 4 |   1   |   2   |

Of each disk range the segment that was written last is in force. What is in force is again a list of
ranges that tile the disk; a segment of which a part was replaced stands in it several times.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from imager.errors import ImageError
from imager.image.format import INDEX_ITEM, MAX_REVISED_SEGMENTS, Entry, IndexItem
from imager.image.head import Head
from imager.image.index import Index, Segment


class Span(NamedTuple):
    """A range of the disk, in bytes."""

    start: int
    end: int


class InForce(NamedTuple):
    """A disk range, and the number of the segment that is in force in it."""

    start: int
    end: int
    number: int


def in_force(written: Sequence[Span]) -> Iterator[InForce]:
    """Which of the segments, given in the order of writing, counts where, in disk order.

    There is a gap where no segment covers the disk.
    """
    order = sorted(range(len(written)), key=lambda number: written[number].start)
    live: list[tuple[int, int]] = []  # (-number, end): the one written last comes first
    position = place = 0
    last: InForce | None = None
    while place < len(order) or live:
        if not live:
            position = max(position, written[order[place]].start)
        while place < len(order) and written[order[place]].start <= position:
            number = order[place]
            heapq.heappush(live, (-number, written[number].end))
            place += 1
        while live and live[0][1] <= position:
            heapq.heappop(live)
        if not live:
            continue
        number, stop = -live[0][0], live[0][1]
        if place < len(order):
            stop = min(stop, written[order[place]].start)
        if last is not None and last.number == number and last.end == position:
            last = last._replace(end=stop)
        else:
            if last is not None:
                yield last
            last = InForce(position, stop, number)
        position = stop
    if last is not None:
        yield last


def segments_in_force(
    written: Sequence[Span], segment: Callable[[int], Segment], chunk_size: int
) -> Iterator[Segment]:
    """Those parts of all segments that count, in disk order; `segment` gives one by its number."""
    for start, end, number in in_force(written):
        yield segment(number).clipped(start, end, chunk_size)


def cut_entries(
    written: Sequence[Span], segment: Callable[[int], Segment], chunk_size: int
) -> Iterator[tuple[int, int, Entry]]:
    """The entries of which not all is in force: each disk range that is, and the whole entry."""
    for start, end, number in in_force(written):
        for low, high, entry in segment(number).placed(chunk_size):
            first, last = max(low, start), min(high, end)
            if first < last and (first, last) != (low, high):
                yield first, last, entry


class RevisedIndex:
    """The index of a revised image: the segments as written, and what of them is in force."""

    def __init__(self, written: Sequence[IndexItem], head: Head, whole: bool) -> None:
        """ImageError where an item makes no sense, or, if `whole`, the disk is not covered."""
        if len(written) > MAX_REVISED_SEGMENTS:
            raise ImageError("the index has too many segments")
        self.written = written
        self.numbers = array("L")
        """Of each item in force the number of its segment."""
        spans = []
        for item in written:
            aligned = item.end % head.chunk_size == 0 or item.end == head.disk_size
            if item.start % head.chunk_size or not aligned or not item.start < item.end:
                raise ImageError("the index's segments make no sense")
            if item.end > head.disk_size:
                raise ImageError("the index's segments are larger than the disk")
            spans.append(Span(item.start, item.end))
        table = bytearray()
        position = 0
        for start, end, number in in_force(spans):
            if whole and start != position:
                raise ImageError("the index does not cover the whole disk")
            table += INDEX_ITEM.pack(*written[number]._replace(start=start, end=end))
            self.numbers.append(number)
            position = end
        if whole and position != head.disk_size:
            raise ImageError("the index does not cover the whole disk")
        self.items = Index(table)
        """Those in force, in disk order: each with the range in which it counts."""
