"""Lets runs of zeros grow together before they are written to an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from imager.image.codec import ChunkEncoder
from imager.image.format import MAX_ZERO_RUN, SEGMENT_RANGES

_UNIT = 1 << 25
"""Longer runs are cut to a multiple of this (bytes)."""


class ZeroWriter(Protocol):
    """Takes runs of zeros: an image's writer."""

    def count_ranges(self, start: int, end: int) -> int:
        """How many ranges a segment would have to list for [start, end) of the disk."""

    def add_unreadable(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Note ranges of the next run that the device did not give."""

    def add_zeros(self, chunks: int, frame: bytes, content_hash: bytes, frame_hash: bytes) -> None:
        """The next chunks are zeros."""


class _Pending(NamedTuple):
    """A run not yet written, which the next chunks may lengthen."""

    start: int
    end: int
    unreadable: list[tuple[int, int]]


class ZeroRuns:
    """The zeros between an image's other chunks; `flush` before each of these, and at the end."""

    def __init__(self, writer: ZeroWriter, encoder: ChunkEncoder, chunk_size: int) -> None:
        """Write to `writer` whose chunks have `chunk_size` bytes."""
        self._writer = writer
        self._encoder = encoder
        self._chunk_size = chunk_size
        self._hashes: dict[int, bytes] = {}
        self._pending: _Pending | None = None
        self.written = 0
        """Disk bytes."""

    def content_hash(self, size: int) -> bytes:
        """The content hash of a chunk of zeros, the first of `size` bytes."""
        size = min(self._chunk_size, size)
        if size not in self._hashes:
            self._hashes[size] = self._encoder.algorithm.digest(bytes(size))
        return self._hashes[size]

    def add(self, start: int, end: int, unreadable: Iterable[tuple[int, int]]) -> None:
        """The next chunks, [start, end) of the disk, are zeros; parts of them were not readable."""
        pending = self._pending or _Pending(start, start, [])
        self._pending = _Pending(pending.start, end, [*pending.unreadable, *unreadable])
        while (pending := self._pending) and pending.end - pending.start > MAX_ZERO_RUN:
            self._write(pending, pending.start + MAX_ZERO_RUN)
        if pending:
            ranges = self._writer.count_ranges(pending.start, pending.end)
            if ranges + len(pending.unreadable) >= SEGMENT_RANGES:
                self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        while pending := self._pending:
            size = pending.end - pending.start
            # Few different lengths make few different frames, and each is compressed, and later
            # proved by whoever checks, only once. A shorter last chunk has its own content hash.
            unit = _UNIT if size >= _UNIT else min(self._chunk_size, size)
            self._write(pending, pending.start + size // unit * unit)

    def _write(self, pending: _Pending, end: int) -> None:
        """Write the first pending zeros, up to disk byte `end`."""
        size = end - pending.start
        frame, frame_hash = self._encoder.zero_run(size)
        self._writer.add_unreadable(pair for pair in pending.unreadable if pair[0] < end)
        self._writer.add_zeros(
            size // min(self._chunk_size, size),
            frame,
            self.content_hash(size),
            frame_hash,
        )
        self.written += size
        rest = [pair for pair in pending.unreadable if pair[0] >= end]
        self._pending = _Pending(end, pending.end, rest) if end < pending.end else None
