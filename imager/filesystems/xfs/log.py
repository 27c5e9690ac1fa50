"""The log of XFS as a ring of sectors: where its newest record ends.

    | cycle 8 | 8 | 8 | ... | 8 | 7 | 7 | ... | 7 |       the first word of each sector
                                ^ head: what is written next overwrites the oldest

Each time round the ring has a cycle number, which every sector carries in its first word (a record's
header has its magic there, and the number behind it). XFS Filesystem Structure, "Journaling Log".
Several records can be under way at once; where a crash left a gap between them, mounting passes over
what follows the gap (xlog_find_head in the kernel's fs/xfs/xfs_log_recover.c). Here a gap is a doubt.
"""

from __future__ import annotations

import sys
from array import array

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

SECTOR = 512
"""What the log counts in, whatever the device has."""
RECORD_MAGIC = 0xFEEDBABE
MAX_RECORD = (256 << 10) // SECTOR
"""Sectors of a record."""

_IN_FLIGHT = 8 * MAX_RECORD  # sectors that may be written at once
_WORD = 4


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

    def cycles(self, first: int, count: int) -> array[int]:
        """The cycle numbers of `count` sectors."""
        data = self.read(first, count)
        cycles, seconds = _words(data, 0), _words(data, 1)
        for sector in _all_of(cycles, RECORD_MAGIC):
            cycles[sector] = seconds[sector]
        return cycles

    def find_head(self) -> int:
        """The sector behind the newest one; `size` where all sectors are of one cycle.

        Raises NotUnderstoodError where sectors of two cycles are mixed: a write was not whole, or
        they are damaged, and what follows them might count.
        """
        newest, oldest = self.cycles(0, 1)[0], self.cycles(self.size - 1, 1)[0]
        if newest == 0 or newest - oldest not in (0, 1):
            raise NotUnderstoodError("its log is damaged, or was never written")
        head = self.size if newest == oldest else self._first_after(newest)
        reach = min(_IN_FLIGHT, self.size // 2)
        for start in (head - reach, head):
            for index, cycle in enumerate(self.cycles(start, reach), start):
                # xfs_repair leaves zeros behind the only record of a log that it has emptied.
                right = (newest,) if index % self.size < head else (oldest, 0)
                if cycle not in right:
                    raise NotUnderstoodError("its log has a gap")
        return head

    def last_record(self, head: int) -> int:
        """The sector of the last record's header before `head`, as a number below it (or below 0)."""
        reach = min(MAX_RECORD, self.size)
        headers = _all_of(_words(self.read(head - reach, reach), 0), RECORD_MAGIC)
        if not headers:
            raise NotUnderstoodError("its log is damaged")
        return head - reach + headers[-1]

    def _first_after(self, cycle: int) -> int:
        """The first sector behind those of `cycle`, which the first one has and the last one has not."""
        inside, behind = 0, self.size - 1
        while behind - inside > 1:
            middle = (inside + behind) // 2
            if self.cycles(middle, 1)[0] == cycle:
                inside = middle
            else:
                behind = middle
        return behind


def _words(data: bytes, number: int) -> array[int]:
    """The word with this number of each sector."""
    gathered = bytearray(len(data) // SECTOR * _WORD)
    for byte in range(_WORD):
        gathered[byte::_WORD] = data[number * _WORD + byte :: SECTOR]
    words = array("I", bytes(gathered))
    if sys.byteorder == "little":
        words.byteswap()
    return words


def _all_of(words: array[int], value: int) -> list[int]:
    """Where `value` is."""
    return [index for index, word in enumerate(words) if word == value]
