"""Check: prove that an image is good, or say what of the disk it has lost.

Structure (index against segments against seek table, so that no byte of the file goes unexplained)
and content (every frame decoded and hashed) are both compared with what the image claims.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imager.chunks import ChunkReader, ChunkRun, chunk_runs
from imager.disk.source import SourceDevice
from imager.errors import ImageError, ImagerError, ReadFailedError, VerifyError
from imager.extents import Extents, ExtentsBuilder
from imager.fitted import fitted_disk
from imager.image.chain import Chain
from imager.image.codec import ChunkDecoder
from imager.image.coverage import Coverage
from imager.image.format import ChunkKind, Entry, RangeKind
from imager.image.hashing import ContentDigest
from imager.image.head import Head
from imager.image.index import Segment
from imager.image.piece import Piece
from imager.image.problems import Problem
from imager.image.reader import Completeness, LostRange
from imager.layout.model import DiskLayout
from imager.pipeline import Progress, no_progress, ordered_map, thread_count
from imager.proved import ProvedChunks

BATCH = 8
"""Frames that one thread takes at a time: fewer, larger reads and less to hand over."""
BATCH_BYTES = 8 << 20
"""Decoded bytes of such frames, but for one frame at least."""


class DamagedError(ImageError):
    """An image has lost what a restore needs."""

    def __init__(self, path: Path, problem: str, lost: Extents) -> None:
        """Of the image at `path`; `lost` are ranges of the imaged disk."""
        super().__init__(
            f"{path} is damaged ({problem}): {len(lost)} ranges of the disk, {lost.total} bytes, "
            "cannot be restored; nothing was written "
            "(imager check lists them, --salvage restores the rest)"
        )
        self.lost = lost


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    path: Path
    head: Head
    completeness: Completeness
    problems: tuple[Problem, ...]
    lost: Extents
    """Disk ranges that cannot be restored."""
    unreadable: Extents
    """Disk ranges that could not be read at the time of the capture."""
    differing: Extents
    """Disk ranges where the disk it was compared with holds something else."""
    quick: bool
    image_size: int
    seconds: float

    @property
    def verdict(self) -> str:
        """`ok`, `degraded` (the capture could not read all), or `failed`."""
        if self.problems or self.lost or self.differing:
            return "failed"
        if self.completeness is not Completeness.COMPLETE:
            return "failed"
        return "degraded" if self.unreadable else "ok"

    def require_restorable(self) -> None:
        """DamagedError where anything that a restore needs is lost."""
        if self.lost:
            raise DamagedError(self.path, self.problems[0].message, self.lost)

    def require_anything(self, size: int) -> None:
        """ImageError where nothing is left of the `size` bytes that a restore would bring back."""
        if self.lost.total >= size:
            raise ImageError(f"{self.path} is damaged: nothing can be restored from it")

    def require_good(self) -> None:
        """The error that fits the verdict, unless it is `ok` or `degraded`."""
        if self.differing:
            raise VerifyError(f"the disk differs from {self.path} in {self.differing.total} bytes")
        if self.verdict == "failed":
            raise ImageError(f"{self.path} is damaged")


MAX_TABLE = 16 << 20
"""Bytes of partition table that a restore keeps in memory at most, to write them last."""


class Batch(NamedTuple):
    """Entries for one thread, each with the disk range that it covers."""

    placed: list[tuple[int, int, Entry]]
    piece: Piece


def layout_of(head: Head) -> DiskLayout:
    """The layout in an image's head; ImageError where it makes no sense."""
    try:
        layout = DiskLayout.from_json(head.facts.get("layout"))
        if (layout.size, layout.sector_size) != (head.disk_size, head.sector_size):
            raise ValueError("sizes differ")
        if layout.table.extents.total > MAX_TABLE:
            raise ValueError("the partition table is too large")
    except ValueError as error:
        raise ImageError(f"the image's layout makes no sense: {error}") from None
    return layout


def batches(piece: Piece, chunk_size: int, within: tuple[int, int]) -> Iterator[Batch]:
    """The entries of `piece` that touch the disk range `within`, in handy numbers."""
    placed = [
        item
        for item in piece.segment.placed(chunk_size)
        if item[0] < within[1] and item[1] > within[0]
    ]
    count = max(1, min(BATCH, BATCH_BYTES // chunk_size))
    for first in range(0, len(placed), count):
        yield Batch(placed[first : first + count], piece)


def check(
    path: Path,
    quick: bool = False,
    against: Path | None = None,
    within: tuple[int, int] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    parents: Sequence[Path] = (),
    proved: ProvedChunks | None = None,
) -> CheckResult:
    """Check the image at `path`; with `quick` its structure only; `against` a disk too.

    Of an incremental image's ancestors everything is looked at that it needs, and nothing else;
    they lie beside it or in one of the folders `parents`. `within` limits the decoding to chunks
    that touch this range of the disk, bytes. What is `proved` is not read again, and what is proved
    now is added to it.

    Raises ImageError only where nothing of the image can be read at all; damage is in the result.
    """
    begun = time.monotonic()
    with Chain(path, parents) as chain:
        image = chain.image
        checker = _Checker(chain, quick, within, threads, progress, proved or ProvedChunks())
        if against is None:
            checker.run(None)
        else:
            sector_size = image.head.sector_size
            with SourceDevice(against, sector_size=sector_size) as device:
                if device.size < image.head.disk_size:
                    raise VerifyError(
                        f"{against} is smaller than the disk in {path}: "
                        f"{device.size} instead of {image.head.disk_size} bytes"
                    )
                checker.run(device)
        return CheckResult(
            path=path,
            head=image.head,
            completeness=image.completeness,
            problems=tuple(image.problems),
            lost=checker.lost(),
            unreadable=checker.unreadable.build(),
            differing=checker.differing.build(),
            quick=quick,
            image_size=image.file.size,
            seconds=time.monotonic() - begun,
        )


class _Checked(NamedTuple):
    """What a thread found."""

    done: int
    """How far the check has come, bytes."""
    path: Path
    """The image that has the frames."""
    proved: list[tuple[int, int]]
    """Disk ranges whose chunks are right."""
    problems: list[Problem]


class _Checker:
    def __init__(
        self,
        chain: Chain,
        quick: bool,
        within: tuple[int, int] | None,
        threads: int | None,
        progress: Progress,
        proved: ProvedChunks,
    ) -> None:
        self._chain = chain
        self._proved = proved
        self._image = image = chain.image
        self._quick = quick
        self._within = within or (0, image.head.disk_size)
        self._threads = thread_count(threads)
        self._progress = progress
        self._decoder = ChunkDecoder(image.algorithm, image.head.chunk_size)
        # Of a chain the disk is gone through, of a full image the file.
        self._size = image.head.disk_size if image.head.incremental else image.file.size
        # Apart, so that each comes in disk order: segments are looked at ahead of chunks.
        self._lost_segments = ExtentsBuilder()
        self._lost_chunks = ExtentsBuilder()
        self.differing = ExtentsBuilder()
        self.unreadable = ExtentsBuilder()

    def lost(self) -> Extents:
        """Disk ranges whose segment or frame is lost, once all has been looked at."""
        return self._lost_segments.build() | self._lost_chunks.build()

    def run(self, device: SourceDevice | None) -> None:
        image = self._image
        coverage = Coverage(image)
        digest = ContentDigest(image.algorithm, image.head.disk_size, image.head.chunk_size)
        complete = image.footer is not None

        def work() -> Iterator[Batch]:
            nonlocal complete
            coverage.begin()
            for piece in self._pieces(coverage):
                if isinstance(piece, LostRange):
                    complete = False
                    self._lose(self._lost_segments, piece.start, piece.end)
                    if piece.reason:
                        image.problems.add(piece.reason, piece.start, piece.end)
                    continue
                for start, end in piece.segment.map(RangeKind.UNREADABLE):
                    self.unreadable.add(start, end)
                for entry in piece.segment.entries:
                    digest.add(entry.content_hash, entry.chunks)
                yield from self._unproved(piece)

        if self._chain.broken:
            image.problems.add(self._chain.broken)
        layout = None
        try:
            layout = layout_of(image.head)
        except ImageError as error:
            image.problems.add(str(error))
        with closing(ordered_map(self._check_batch, work(), self._threads)) as results:
            for done, path, proved, problems in results:
                for start, end in proved:
                    self._proved.add(path, start, end)
                for problem in problems:
                    image.problems.add(*problem)
                    if problem.start is not None and problem.end is not None:
                        self._lose(self._lost_chunks, problem.start, problem.end)
                self._progress("check", done, self._size)
        self._proved.end_check()
        coverage.finish()
        if complete and image.footer and digest.result() != image.footer.content_digest:
            image.problems.add("the content digest differs from the chunks' hashes")
        if device is not None:
            self._compare(device, layout)

    def _pieces(self, coverage: Coverage) -> Iterator[Piece | LostRange]:
        """The whole disk, while `coverage` follows the image itself."""
        if self._image.head.revised:
            self._cover_written(coverage)
            yield from self._chain.pieces()
            return
        for segment in self._image.segments(both=True):
            if isinstance(segment, LostRange):
                coverage.lose()
                yield segment
            else:
                coverage.segment(segment)
                yield from self._chain.expand(segment)

    def _cover_written(self, coverage: Coverage) -> None:
        """A revised image in the order of its file, with the frames that nothing else looks at."""
        image = self._image
        for segment in image.written_segments():
            if isinstance(segment, LostRange):
                coverage.lose()
                continue
            coverage.segment(segment)
            for entry in () if self._quick else image.replaced_entries(segment):
                if not entry.stored_size:
                    continue
                (frame,) = image.read_frames([entry])
                if isinstance(frame, ImagerError):
                    image.problems.add(f"a replaced chunk at byte {entry.offset}: {frame}")
                elif image.algorithm.frame_digest(frame) != entry.frame_hash:
                    image.problems.add(f"a replaced chunk at byte {entry.offset} is damaged")

    def _lose(self, lost: ExtentsBuilder, start: int, end: int) -> None:
        lost.add(max(start, self._within[0]), min(end, self._within[1]))

    def _unproved(self, piece: Piece) -> Iterator[Batch]:
        """The entries of a piece that have to be decoded."""
        path = self._chain.images[piece.image].file.path
        if self._quick or self._proved.covers(path, piece.segment.start, piece.segment.end):
            return
        for batch in batches(piece, self._image.head.chunk_size, self._within):
            placed = [item for item in batch.placed if not self._proved.covers(path, *item[:2])]
            if placed:
                yield Batch(placed, piece)

    def _check_batch(self, batch: Batch) -> _Checked:
        problems = []
        proved = []
        frames = batch.piece.read_frames([entry for _, _, entry in batch.placed])
        for frame, (start, end, entry) in zip(frames, batch.placed, strict=True):
            try:
                if isinstance(frame, ImagerError):
                    raise frame
                self._decoder.decode(frame, entry, end - start, batch.piece.read_base)
                if entry.stored_size:  # the frame of a part of a run of zeros was not looked at
                    proved.append((start, end))
            except (ImageError, ReadFailedError) as error:
                if self._decoder.proves_zeros(entry, end - start):
                    problems.append(Problem(f"zeros at {start} (nothing is lost): {error}"))
                else:
                    problems.append(Problem(f"chunk at {start}: {error}", start, end))
        _, end, last = batch.placed[-1]
        done = min(last.offset + last.stored_size, self._size)
        path = self._chain.images[batch.piece.image].file.path
        return _Checked(end if self._chain.head.incremental else done, path, proved, problems)

    def _compare(self, device: SourceDevice, layout: DiskLayout | None) -> None:
        """Read the disk where the image holds it, and compare the chunks' hashes."""
        image = self._image
        fitted = fitted_disk(device, image.head, layout) if layout else None
        reader = ChunkReader((fitted or device).readinto, image.head.chunk_size)
        zero = bytes(image.head.chunk_size)

        def compare(placed: tuple[ChunkRun, Entry]) -> tuple[ChunkRun, bool]:
            run, entry = placed
            chunk, _ = reader.read(run)
            if entry.kind == ChunkKind.ZERO:
                return run, chunk == zero[: len(chunk)]
            return run, image.algorithm.digest(chunk) == entry.content_hash

        with closing(ordered_map(compare, self._stored_runs(), self._threads)) as results:
            for run, same in results:
                if not same:
                    self.differing.add(run.start, run.end)
                self._progress("compare", run.end, image.head.disk_size)

    def _stored_runs(self) -> Iterator[tuple[ChunkRun, Entry]]:
        """Chunks of the disk of which the image holds something."""
        chunk_size = self._image.head.chunk_size
        for piece in self._chain.pieces():
            if isinstance(piece, LostRange):
                continue
            held = stored_ranges(piece.segment)
            for start, end, entry in piece.segment.placed(chunk_size):
                for run in chunk_runs(held, start, end, chunk_size):
                    if run.used:
                        yield run, entry


def stored_ranges(segment: Segment) -> Extents:
    """The disk ranges whose content `segment` holds: not unused, unreadable or left out."""
    absent = Extents()
    for extents in segment.maps.values():
        absent |= extents
    return absent.complement(segment.start, segment.end)
