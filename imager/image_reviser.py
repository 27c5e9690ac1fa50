"""Writes chunks of a disk in use once more, behind an image's first pass: for pipes and parts.

What is written there cannot be patched, nor read back to be merged with what changed in it. So chunks
are read again whole, round by round, and sent as they come; the image says that the last one counts
(`image.revision`). What is read inside the freeze waits in memory until that is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from imager.chunks import READ_ACROSS, ChunkRun, chunks_of
from imager.extents import Extents
from imager.image_filler import ImageFiller
from imager.live.patches import Reading
from imager.pipeline import ordered_map

_ROOM = 96 << 20
"""Bytes of chunks that are read inside the freeze, at most."""
_THREADS = 8
"""A disk answers many requests at once as fast as one."""
_SAMPLE = 32
"""Chunks that are read to find out how fast that is."""

Content = tuple[bytearray, list[tuple[int, int]]]
"""A chunk, and what of it could not be read."""


class ImageReviser:
    """A way to read again (`live.patches.Rereading`) that ends in a revised image."""

    def __init__(
        self,
        filler: ImageFiller,
        used: Extents,
        disk_size: int,
        chunk_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Revise what `filler` has written of a disk of which `used` was in use."""
        self._filler = filler
        self._disk_size = disk_size
        self._chunk_size = chunk_size
        self._clock = clock
        self.used = used
        """All that was read of the disk: at the first pass, or again."""
        self.covered = Extents()
        """All that was read again."""
        self._held: dict[int, tuple[int, Content]] = {}

    def rate(self) -> float:
        """How fast the disk is read, in bytes a second; the first pass had to wait for the output."""
        chunks = self._chunks(self.used)
        step = max(1, -(-chunks.total // self._chunk_size) // _SAMPLE)
        sample = [run for run in chunks_of(chunks, self.used, self._chunk_size)][::step]
        begun = self._clock()
        for _ in ordered_map(self._filler.read, sample, _THREADS):
            pass
        return sum(run.used.total for run in sample) / max(self._clock() - begun, 1e-6)

    def to_read(self, ranges: Extents) -> Extents:
        """All that is in use in the chunks that these ranges touch, and short gaps in between."""
        return (self._chunks(ranges) & (self.used | ranges)).without_gaps(READ_ACROSS)

    def fits(self, ranges: Extents) -> bool:
        """Whether memory holds the chunks that these ranges touch, beside those it holds already."""
        room = _ROOM - len(self._held) * self._chunk_size
        return self._chunks(ranges).total <= room

    def read(self, ranges: Extents) -> Reading:
        """Read them and write them at once."""
        chunks = self._grow(ranges)
        lock = threading.Lock()
        seconds = 0.0

        def read(run: ChunkRun) -> Content:
            nonlocal seconds
            begun = self._clock()
            content = self._filler.read(run)
            with lock:
                seconds += self._clock() - begun
            return content

        self._filler.revise(chunks, self.used, read)
        # Its threads were reading at the same time, when they did not compress.
        return self._reading(chunks, seconds / self._filler.threads)

    def hold(self, ranges: Extents) -> Reading:
        """Read them into memory; `flush` writes them, when nothing stands still any more."""
        chunks = self._grow(ranges)
        begun = self._clock()
        runs = chunks_of(chunks, self.used, self._chunk_size)
        for run, content in ordered_map(self._read_copy, runs, _THREADS):
            self._held[run.start] = run.end, content
        return self._reading(chunks, self._clock() - begun)

    def flush(self) -> None:
        """Write what is held."""
        held = self._held
        chunks = Extents.of((start, end) for start, (end, _) in held.items())
        self._filler.revise(chunks, self.used, lambda run: held.pop(run.start)[1])

    def _read_copy(self, run: ChunkRun) -> tuple[ChunkRun, Content]:
        chunk, unreadable = self._filler.read(run)
        return run, (bytearray(chunk), unreadable)

    def _grow(self, ranges: Extents) -> Extents:
        """The chunks to be read for these ranges; what is in use grows by them."""
        chunks = self._chunks(ranges)
        self.used |= ranges
        self.covered |= chunks & self.used
        return chunks

    def _chunks(self, ranges: Extents) -> Extents:
        return ranges.align(self._chunk_size).clip(0, self._disk_size)

    def _reading(self, chunks: Extents, seconds: float) -> Reading:
        return Reading((chunks & self.used).total, chunks.total // self._chunk_size, seconds)
