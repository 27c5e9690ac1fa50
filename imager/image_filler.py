"""Brings a disk's chunks into an image: read, hashed and compressed in threads, written in order."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain, islice
from typing import NamedTuple, Protocol

from imager.chunk_coder import ChunkCoder, Encoded
from imager.chunks import ChunkReader, ChunkRun, Salvage, chunk_runs, chunks_of
from imager.disk.source import SourceDevice
from imager.extents import Extents, ExtentsBuilder
from imager.image.hashing import hash_algorithm
from imager.image.head import Head, Json
from imager.image.index import inherits_maps
from imager.image.sink import FileSink, Sink
from imager.image.writer import ImageWriter, WrittenImage, no_hashes
from imager.layout.analyse import Analysis
from imager.parent_image import ParentCursor, ParentImage
from imager.pipeline import Progress, ordered_map, thread_count
from imager.resume import CapturePlan, find_remains
from imager.zero_runs import ZeroRuns


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


class _Work(NamedTuple):
    """What a thread gets."""

    run: ChunkRun
    parent_hash: bytes | None
    """Content hash of the parent's chunk, or of each of its chunks, there; None without one."""


ReadChunk = Callable[[ChunkRun], tuple[bytearray, list[tuple[int, int]]]]
"""Gives a chunk with zeros where nothing is used, and what of it could not be read."""

_WAITING = 2
"""Threads more than cores, where most of the work is to wait for the disk: it is never left idle."""
_BATCH = 4
"""Chunks that a thread takes at a time from a disk that is compared with a parent: nearly all of them
are soon done with, and handing over each by itself takes a third as long as hashing it."""


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
        parent: ParentImage | None = None,
    ) -> None:
        """Write the image's beginning to `sink`, or take up what an interrupted capture left."""
        self._device = device
        self.parent = parent
        self._used = analysis.used - analysis.excluded
        self._excluded = analysis.excluded
        unused = self._used.complement(0, device.size) - analysis.excluded
        if parent is not None:
            parent.compare_maps(unused, analysis.excluded)
        self.algorithm = parent.algorithm if parent else hash_algorithm(settings.hash_name)
        self.coder = ChunkCoder(self.algorithm, settings.level, head.chunk_size, parent)
        salvage = Salvage(device.reread_sector, device.sector_size)
        self._reader = ChunkReader(
            device.stream_into,
            head.chunk_size,
            salvage if settings.continue_on_read_error else None,
        )
        self.threads = thread_count(settings.threads)
        if parent is not None and settings.threads is None and device.streams:
            self.threads += _WAITING
        remains = None
        if settings.resume and isinstance(sink, FileSink):
            plan = CapturePlan(head, self._used, unused, analysis.excluded, parent)
            remains = find_remains(sink, plan, self._reader, self.algorithm, self.threads, progress)
        self._head = remains.head if remains else head
        self.uuid = remains.uuid if remains else uuid.uuid4().bytes
        self.writer = ImageWriter(
            sink, self._head, self.uuid, self.algorithm, unused, analysis.excluded
        )
        if remains and isinstance(sink, FileSink):
            self.writer.take_up(remains.part_starts, remains.segments(), remains.inherited)
            remains.close()
            sink.truncate(self.writer.size)
        else:
            self.writer.begin()
        self.resumed = self.writer.position
        """Disk bytes taken over from an interrupted capture."""
        self.zeros = ZeroRuns(self.writer, self.coder.encoder, self._head.chunk_size)
        self._zeros_before = remains.zero if remains else 0
        self.inherited = remains.inherited_bytes if remains else 0
        """Disk bytes in chunks that are the parent's, so far."""
        self._unreadable = Extents()

    def __enter__(self) -> ImageFiller:
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.close()

    def fill(self, progress: Progress) -> None:
        """Read, compress and write everything that is not in the image yet."""
        total = self._used.total
        start = self.writer.position
        done = self._used.clip(0, start).total
        progress("capture", done, total)
        unreadable = ExtentsBuilder()
        with closing(ordered_map(self._encode, self._batches(start), self.threads)) as results:
            for encoded in chain.from_iterable(results):
                self._add(encoded)
                for pair in encoded.unreadable:
                    unreadable.add(*pair)
                done += encoded.run.used.total
                progress("capture", done, total)
        self.zeros.flush()
        self._unreadable = unreadable.build()

    def restate_runs(self, used: Extents) -> None:
        """Write anew the references to those of the parent's chunks whose runs `revise` has cut."""
        if self.parent is None:
            return
        self.writer.end_chunks()  # the last revision cuts, too
        unused = used.complement(0, self._device.size) - self._excluded
        for start, end, entry in list(self.writer.cut_runs()):
            own = not inherits_maps(entry)
            self.writer.revise(start, unused)
            if own:
                self.writer.add_unreadable(self._unreadable.clip(start, end))
            for content_hash, chunks in self.parent.hashes(start, end):
                self.writer.add_parents(content_hash, chunks, own)

    def read(self, run: ChunkRun) -> tuple[bytearray, list[tuple[int, int]]]:
        """One chunk from the disk; see `ChunkReader.read`."""
        return self._reader.read(run)

    def revise(self, chunks: Extents, used: Extents, read: ReadChunk) -> None:
        """Write chunks again that are in the image already, with what is `used` in them by now.

        Something is, in each of them. What `read` gives may be valid until the thread's next call.
        """

        def encode(work: _Work) -> Encoded:
            chunk, unreadable = read(work.run)
            return self.coder.encode(work.run, chunk, unreadable, work.parent_hash)

        def work() -> Iterator[_Work]:
            for run in chunks_of(chunks, used, self._head.chunk_size):
                parent = next(self.parent.runs(run.start, run.end)) if self.parent else None
                yield _Work(run, parent.content_hash if parent else None)

        unused = chunks - used - self._excluded
        position = -1
        lost: list[tuple[int, int]] = []
        with closing(ordered_map(encode, work(), self.threads)) as results:
            for encoded in results:
                start, end, _ = encoded.run
                if start != position:
                    self.zeros.flush()
                    self.writer.revise(start, unused)
                self._add(encoded, revised=True)
                lost += encoded.unreadable
                position = end
        self.zeros.flush()
        self._unreadable = self._unreadable - chunks | Extents.of(lost)

    def end_pass(self) -> None:
        """Nothing follows in disk order; lets go of the maps, which take much memory."""
        self.writer.end_chunks()
        self._used = Extents()

    @property
    def zero(self) -> int:
        """Disk bytes in chunks that are all zero, so far."""
        return self._zeros_before + self.zeros.written

    def unreadable(self) -> Extents:
        """What the device did not give, when all is stored."""
        return self._unreadable

    def finish(self, results: Json) -> WrittenImage:
        """Write the image's end with these facts for the manifest, and make it durable."""
        return self.writer.finish(
            results, inherited=self.parent.hashes if self.parent else no_hashes
        )

    def _work(self, start: int) -> Iterator[_Work]:
        """The disk from `start` on; a run without anything in use is cut as the parent's are."""
        runs = chunk_runs(self._used, start, self._device.size, self._head.chunk_size)
        if self.parent is None:
            for run in runs:
                yield _Work(run, None)
            return
        cursor = ParentCursor(self.parent, start)
        for run in runs:
            for low, high, parent_hash in cursor.covering(run.start, run.end):
                yield _Work(ChunkRun(low, high, run.used), parent_hash)

    def _batches(self, start: int) -> Iterator[list[_Work]]:
        """What a thread takes at a time."""
        work = self._work(start)
        count = 1 if self.parent is None else _BATCH
        while batch := list(islice(work, count)):
            yield batch

    def _encode(self, batch: list[_Work]) -> list[Encoded]:
        """Read and compress chunks, in a thread."""
        return [self._encode_one(*work) for work in batch]

    def _encode_one(self, run: ChunkRun, parent_hash: bytes | None) -> Encoded:
        if not run.used:
            return self.coder.nothing(run, [], parent_hash)
        chunk, unreadable = self._reader.read(run)
        return self.coder.encode(run, chunk, unreadable, parent_hash)

    def _add(self, encoded: Encoded, revised: bool = False) -> None:
        """The next chunks go to the writer; if they are `revised` the parent's maps never count."""
        if encoded.unchanged:
            self._add_parents(encoded, revised)
        elif encoded.frame is None:
            self.zeros.add(encoded.run.start, encoded.run.end, encoded.unreadable)
        else:
            self._add_frame(encoded, encoded.frame)

    def _add_frame(self, encoded: Encoded, frame: bytes) -> None:
        self.zeros.flush()
        self.writer.add_unreadable(encoded.unreadable)
        if encoded.base is None:
            self.writer.add_data(frame, encoded.content_hash, encoded.frame_hash)
        else:
            self.writer.add_delta(frame, encoded.content_hash, encoded.frame_hash, encoded.base)

    def _add_parents(self, encoded: Encoded, own: bool) -> None:
        """Refer to the parent; its maps count there, if they are the same, unless `own` ones shall."""
        run = encoded.run
        self.zeros.flush()
        own = own or bool(
            self.parent and self.parent.maps_differ(run.start, run.end, encoded.unreadable)
        )
        if own:
            self.writer.add_unreadable(encoded.unreadable)
        size = run.end - run.start
        self.writer.add_parents(encoded.content_hash, -(-size // self._head.chunk_size), own)
        self.inherited += size
        if encoded.content_hash == self.coder.zero_hash(size):
            self._zeros_before += size
