"""Puts an image's chunks onto a target: which bytes, in which order, and whether they arrived.

Of each segment's disk range

    wanted   what the image holds, unreadable sectors (as zeros), the ends of disk and volumes
    free     unused and not wanted: discarded where the device can
    late     the partition table and the first MiB: kept in memory, written when all else is safe

and what was left out of the image is in none of them. An image that comes through a pipe may bring
chunks again that replace earlier ones: a pass through the disk ends where one goes back, and the next
begins when all of it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import NamedTuple

from imager.check import Batch, batches
from imager.chunks import READ_ACROSS, ChunkReader, ChunkRun, chunk_runs
from imager.disk.target import TargetDevice
from imager.errors import ImageError, ImagerError, ReadFailedError, VerifyError
from imager.extents import Extents, ExtentsBuilder
from imager.image.codec import ChunkDecoder
from imager.image.format import ChunkKind, Entry, RangeKind
from imager.image.index import Segment
from imager.image.origin import Origin
from imager.image.piece import Piece
from imager.image.reader import LostRange
from imager.layout.edges import EDGE
from imager.pipeline import Progress, ordered_map

MIN_DISCARD = 1 << 20
"""Unused ranges shorter than this are left alone (bytes)."""


class Span(NamedTuple):
    """The part of the imaged disk that goes to the target's beginning, in disk bytes."""

    start: int
    end: int


class _Ranges(NamedTuple):
    """What becomes of a segment's disk range; see the module's description."""

    wanted: Extents
    free: Extents
    excluded: Extents


class _Work(NamedTuple):
    """What one thread decodes and writes at a time."""

    batch: Batch
    ranges: _Ranges
    piece: Piece


class Counts:
    """Bytes that were written with content, zeroed, right already, and discarded."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.written = self.zeroed = self.unchanged = self.discarded = 0
        self._lock = threading.Lock()

    def add(
        self, written: int = 0, zeroed: int = 0, unchanged: int = 0, discarded: int = 0
    ) -> None:
        """Count, from any thread."""
        with self._lock:
            self.written += written
            self.zeroed += zeroed
            self.unchanged += unchanged
            self.discarded += discarded


class TargetWriter:
    """One restore's writing; positions are bytes of the imaged disk throughout."""

    def __init__(
        self,
        origin: Origin,
        target: TargetDevice,
        span: Span,
        edges: Extents,
        table: Extents,
        only_changes: bool,
        salvage: bool,
        threads: int,
        progress: Progress,
    ) -> None:
        """Restore `span` of `origin` to the start of `target`.

        `edges` is always written, `table` late. With `only_changes` the target is read first; with
        `salvage` damaged chunks are passed over instead of ending it.
        """
        self._origin = origin
        self._target = target
        self._span = span
        self._edges = edges
        self._late = (table | Extents.span(span.start, span.start + EDGE)).clip(*span)
        self._only_changes = only_changes
        self._salvage = salvage
        self._threads = threads
        self._progress = progress
        chunk_size = origin.head.chunk_size
        self._decoder = ChunkDecoder(origin.algorithm, chunk_size)
        self._zeros = bytes(chunk_size)
        self._late_bytes: dict[int, bytes] = {}
        self._late_lock = threading.Lock()
        self._hashes: dict[int, bytes] = {}
        self._current = ChunkReader(self._read_into, chunk_size)
        self.counts = Counts()
        self.lost = Extents()
        """Disk ranges that the image no longer holds; known after `write`."""
        self.unreadable = Extents()
        """Disk ranges that the capture could not read; known after `write`."""

    def write(self) -> None:
        """Decode, verify and write everything but what is late.

        Raises ImageError at the first damaged chunk unless salvaging, WriteFailedError where the
        target fails.
        """
        pieces = iter(self._origin.pieces())
        first = next(pieces, None)
        while first is not None:
            first = self._write_pass(first, pieces)

    def _write_pass(
        self, first: Piece | LostRange, pieces: Iterator[Piece | LostRange]
    ) -> Piece | LostRange | None:
        """Write `first` and what follows in disk order; returns the piece that goes back, if any."""
        # Two, so that each comes in disk order: segments are looked at ahead of chunks.
        lost_segments, lost_chunks = ExtentsBuilder(), ExtentsBuilder()
        unreadable = ExtentsBuilder()
        covered = ExtentsBuilder()
        back: Piece | LostRange | None = None

        def work() -> Iterator[_Work]:
            nonlocal back
            position = 0
            for piece in chain((first,), pieces):
                place = piece if isinstance(piece, LostRange) else piece.segment
                if place.start < position:
                    back = piece
                    return
                position = place.end
                covered.add(place.start, place.end)
                if isinstance(piece, LostRange):
                    error = ImageError(piece.reason or "a segment is lost")
                    self._lose(lost_segments, piece.start, piece.end, error)
                    continue
                ranges = self._ranges(piece.segment)
                self._discard(ranges.free)
                for start, end in piece.segment.map(RangeKind.UNREADABLE).clip(*self._span):
                    unreadable.add(start, end)
                for batch in batches(piece, self._origin.head.chunk_size, self._span):
                    yield _Work(batch, ranges, piece)

        with closing(ordered_map(self._write_batch, work(), self._threads)) as results:
            for done, failed in results:
                for start, end, error in failed:
                    self._lose(lost_chunks, start, end, error)
                self._report("write", done)
        replaced = covered.build()
        self.lost = self.lost - replaced | lost_segments.build() | lost_chunks.build()
        self.unreadable = self.unreadable - replaced | unreadable.build()
        return back

    def late_pieces(self) -> list[tuple[int, bytes]]:
        """What was kept back, as (disk offset, bytes) in disk order."""
        return sorted(self._late_bytes.items())

    def read_back(self, final: Iterable[tuple[int, bytes]]) -> None:
        """Read the target back from the medium and compare; VerifyError at a difference.

        `final` is what was written last. It is compared byte by byte; everything else by the
        chunks' hashes, for which the image's own late pieces stand in.
        """
        differing = [
            (offset, offset + len(data))
            for offset, data in final
            if self._read_direct(offset, len(data)) != data
        ]
        reader = ChunkReader(self._read_direct_into, self._origin.head.chunk_size)

        def compare(item: tuple[ChunkRun, Entry]) -> tuple[ChunkRun, bool]:
            run, entry = item
            return run, self._holds(reader, run, entry)

        def runs() -> Iterator[tuple[ChunkRun, Entry]]:
            for segment in self._origin.segments_again():
                wanted = self._ranges(segment).wanted - self.lost
                for start, end, entry in segment.placed(self._origin.head.chunk_size):
                    for run in chunk_runs(wanted, start, end, self._origin.head.chunk_size):
                        if run.used:
                            yield run, entry

        with closing(ordered_map(compare, runs(), self._threads)) as results:
            for run, same in results:
                if not same:
                    differing.append((run.start, run.end))
                self._report("read back", run.end)
        if differing:
            raise VerifyError(
                f"{self._target.path} reads back something else than was written, first at byte "
                f"{differing[0][0] - self._span.start}: do not trust this disk"
            )

    def _report(self, phase: str, position: int) -> None:
        start, end = self._span
        self._progress(phase, min(position, end) - start, end - start)

    def _lose(self, lost: ExtentsBuilder, start: int, end: int, error: Exception) -> None:
        """A range of the disk cannot be restored."""
        start, end = max(start, self._span.start), min(end, self._span.end)
        if start >= end:
            return
        if not self._salvage:
            raise error
        lost.add(start, end)

    def _ranges(self, segment: Segment) -> _Ranges:
        """What of a segment is written, and what is free."""
        start, end = max(segment.start, self._span.start), min(segment.end, self._span.end)
        edges = self._edges.clip(start, end)
        excluded = segment.map(RangeKind.EXCLUDED).clip(start, end)
        free = segment.map(RangeKind.UNUSED).clip(start, end) - edges - excluded
        wanted = Extents.span(start, end) - free - excluded
        return _Ranges(wanted, free - self._late, excluded)

    def _discard(self, free: Extents) -> None:
        for start, end in free:
            if end - start >= MIN_DISCARD and self._target.discard(
                start - self._span.start, end - start
            ):
                self.counts.add(discarded=end - start)

    def _write_batch(self, work: _Work) -> tuple[int, list[tuple[int, int, Exception]]]:
        """Decode and write some chunks, in a thread; returns how far, and what is damaged."""
        failed: list[tuple[int, int, Exception]] = []
        frames = work.piece.read_frames([entry for _, _, entry in work.batch.placed])
        for frame, (start, end, entry) in zip(frames, work.batch.placed, strict=True):
            view: memoryview | None = None
            try:
                if isinstance(frame, ImagerError):
                    raise frame
                view = self._decoder.decode(frame, entry, end - start, work.piece.read_base)
            except (ImageError, ReadFailedError) as error:
                if not self._decoder.proves_zeros(entry, end - start):
                    failed.append((start, end, error))
                    continue
            if view is None:
                self._write_zeros(work.ranges, start, end, entry)
            else:
                self._write_chunk(work.ranges, start, end, entry, view)
        return work.batch.placed[-1][1], failed

    def _write_chunk(
        self, ranges: _Ranges, start: int, end: int, entry: Entry, view: memoryview
    ) -> None:
        wanted = ranges.wanted.clip(start, end)
        if start < self._span.start or end > self._span.end:
            # The chunk's own hash covers more than is restored of it.
            low, high = max(start, self._span.start), min(end, self._span.end)
            view[: low - start] = self._zeros[: low - start]
            view[high - start :] = self._zeros[: end - high]
            self._hashes[start] = self._origin.algorithm.digest(view)
        kept_back = wanted & self._late
        self._keep_back(
            start, end, [(low, bytes(view[low - start : high - start])) for low, high in kept_back]
        )
        run = ChunkRun(start, end, wanted)
        if self._only_changes and not kept_back and self._holds(self._current, run, entry):
            self.counts.add(unchanged=wanted.total)
            return
        for low, high in self._writable(ranges, wanted):
            self._target.write(low - self._span.start, view[low - start : high - start])
            self.counts.add(written=high - low)

    def _write_zeros(self, ranges: _Ranges, start: int, end: int, entry: Entry) -> None:
        wanted = ranges.wanted.clip(start, end)
        self._keep_back(start, end, [(low, bytes(high - low)) for low, high in wanted & self._late])
        if self._only_changes:
            changed = ExtentsBuilder()
            for run in chunk_runs(wanted, start, end, self._origin.head.chunk_size):
                if run.used and not self._holds(self._current, run, entry):
                    for low, high in run.used:
                        changed.add(low, high)
            self.counts.add(unchanged=wanted.total)
            wanted = changed.build()
            self.counts.add(unchanged=-wanted.total)
        for low, high in self._writable(ranges, wanted):
            self._target.zero(low - self._span.start, high - low)
            self.counts.add(zeroed=high - low)

    def _keep_back(self, start: int, end: int, pieces: list[tuple[int, bytes]]) -> None:
        """Keep what is late in [start, end), in place of what an earlier pass had there."""
        if not self._late.count(start, end):
            return
        with self._late_lock:
            for low, data in list(self._late_bytes.items()):
                high = low + len(data)
                if low < end and high > start:
                    del self._late_bytes[low]
                    if low < start:
                        self._late_bytes[low] = data[: start - low]
                    if high > end:
                        self._late_bytes[end] = data[end - low :]
            self._late_bytes.update(pieces)

    def _writable(self, ranges: _Ranges, wanted: Extents) -> Extents:
        """What to write now: short unused gaps are written along, as the zeros they are."""
        return wanted.without_gaps(READ_ACROSS) - ranges.excluded - self._late

    def _holds(self, reader: ChunkReader, run: ChunkRun, entry: Entry) -> bool:
        """Whether the target holds what `entry` says of a chunk; errors as of the target."""
        chunk, _ = reader.read(run)
        if entry.kind == ChunkKind.ZERO:
            return chunk == self._zeros[: len(chunk)]
        expected = self._hashes.get(run.start, entry.content_hash)
        return self._origin.algorithm.digest(chunk) == expected

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._target.readinto(offset - self._span.start, view)

    def _read_direct(self, offset: int, size: int) -> bytes:
        data = bytearray(size)
        self._target.read_direct(offset - self._span.start, memoryview(data))
        return bytes(data)

    def _read_direct_into(self, offset: int, view: memoryview) -> None:
        self._target.read_direct(offset - self._span.start, view)
        end = offset + len(view)
        for start, piece in self._late_bytes.items():
            low, high = max(start, offset), min(start + len(piece), end)
            if low < high:
                view[low - offset : high - offset] = piece[low - start : high - start]
