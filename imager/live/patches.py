"""What was read again: bytes of a disk that replace what was read before, round by round.

They are kept as they are until the image can be patched (`image_merger`). Where it cannot be,
`image_reviser` reads again in another way.

Each round's ranges ascend, and so do its bytes in a temporary file; so whoever goes through the disk
in order needs one place in each round, and no index however many ranges there are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

from imager.extents import Extents
from imager.pipeline import ordered_map

ReadInto = Callable[[int, memoryview], None]
"""Fills the view from a byte offset of the disk."""

PIECE = 1 << 20
"""Bytes that are read at a time, at most."""
READ_ACROSS = 1 << 14
"""Gaps shorter than this (bytes) are read along: cheaper than a second request."""
_MEMORY = 1 << 21
"""Bytes of a round that stay in memory."""
_LAST_ROUND = 1 << 26
"""Bytes read inside the freeze that stay in memory."""
_THREADS = 8
"""A disk answers many small requests at once as fast as one."""


class Reading(NamedTuple):
    """What one round took."""

    size: int
    """Bytes."""
    pieces: int
    """Requests."""
    seconds: float
    """For the reading alone."""


class Rereading(Protocol):
    """Reads again what was written, and sees to it that it comes into the image."""

    @property
    def covered(self) -> Extents:
        """All that was read again."""

    def to_read(self, ranges: Extents) -> Extents:
        """What would be read for these."""

    def fits(self, ranges: Extents) -> bool:
        """Whether these can be read inside the freeze, as far as memory goes."""

    def read(self, ranges: Extents) -> Reading:
        """Read them, while everything goes on."""

    def hold(self, ranges: Extents) -> Reading:
        """The same inside the freeze: nothing may have to wait for what stands still."""


class Patches:
    """Rounds of ranges with their bytes."""

    def __init__(
        self,
        readinto: ReadInto,
        directory: str | None,
        threads: int = _THREADS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read by `readinto`; rounds too large for memory go to temporary files in `directory`."""
        self._readinto = readinto
        self._clock = clock
        self._directory = directory
        self._threads = threads
        self._rounds: list[_Round] = []
        self.covered = Extents()
        """All that was read again."""

    def to_read(self, ranges: Extents) -> Extents:
        """These, and short gaps between them."""
        return ranges.without_gaps(READ_ACROSS)

    def fits(self, ranges: Extents) -> bool:
        """Always: there are files."""
        return True

    def hold(self, ranges: Extents) -> Reading:
        """As `read`, but more of it stays in memory, for files take their time."""
        return self.read(ranges, _LAST_ROUND)

    def read(
        self, ranges: Extents, memory: int = _MEMORY, readinto: ReadInto | None = None
    ) -> Reading:
        """Read these, as one more round; up to `memory` bytes of it stay in memory.

        With `readinto` by that, and without the gaps in between, which it need not know.
        """
        if not ranges:
            return Reading(0, 0, 0.0)
        begun = self._clock()
        if readinto is None:
            ranges = self.to_read(ranges)
        file = tempfile.SpooledTemporaryFile(memory, dir=self._directory)
        pieces = 0
        read = partial(_read, readinto or self._readinto)
        for data in ordered_map(read, _pieces(ranges), self._threads):
            file.write(data)
            pieces += 1
        self._rounds.append(_Round(ranges, file))
        self.covered |= ranges
        return Reading(file.tell(), pieces, self._clock() - begun)

    def rewind(self) -> None:
        """Begin again at the disk's start with `within`."""
        for each in self._rounds:
            each.rewind()

    def within(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Disk offset and bytes of all patches in [start, end), later rounds behind earlier ones.

        Calls must ascend: `start` is never before the last call's `end`.
        """
        return [patch for each in self._rounds for patch in each.within(start, end)]

    def close(self) -> None:
        """Drop everything."""
        for each in self._rounds:
            each.file.close()
        self._rounds = []


class _Round:
    def __init__(self, ranges: Extents, file: tempfile.SpooledTemporaryFile[bytes]) -> None:
        self.file = file
        self._ranges = ranges
        self.rewind()

    def rewind(self) -> None:
        self._places = _places(self._ranges)
        self._next = next(self._places, None)

    def within(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        while self._next is not None and self._next[0] < end:
            first, last, place = self._next
            begin, stop = max(first, start), min(last, end)
            if begin < stop:
                self.file.seek(place + begin - first)
                yield begin, self.file.read(stop - begin)
            if last > end:
                return
            self._next = next(self._places, None)


def _read(readinto: ReadInto, piece: tuple[int, int]) -> bytearray:
    start, end = piece
    data = bytearray(end - start)
    readinto(start, memoryview(data))
    return data


def _places(ranges: Extents) -> Iterator[tuple[int, int, int]]:
    """Each range with where its bytes begin."""
    place = 0
    for start, end in ranges:
        yield start, end, place
        place += end - start


def _pieces(ranges: Extents) -> Iterator[tuple[int, int]]:
    for start, end in ranges:
        for offset in range(start, end, PIECE):
            yield offset, min(offset + PIECE, end)
