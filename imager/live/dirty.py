"""Which pages of a disk were written: one bit each, in regions that exist once they are needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from bitarray import bitarray

from imager.extents import Extents, ExtentsBuilder

PAGE = 4096
"""Bytes that a bit stands for, on disks of up to 1 TiB."""
_MAX_BITS = 1 << 28
"""Larger disks have larger pages, so that all bits take at most 32 MiB."""
_REGION = 1 << 18
"""Bits of a region: a region is made of so few that a nearly idle disk takes nearly nothing."""
_NOTHING = Extents()
_SECTOR = 512
"""What the kernel counts in, whatever the disk's own sector is."""


class DirtyMap:
    """A growing set of pages, taken whole; safe to use from several threads."""

    def __init__(self, start: int, size: int, ignored: Extents = _NOTHING) -> None:
        """Follow [start, start + size) of the recorded disk, in bytes; results count from `start`.

        `ignored` ranges, counted from `start` too, are never in a result.
        """
        self._start = start
        self._size = size
        self._ignored = ignored
        page = PAGE
        while size > page * _MAX_BITS:
            page *= 2
        self.page = page
        self._regions: dict[int, bitarray] = {}
        self._lock = threading.Lock()

    def ignore(self, ranges: Extents) -> None:
        """Leave these out of all later results."""
        self._ignored = ranges

    def mark(self, writes: Iterable[tuple[int, int]]) -> int:
        """Add what was written, as (first sector of 512 bytes, sectors); returns how many bytes."""
        start, size, page, regions = self._start, self._size, self.page, self._regions
        total = 0
        with self._lock:
            for sector, count in writes:
                begin = sector * _SECTOR - start
                end = min(begin + count * _SECTOR, size)
                begin = max(begin, 0)
                if begin >= end:
                    continue
                total += end - begin
                first, stop = begin // page, (end - 1) // page + 1
                while first < stop:
                    number, bit = divmod(first, _REGION)
                    last = min(stop - number * _REGION, _REGION)
                    region = regions.get(number)
                    if region is None:
                        region = regions[number] = bitarray(_REGION, endian="little")
                        region.setall(False)
                    region[bit:last] = True
                    first = number * _REGION + last
        return total

    def take(self) -> Extents:
        """All that was added since the last time, as ranges in bytes; the map is empty then."""
        with self._lock:
            regions, self._regions = self._regions, {}
        return self._ranges(regions)

    def peek(self) -> Extents:
        """As `take`, but the map stays as it is."""
        with self._lock:
            regions = {number: region.copy() for number, region in self._regions.items()}
        return self._ranges(regions)

    def _ranges(self, regions: dict[int, bitarray]) -> Extents:
        builder = ExtentsBuilder()
        for number in sorted(regions):
            builder.add_bitmap(
                regions[number].tobytes(), _REGION, self.page, number * _REGION * self.page
            )
        return builder.build().clip(0, self._size) - self._ignored
