"""Export: any image as one that needs no other, or as a disk-image file for other programs.

image   a full image, which plain zstd restores (again partial where partitions were left out)
raw     a sparse file with the disk's bytes
qcow2   made of such a file by qemu-img
"""

from __future__ import annotations

import enum
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from imager.capture_facts import REVISED_FACTS
from imager.check import Batch, batches, stored_ranges
from imager.disk.programs import find, run
from imager.errors import ImageError, ImagerError, RefusedError, WriteFailedError
from imager.extents import Extents
from imager.image.append import write_all
from imager.image.chain import Chain
from imager.image.codec import ChunkDecoder, ChunkEncoder
from imager.image.format import (
    INCOMPATIBLE_FREE,
    INCOMPATIBLE_INCREMENTAL,
    INCOMPATIBLE_REVISED,
    ChunkKind,
    Entry,
    RangeKind,
)
from imager.image.head import Head, Json
from imager.image.reader import LostRange
from imager.image.sink import FileSink, PipeSink, Sink, partial_path, sync_directory
from imager.image.writer import ImageWriter, WrittenImage
from imager.pipeline import Progress, no_progress, ordered_map, thread_count
from imager.survey import require_sound, survey
from imager.version import VERSION
from imager.zero_runs import ZeroRuns

_DEFAULT_LEVEL = 3
_MAX_LEVEL = 19
_NOT_EXPORTED = INCOMPATIBLE_INCREMENTAL | INCOMPATIBLE_FREE | INCOMPATIBLE_REVISED
"""Features that a full image, written in one go, has no use for."""
_QEMU = ("qemu-img", "qemu-utils")


class ExportFormat(enum.Enum):
    """What an image is made into."""

    IMAGE = "image"
    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True)
class ExportResult:
    """A finished export."""

    verdict: str
    """`ok`, or `degraded` where the capture could not read everything."""
    files: tuple[Path, ...]
    size: int
    """Bytes; of a sparse file, as it seems."""
    unreadable: Extents
    excluded: Extents
    """Disk ranges that were left out of the image: zeros in a disk-image file."""
    seconds: float


def export(
    image: Path,
    out: Path | int,
    form: ExportFormat = ExportFormat.IMAGE,
    threads: int | None = None,
    progress: Progress = no_progress,
    same_id: bool = False,
    parents: Sequence[Path] = (),
) -> ExportResult:
    """Write what `image` and its ancestors hold to `out`, a new file, or a pipe for a full image.

    Ancestors lie beside it or in one of the folders `parents`. With `same_id` a full image has the
    id of `image`, in whose place it can be put: what refers to that one finds it.

    Every chunk is verified before it is written. Raises ImageError where anything is damaged or
    missing, RefusedError where `out` exists, WriteFailedError, and MissingToolError for qcow2
    without qemu-img.
    """
    begun = time.monotonic()
    with Chain(image, parents) as chain:
        chain.require_complete()
        found = survey(chain, progress)
        require_sound(chain, found)
        exporter = _Exporter(chain, thread_count(threads), progress)
        if form is ExportFormat.IMAGE:
            exporter.uuid = chain.image.uuid if same_id else uuid.uuid4().bytes
            written = _write_image(exporter, out, found.maps)
            files, size = written.files, written.size
        elif isinstance(out, int):
            raise RefusedError("a disk-image file needs a name: it cannot be written to a pipe")
        else:
            files, size = (out,), exporter.head.disk_size
            _write_disk_file(exporter, out, form)
        unreadable = found.maps[RangeKind.UNREADABLE]
        return ExportResult(
            verdict="degraded" if unreadable else "ok",
            files=files,
            size=size,
            unreadable=unreadable,
            excluded=found.maps[RangeKind.EXCLUDED],
            seconds=time.monotonic() - begun,
        )


def _write_image(
    exporter: _Exporter, out: Path | int, maps: Mapping[RangeKind, Extents]
) -> WrittenImage:
    """A full image; of one that could not be finished nothing stays, since none can resume it."""
    if isinstance(out, int):
        return exporter.write_image(PipeSink(out), maps)
    sink = FileSink(out)
    begun = sink.partial_parts()
    try:
        return exporter.write_image(sink, maps)
    except BaseException:
        for path in begun:
            path.unlink(missing_ok=True)
        raise
    finally:
        sink.close()


def _write_disk_file(exporter: _Exporter, out: Path, form: ExportFormat) -> None:
    """A raw file under another name, turned into qcow2 if need be, and then given its name."""
    if form is ExportFormat.QCOW2:
        find(*_QEMU)
    made = partial_path(out)
    raw = made if form is ExportFormat.RAW else made.with_name(f"{out.name}.raw.partial")
    for path in (out, made, raw):
        if path.exists():
            raise RefusedError(f"{path} exists: it is not overwritten")
    try:
        exporter.write_raw(raw)
        if form is ExportFormat.QCOW2:
            done = run(*_QEMU, "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made))
            if done.returncode:
                raise WriteFailedError(f"qemu-img: {' '.join(done.stderr.split())}")
        with made.open("rb") as file:
            os.fsync(file.fileno())
        if out.exists():
            raise RefusedError(f"{out} has appeared meanwhile: it is not overwritten")
        made.rename(out)
        sync_directory(out.absolute().parent)
    except OSError as error:
        raise WriteFailedError(f"{out}: {error.strerror}") from None
    finally:
        for path in {made, raw}:
            path.unlink(missing_ok=True)


class _Decoded(NamedTuple):
    """A chunk, or a run of zeros, that was found right."""

    start: int
    end: int
    entry: Entry
    frame: memoryview
    view: memoryview | None
    """Its content, valid until the next one; None for zeros."""


class _Exported(NamedTuple):
    """A chunk or a run of zeros on its way into another image."""

    start: int
    end: int
    frame: bytes | None
    """None for zeros."""
    content_hash: bytes
    unreadable: Extents


Result = TypeVar("Result")


class _Exporter:
    def __init__(self, chain: Chain, threads: int, progress: Progress) -> None:
        self._chain = chain
        self.head = chain.head
        self._algorithm = chain.image.algorithm
        self._decoder = ChunkDecoder(self._algorithm, self.head.chunk_size)
        level = self.head.facts.get("level")
        if not isinstance(level, int) or not 1 <= level <= _MAX_LEVEL:
            level = _DEFAULT_LEVEL
        self._encoder = ChunkEncoder(self._algorithm, level, self.head.chunk_size)
        self._threads = threads
        self._progress = progress
        self.uuid = b""
        """Of the full image that is to be written."""

    def write_image(self, sink: Sink, maps: Mapping[RangeKind, Extents]) -> WrittenImage:
        """Write a full image."""
        head = _full_head(self._chain)
        unused, excluded = maps[RangeKind.UNUSED], maps[RangeKind.EXCLUDED]
        writer = ImageWriter(sink, head, self.uuid, self._algorithm, unused, excluded)
        try:
            writer.begin()
            zeros = ZeroRuns(writer, self._encoder, head.chunk_size)
            with closing(self._map(self._recode)) as results:
                for start, end, frame, content_hash, unreadable in chain.from_iterable(results):
                    if frame is None:
                        zeros.add(start, end, unreadable)
                        continue
                    zeros.flush()
                    writer.add_unreadable(unreadable)
                    writer.add_data(frame, content_hash, self._algorithm.frame_digest(frame))
            zeros.flush()
            return writer.finish(_results(self._chain, maps[RangeKind.UNREADABLE], zeros.written))
        finally:
            writer.close()

    def write_raw(self, path: Path) -> None:
        """Write the disk's bytes, holes where nothing is stored."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

        def write(batch: Batch) -> None:
            held = stored_ranges(batch.piece.segment)
            for start, end, _, _, view in self._decode(batch):
                if view is None:
                    continue
                for low, high in held.clip(start, end):
                    write_all(fd, view[low - start : high - start], low)

        try:
            os.ftruncate(fd, self.head.disk_size)
            with closing(self._map(write)) as results:
                for _ in results:
                    pass
        finally:
            os.close(fd)

    def _map(self, function: Callable[[Batch], Result]) -> Generator[Result, None, None]:
        """`function` of all that is in the image, in threads, in order."""
        size = self.head.disk_size

        def work() -> Iterator[Batch]:
            for piece in self._chain.pieces():
                if isinstance(piece, LostRange):
                    raise ImageError(f"{self._chain.image.file.path} has become damaged")
                yield from batches(piece, self.head.chunk_size, (0, size))
                self._progress("export", piece.segment.end, size)

        return ordered_map(function, work(), self._threads)

    def _decode(self, batch: Batch) -> Iterator[_Decoded]:
        piece = batch.piece
        frames = piece.read_frames([entry for _, _, entry in batch.placed])
        for frame, (start, end, entry) in zip(frames, batch.placed, strict=True):
            if isinstance(frame, ImagerError):
                raise frame
            try:
                view = self._decoder.decode(frame, entry, end - start, piece.read_base)
            except ImageError as error:
                path = self._chain.images[piece.image].file.path
                raise ImageError(f"{path} is damaged: chunk at {start}: {error}") from None
            yield _Decoded(start, end, entry, frame, view)

    def _recode(self, batch: Batch) -> list[_Exported]:
        """The chunks' own frames, or new ones for deltas."""
        unreadable = batch.piece.segment.map(RangeKind.UNREADABLE)
        chunks = []
        for start, end, entry, frame, view in self._decode(batch):
            recoded: bytes | None = None
            if view is not None:
                whole = entry.kind == ChunkKind.DATA
                recoded = bytes(frame) if whole else self._encoder.encode(view)
            lost = unreadable.clip(start, end)
            chunks.append(_Exported(start, end, recoded, entry.content_hash, lost))
        return chunks


def _full_head(chain: Chain) -> Head:
    """What the image says, as one that needs no other."""
    facts = {
        **chain.head.facts,
        "parents": [],
        "exported": {"uuid": str(uuid.UUID(bytes=chain.image.uuid)), "tool": f"imager {VERSION}"},
    }
    kept = chain.head.incompatible & ~_NOT_EXPORTED
    return replace(chain.head, split=False, incompatible=kept, facts=facts)


def _results(chain: Chain, unreadable: Extents, zero: int) -> Json:
    """The manifest's facts; of one that is damaged what is known all the same."""
    known = {"verdict": "degraded" if unreadable else "ok", "unreadable_bytes": unreadable.total}
    if chain.image.manifest is not None:
        facts = {**chain.image.manifest.facts, "zero": zero}
        for key in REVISED_FACTS:
            facts.pop(key, None)
        return facts
    return {**known, "zero": zero}
