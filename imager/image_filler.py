"""Brings a disk's chunks into an image: read, hashed and compressed in threads, written in order."""

from __future__ import annotations

import uuid
from contextlib import closing
from typing import NamedTuple, Protocol

from imager.chunks import ChunkReader, ChunkRun, Salvage, chunk_runs
from imager.disk.source import SourceDevice
from imager.extents import Extents, ExtentsBuilder
from imager.image.codec import ChunkEncoder
from imager.image.format import MAX_ZERO_RUN, SEGMENT_RANGES
from imager.image.hashing import hash_algorithm
from imager.image.head import Head, Json
from imager.image.sink import FileSink, Sink
from imager.image.writer import ImageWriter, WrittenImage
from imager.layout.analyse import Analysis
from imager.pipeline import Progress, ordered_map, thread_count
from imager.resume import CapturePlan, find_remains


class Settings(Protocol):
    """The part of a capture's options that matters here."""

    @property
    def level(self) -> int:
        """zstd's compression level."""

    @property
    def threads(self) -> int | None:
        """None: one for each core."""

    @property
    def continue_on_read_error(self) -> bool:
        """Whether unreadable sectors become zeros."""

    @property
    def resume(self) -> bool:
        """Whether to take up what an interrupted capture left."""

    @property
    def hash_name(self) -> str:
        """See `hashing`."""


class _Encoded(NamedTuple):
    """A chunk run as a thread hands it back; `frame` is None where all is zero."""

    run: ChunkRun
    frame: bytes | None
    content_hash: bytes
    frame_hash: bytes
    unreadable: list[tuple[int, int]]


_ZERO_UNIT = 1 << 25
"""Longer runs of zeros are cut to a multiple of this (bytes)."""


class _PendingZeros(NamedTuple):
    """A run of zeros not yet written, which the next chunks may lengthen."""

    start: int
    end: int
    unreadable: list[tuple[int, int]]


class ImageFiller:
    """One capture's way from disk to image."""

    def __init__(
        self,
        device: SourceDevice,
        analysis: Analysis,
        head: Head,
        sink: Sink,
        settings: Settings,
        progress: Progress,
    ) -> None:
        """Write the image's beginning to `sink`, or take up what an interrupted capture left."""
        self._device = device
        self._used = analysis.used - analysis.excluded
        unused = self._used.complement(0, device.size) - analysis.excluded
        self._algorithm = hash_algorithm(settings.hash_name)
        self._encoder = ChunkEncoder(self._algorithm, settings.level, head.chunk_size)
        salvage = Salvage(device.reread_sector, device.sector_size)
        self._reader = ChunkReader(
            device.readinto,
            head.chunk_size,
            salvage if settings.continue_on_read_error else None,
        )
        self._threads = thread_count(settings.threads)
        remains = None
        if settings.resume and isinstance(sink, FileSink):
            plan = CapturePlan(head, self._used, unused, analysis.excluded)
            remains = find_remains(
                sink, plan, self._reader, self._algorithm, self._threads, progress
            )
        self._head = remains.head if remains else head
        self.uuid = remains.uuid if remains else uuid.uuid4().bytes
        self._writer = ImageWriter(
            sink, self._head, self.uuid, self._algorithm, unused, analysis.excluded
        )
        if remains and isinstance(sink, FileSink):
            self._writer.take_up(remains.part_starts, remains.segments())
            remains.close()
            sink.truncate(self._writer.size)
        else:
            self._writer.begin()
        self.resumed = self._writer.position
        """Disk bytes taken over from an interrupted capture."""
        self.zero = remains.zero if remains else 0
        """Disk bytes in chunks that are all zero, so far."""
        self._unreadable = ExtentsBuilder()
        self._zero_hashes: dict[int, bytes] = {}
        self._pending_zeros: _PendingZeros | None = None

    def __enter__(self) -> ImageFiller:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def fill(self, progress: Progress) -> None:
        """Read, compress and write everything that is not in the image yet."""
        total = self._used.total
        start = self._writer.position
        done = self._used.clip(0, start).total
        progress("capture", done, total)
        runs = chunk_runs(self._used, start, self._device.size, self._head.chunk_size)
        with closing(ordered_map(self._encode, runs, self._threads)) as results:
            for encoded in results:
                if encoded.frame is None:
                    self._add_zeros(encoded)
                else:
                    self._flush_zeros()
                    self._writer.add_unreadable(encoded.unreadable)
                    self._writer.add_data(encoded.frame, encoded.content_hash, encoded.frame_hash)
                for start, end in encoded.unreadable:
                    self._unreadable.add(start, end)
                done += encoded.run.used.total
                progress("capture", done, total)
        self._flush_zeros()

    def unreadable(self) -> Extents:
        """What the device did not give; once, when all is stored."""
        return self._unreadable.build()

    def finish(self, results: Json) -> WrittenImage:
        """Write the image's end with these facts for the manifest, and make it durable."""
        return self._writer.finish(results)

    def _encode(self, run: ChunkRun) -> _Encoded:
        """Read and compress one chunk, in a thread."""
        if not run.used:
            return _Encoded(run, None, b"", b"", [])
        chunk, unreadable = self._reader.read(run)
        if self._encoder.is_zero(chunk):
            return _Encoded(run, None, b"", b"", unreadable)
        frame = self._encoder.encode(chunk)
        return _Encoded(
            run,
            frame,
            self._algorithm.digest(chunk),
            self._algorithm.frame_digest(frame),
            unreadable,
        )

    def _add_zeros(self, encoded: _Encoded) -> None:
        """Let runs of zeros grow together, up to what one frame may hold."""
        pending = self._pending_zeros or _PendingZeros(encoded.run.start, encoded.run.start, [])
        self._pending_zeros = _PendingZeros(
            pending.start, encoded.run.end, [*pending.unreadable, *encoded.unreadable]
        )
        while (pending := self._pending_zeros) and pending.end - pending.start > MAX_ZERO_RUN:
            self._write_zeros(pending, pending.start + MAX_ZERO_RUN)
        if pending:
            ranges = self._writer.count_ranges(pending.start, pending.end)
            if ranges + len(pending.unreadable) >= SEGMENT_RANGES:
                self._flush_zeros()

    def _flush_zeros(self) -> None:
        while pending := self._pending_zeros:
            size = pending.end - pending.start
            # Few different lengths make few different frames, and each is compressed, and later
            # proved by whoever checks, only once. A shorter last chunk has its own content hash.
            unit = _ZERO_UNIT if size >= _ZERO_UNIT else min(self._head.chunk_size, size)
            self._write_zeros(pending, pending.start + size // unit * unit)

    def _write_zeros(self, pending: _PendingZeros, end: int) -> None:
        """Write the first pending zeros, up to disk byte `end`."""
        size = end - pending.start
        chunk_size = min(self._head.chunk_size, size)
        if chunk_size not in self._zero_hashes:
            self._zero_hashes[chunk_size] = self._algorithm.digest(bytes(chunk_size))
        frame, frame_hash = self._encoder.zero_run(size)
        self._writer.add_unreadable(pair for pair in pending.unreadable if pair[0] < end)
        self._writer.add_zeros(size // chunk_size, frame, self._zero_hashes[chunk_size], frame_hash)
        self.zero += size
        rest = [pair for pair in pending.unreadable if pair[0] >= end]
        self._pending_zeros = _PendingZeros(end, pending.end, rest) if end < pending.end else None
