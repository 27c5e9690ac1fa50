"""A disk as chunks: which hold anything, and reading one with its unused sectors as zeros."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from imager.disk.device import DeviceReadError
from imager.extents import Extents, ExtentsBuilder

READ_ACROSS = 1 << 16
"""Gaps shorter than this are read along and zeroed in memory: cheaper than a second request."""

ReadInto = Callable[[int, memoryview], None]
"""Fills the view from a byte offset of a device; DeviceReadError where it cannot."""


class Salvage(NamedTuple):
    """How to go on where a read fails: sector by sector."""

    read_sector: ReadInto
    sector_size: int
    """Bytes."""


class ChunkRun(NamedTuple):
    """Consecutive chunks: one that holds used sectors, or many that hold none."""

    start: int
    """First byte on the disk."""
    end: int
    used: Extents
    """Used ranges inside, in disk bytes; empty for a run without any."""


def chunk_runs(used: Extents, start: int, end: int, chunk_size: int) -> Iterator[ChunkRun]:
    """Cut [start, end) of a disk into chunks; chunks with nothing used come as one run."""
    while start < end:
        following = used.next_start(start)
        if following is None or following >= end:
            yield ChunkRun(start, end, Extents())
            return
        first = following // chunk_size * chunk_size
        if first > start:
            yield ChunkRun(start, first, Extents())
            start = first
        stop = min(start + chunk_size, end)
        yield ChunkRun(start, stop, used.clip(start, stop))
        start = stop


def chunks_of(ranges: Extents, used: Extents, chunk_size: int) -> Iterator[ChunkRun]:
    """The chunks that `ranges`, which are aligned to chunks, are made of."""
    for start, end in ranges:
        yield from chunk_runs(used, start, end, chunk_size)


class ChunkReader:
    """Reads chunks from a device into this thread's buffer."""

    def __init__(
        self,
        readinto: ReadInto,
        chunk_size: int,
        salvage: Salvage | None = None,
    ) -> None:
        """Read by `readinto`; with `salvage` go on past errors."""
        self._readinto = readinto
        self.chunk_size = chunk_size
        self._zeros = bytes(chunk_size)
        self._salvage = salvage
        self._local = threading.local()

    def read(self, run: ChunkRun) -> tuple[bytearray, list[tuple[int, int]]]:
        """The chunk with zeros where nothing is used, and the ranges that could not be read.

        The memory is this thread's, and valid until its next call. Raises DeviceReadError at the
        first unreadable sector in use, unless errors are to be passed over.
        """
        chunk = self._buffer(run.end - run.start)
        view = memoryview(chunk)
        try:
            for start, end in run.used.without_gaps(READ_ACROSS):
                self._readinto(start, view[start - run.start : end - run.start])
            unreadable: list[tuple[int, int]] = []
        except DeviceReadError:
            # The bad sector may be one that nobody uses.
            unreadable = self._read_exactly(run, view)
        for start, end in run.used.complement(run.start, run.end):
            view[start - run.start : end - run.start] = self._zeros[: end - start]
        return chunk, unreadable

    def _read_exactly(self, run: ChunkRun, view: memoryview) -> list[tuple[int, int]]:
        unreadable: list[tuple[int, int]] = []
        for start, end in run.used:
            part = view[start - run.start : end - run.start]
            try:
                self._readinto(start, part)
            except DeviceReadError as error:
                if self._salvage is None or error.gone:
                    raise
                unreadable += self._read_sectors(start, part, self._salvage)
        return unreadable

    def _read_sectors(self, start: int, part: memoryview, salvage: Salvage) -> Extents:
        """Read what can be read; the rest becomes zeros, and is returned."""
        unreadable = ExtentsBuilder()
        for offset in range(0, len(part), salvage.sector_size):
            sector = part[offset : offset + salvage.sector_size]
            try:
                salvage.read_sector(start + offset, sector)
            except DeviceReadError as error:
                if error.gone:
                    raise
                sector[:] = self._zeros[: len(sector)]
                unreadable.add(start + offset, start + offset + len(sector))
        return unreadable.build()

    def _buffer(self, size: int) -> bytearray:
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) != size:
            buffer = self._local.buffer = bytearray(size)
        return buffer
