"""The log of XFS as a ring of sectors: where its newest record ends.

    | cycle 8 | 8 | 8 | ... | 8 | 7 | 7 | ... | 7 |       the first word of each sector
                                ^ head: what is written next overwrites the oldest

Each time round the ring has a cycle number, which every sector carries in its first word (a record's
header has its magic there, and the number behind it). Several records can be under way at once, so
that after a crash there may be holes before the head: the first sector of the last cycle but one is
the head. XFS Filesystem Structure, "Journaling Log"; the search is to end where mounting's does
(xlog_find_head in the kernel's fs/xfs/xfs_log_recover.c).
"""

from __future__ import annotations

import struct

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

SECTOR = 512
"""What the log counts in, whatever the device has."""
RECORD_MAGIC = 0xFEEDBABE
MAX_RECORD = (256 << 10) // SECTOR
"""Sectors of a record."""

_IN_FLIGHT = 8 * MAX_RECORD  # sectors that may be written at once
_FIRST_WORDS = struct.Struct(">II504x")


class Log:
    """The sectors of a log; numbers at and behind its end go round."""

    def __init__(self, volume: Volume, start: int, end: int) -> None:
        """The log at bytes [start, end) of `volume`."""
        self._volume = volume
        self._start = start
        self.size = (end - start) // SECTOR
        """Sectors."""

    def read(self, first: int, count: int) -> bytes:
        """`count` sectors from `first` on, at most once round."""
        first %= self.size
        before_end = min(count, self.size - first)
        data = self._volume.read(self._start + first * SECTOR, before_end * SECTOR)
        if before_end < count:
            data += self._volume.read(self._start, (count - before_end) * SECTOR)
        return data

    def cycles(self, first: int, count: int) -> list[int]:
        """The cycle numbers of `count` sectors."""
        return [
            second if word == RECORD_MAGIC else word
            for word, second in _FIRST_WORDS.iter_unpack(self.read(first, count))
        ]

    def find_head(self) -> int:
        """The sector behind the newest one that was written without a hole before it.

        It may be in the middle of a record; `size` where all sectors are of one cycle.
        """
        first, last = self.cycles(0, 1)[0], self.cycles(self.size - 1, 1)[0]
        if first == 0 or (last == 0 and first != 1):
            raise NotUnderstoodError("its log was never written")
        if last == 0:  # not yet once round: nothing is older
            head = self._first_of(0)
            return self._hole(max(head - _IN_FLIGHT, 0), head, 0) or head
        if first == last:
            head, older = self.size, last - 1
        else:
            head, older = self._first_of(last), last
        scanned = min(_IN_FLIGHT, self.size)
        if head >= scanned:
            return self._hole(head - scanned, head, older) or head
        # The hole may be at the ring's end, where sectors are one cycle older.
        hole = self._hole(self.size - (scanned - head), self.size, older - 1)
        return hole or self._hole(0, head, older) or head

    def last_record(self, head: int) -> int:
        """The sector of the last record's header before `head`, as a number below it (or below 0)."""
        reach = min(MAX_RECORD, self.size)
        words = [word for word, _ in _FIRST_WORDS.iter_unpack(self.read(head - reach, reach))]
        for back in range(1, reach + 1):
            if words[-back] == RECORD_MAGIC:
                return head - back
        raise NotUnderstoodError("its log is damaged")

    def _first_of(self, cycle: int) -> int:
        """The first sector of `cycle`, which the last one has and the first one has not."""
        other, found = 0, self.size - 1
        while found - other > 1:
            middle = (other + found) // 2
            if self.cycles(middle, 1)[0] == cycle:
                found = middle
            else:
                other = middle
        return found

    def _hole(self, start: int, end: int, cycle: int) -> int | None:
        """The first sector of [start, end) that is of `cycle`; the ring's first never counts."""
        cycles = self.cycles(start, end - start) if start < end else []
        return start + cycles.index(cycle) if cycle in cycles else None
