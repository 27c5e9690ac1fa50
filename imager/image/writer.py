"""Writes an image front to back, so that a pipe will do as well as a file.

    opening | head | frames ... segment | frames ... segment | ...
            | separator | segment copies | manifest | footer | index | footer | seek table

Of a revised image chunks that are written again stand behind the last segment, with segments of their
own.

Memory hardly grows with the disk: segments wait for their copying in a temporary file once they are
more than a few MiB; the seek table takes 8 and the index about 1 byte for each chunk.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from imager.errors import RefusedError, WriteFailedError
from imager.extents import Extents
from imager.image.format import (
    FOOTER,
    FOOTER_RECORD_SIZE,
    INCOMPATIBLE_FREE,
    INDEX_ITEM,
    MAX_JSON,
    MAX_REVISED_SEGMENTS,
    OPENING_SIZE,
    PART_HEADER,
    SEEK_ENTRY,
    SEEK_FOOTER,
    SEEKABLE_MAGIC,
    SEEKABLE_MAX_FRAMES,
    SEPARATOR_SIZE,
    SKIPPABLE,
    SKIPPABLE_SEEK_TABLE,
    Base,
    ChunkKind,
    Entry,
    Footer,
    IndexItem,
    PartHeader,
    RangeKind,
    Tag,
)
from imager.image.frames import guard_frame
from imager.image.free import HEAD_SLACK, free_records, free_sizes, segment_slack
from imager.image.hashing import ContentDigest, HashAlgorithm
from imager.image.head import Head, Json, Manifest
from imager.image.index import Segment, decode_segment, encode_index
from imager.image.opening import UNFINISHED, final_opening, guard_opening, is_guarded
from imager.image.records import OVERHEAD, encode_record
from imager.image.revision import Span, cut_entries, segments_in_force
from imager.image.segments import SegmentBuilder
from imager.image.sink import Sink

_SPOOL_MEMORY = 1 << 22

InheritedHashes = Callable[[int, int], Iterable[tuple[bytes, int]]]
"""Content hashes of the parent's chunks in a disk range, each with how many chunks have it."""


def no_hashes(start: int, end: int) -> Iterable[tuple[bytes, int]]:
    """For images without a parent."""
    return ()


@dataclass(frozen=True)
class WrittenImage:
    """A complete image."""

    files: tuple[Path, ...]
    """Its file or parts; empty for a pipe."""
    size: int
    """Bytes, all parts together."""
    content_digest: bytes


class ImageWriter:
    """Takes chunks in disk order and makes an image of them."""

    def __init__(
        self,
        sink: Sink,
        head: Head,
        uuid: bytes,
        algorithm: HashAlgorithm,
        unused: Extents,
        excluded: Extents,
    ) -> None:
        """Write the opening and the head; `unused` and `excluded` are ranges of the disk.

        If the head says that there is free space, some is left behind it and behind each segment, so
        that they can be patched.
        """
        self._slack = bool(head.incompatible & INCOMPATIBLE_FREE)
        self._regions = array("Q")
        self._sink = sink
        self._head = head
        self._uuid = uuid
        self._algorithm = algorithm
        self._excluded = excluded
        self._builder = SegmentBuilder(
            algorithm, {RangeKind.UNUSED: unused, RangeKind.EXCLUDED: excluded}
        )
        self._covered_all = False
        self._unreadable: list[tuple[int, int]] = []
        self.count_ranges = self._builder.count_ranges
        self._digest = ContentDigest(algorithm, head.disk_size, head.chunk_size)
        self._offset = 0
        self._items = bytearray()
        self._seek = bytearray(SKIPPABLE.size)
        self._frames = 0
        self._parts = 1
        self._opening = final_opening(head)
        payload = head.encode()
        if len(payload) > MAX_JSON // 2:  # the manifest repeats it
            raise RefusedError(
                f"an image cannot hold a description of {len(payload)} bytes: the disk's "
                "partition table makes no sense"
            )
        self._head_record = self._record(Tag.HEAD, payload)
        self._segments = tempfile.SpooledTemporaryFile(_SPOOL_MEMORY, dir=sink.spool_directory)

    @property
    def position(self) -> int:
        """The first disk byte that no chunk added so far covers."""
        return self._builder.position

    @property
    def size(self) -> int:
        """Bytes of the image so far."""
        return self._offset

    def close(self) -> None:
        """Drop what is kept for the end; the sink is the caller's."""
        self._segments.close()

    def begin(self) -> None:
        """Write the opening (a guard, where it can be exchanged at the end) and the head."""
        opening = guard_opening(UNFINISHED) if self._sink.seekable else self._opening
        self._sink.write(opening)
        self._account_opening()
        self._emit(self._head_record, 0)
        self._leave_free(HEAD_SLACK)
        # From now on whoever finds the unfinished file sees that it is one, and of what.
        self._sink.settle()

    def take_up(
        self,
        part_starts: Iterable[int],
        segments: Iterable[Segment],
        inherited: InheritedHashes = no_hashes,
    ) -> None:
        """Instead of `begin`: count what an interrupted capture wrote and nobody need write again.

        `segments` are its first ones, checked by the caller; `part_starts` say where its parts
        begin in the joined image. The sink must be cut to `size` afterwards.
        """
        self._account_opening()
        self._account(len(self._head_record), 0)
        parts = [start for start in part_starts if start]
        for segment in segments:
            for start, end, entry in segment.placed(self._head.chunk_size):
                if self._slack:
                    for size in free_sizes(entry.offset - self._offset):
                        self._account(size, 0)
                if entry.kind == ChunkKind.PARENT:
                    for content_hash, chunks in inherited(start, end):
                        self._digest.add(content_hash, chunks)
                    continue
                self._take_up_part(parts)
                self._account(entry.stored_size, end - start)
                self._digest.add(entry.content_hash, entry.chunks)
            self._take_up_part(parts)
            payload = segment.encode()
            self._account_segment(segment, payload)
            self._account(len(payload) + OVERHEAD, 0)
            self._builder.skip(segment)

    def _take_up_part(self, starts: list[int]) -> None:
        if starts and starts[0] == self._offset:
            starts.pop(0)
            self._parts += 1
            self._account(PART_HEADER.size + OVERHEAD, 0)

    def end_chunks(self) -> None:
        """Write the segment under way; nothing can be added afterwards."""
        if not self._builder.empty:
            self._close_segment()
        if not self._covered_all and self.position < self._head.disk_size:
            raise ValueError("the image does not cover the disk")
        self._covered_all = True
        self._builder.remap({})  # the maps of a large disk take much memory

    def revise(self, position: int, unused: Extents) -> None:
        """Replace chunks that are written already, from disk byte `position` on; by these maps.

        For an image whose head says that it is revised. To be repeated wherever chunks are left out.
        """
        if not self._head.revised:
            raise ValueError("the head does not say that the image is revised")
        self.end_chunks()
        self._builder.move(position)
        self._builder.remap({RangeKind.UNUSED: unused, RangeKind.EXCLUDED: self._excluded})

    def segments_in_force(self) -> Iterator[Segment]:
        """What the image says of the disk in the end, in disk order; once all chunks are written."""
        return segments_in_force(*self._written(), self._head.chunk_size)

    def cut_runs(self) -> Iterator[tuple[int, int, Entry]]:
        """The parts in force of runs of the parent's chunks of which others are not.

        A reference proves a run as a whole: each part needs one of its own.
        """
        for start, end, entry in cut_entries(*self._written(), self._head.chunk_size):
            if entry.kind == ChunkKind.PARENT:
                yield start, end, entry

    def _written(self) -> tuple[list[Span], Callable[[int], Segment]]:
        """Where all segments are on the disk, in the order of writing, and a way to have one again."""
        items = map(IndexItem._make, INDEX_ITEM.iter_unpack(self._items))
        places = array("Q", accumulate((item.size - OVERHEAD for item in items), initial=0))

        def segment(number: int) -> Segment:
            start, end = places[number : number + 2]
            self._segments.seek(start)
            return decode_segment(self._segments.read(end - start), self._head)

        items = map(IndexItem._make, INDEX_ITEM.iter_unpack(self._items))
        spans = [Span(item.start, item.end) for item in items]
        return spans, segment

    def written_regions(self) -> Iterator[tuple[int, int, bytes]]:
        """Where each segment with its frames and slack lies in the image, and its payload.

        For an image with slack, once all is written.
        """
        self._segments.seek(0)
        items = map(IndexItem._make, INDEX_ITEM.iter_unpack(self._items))
        for (start, end), item in zip(pairwise(self._regions), items, strict=True):
            yield start, end, self._segments.read(item.size - OVERHEAD)

    def add_data(self, frame: bytes, content_hash: bytes, frame_hash: bytes) -> None:
        """Append the frame of the next chunk."""
        self._add(ChunkKind.DATA, 1, frame, content_hash, frame_hash)

    def add_zeros(self, chunks: int, frame: bytes, content_hash: bytes, frame_hash: bytes) -> None:
        """Append the frame of the next `chunks` chunks, all of them zero.

        A run with more than SEGMENT_RANGES ranges is for the caller to cut.
        """
        self._add(ChunkKind.ZERO, chunks, frame, content_hash, frame_hash)

    def add_delta(self, frame: bytes, content_hash: bytes, frame_hash: bytes, base: Base) -> None:
        """Append the frame of the next chunk, whose dictionary is `base`."""
        self._add(ChunkKind.DELTA, 1, frame, content_hash, frame_hash, base)

    def add_parents(self, content_hash: bytes, chunks: int, own_maps: bool) -> None:
        """The next chunks are the parent's, all of them with one content hash.

        With `own_maps` what is unused, unreadable or excluded in them is not what it is there.
        """
        builder = self._builder
        if builder.is_full():
            self._close_segment()
        size = self._covered(chunks)
        self._note_unreadable()
        builder.add_parents(self._offset, content_hash, chunks, size, own_maps)
        self._digest.add(content_hash, chunks)

    def copy_segment(self, segment: Segment, frame_of: Callable[[int, int, Entry], bytes]) -> None:
        """Append a segment of another image of the same disk.

        Its frames are given for the disk range and entry of each. Nothing is hashed: what they hold
        is for the caller to vouch for, who must tell `finish` the content digest.
        """
        entries = []
        for start, end, entry in segment.placed(self._head.chunk_size):
            frame = frame_of(start, end, entry) if entry.stored_size else b""
            offset = self._emit(frame, end - start) if frame else self._offset
            entries.append(entry._replace(offset=offset, stored_size=len(frame)))
        copied = replace(segment, entries=tuple(entries))
        self._write_segment(copied)
        self._builder.skip(copied)

    def add_unreadable(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Note ranges of the next chunk that the device did not give, in order."""
        self._unreadable += ranges

    def finish(
        self,
        results: Json,
        content_digest: bytes | None = None,
        inherited: InheritedHashes = no_hashes,
    ) -> WrittenImage:
        """Write everything that follows the chunks, and make the image durable.

        `results` are the manifest's facts. The content digest is that of the chunks added, unless
        it is given for segments that were copied; for a revised image it needs those of the parent.
        """
        self.end_chunks()
        if self._head.revised:
            results = {**results, "segments": len(self._items) // INDEX_ITEM.size}
            content_digest = self._revised_digest(inherited)
        self._write_copies()
        manifest = self._record(Tag.MANIFEST, Manifest(self._head, results).encode())
        manifest_offset = self._emit(manifest, 0)
        index = self._record(Tag.INDEX, encode_index(self._items, OVERHEAD))
        digest = content_digest or self._digest.result()
        footer, seek_table = self._plan_end(manifest_offset, manifest, index, digest)
        record = self._record(Tag.FOOTER, FOOTER.pack(*footer))
        for data in (record, index, record, bytes(seek_table)):
            self._sink.write(data)
        files = self._sink.finish(self._opening)
        return WrittenImage(files, footer.image_size, footer.content_digest)

    def _revised_digest(self, inherited: InheritedHashes) -> bytes:
        digest = ContentDigest(self._algorithm, self._head.disk_size, self._head.chunk_size)
        for segment in self.segments_in_force():
            for start, end, entry in segment.placed(self._head.chunk_size):
                if entry.kind == ChunkKind.PARENT:
                    for content_hash, chunks in inherited(start, end):
                        digest.add(content_hash, chunks)
                else:
                    digest.add(entry.content_hash, entry.chunks)
        return digest.result()

    def _record(self, tag: bytes, payload: bytes) -> bytes:
        return encode_record(tag, self._uuid, self._algorithm, payload)

    def _account(self, stored: int, decoded: int) -> None:
        self._seek += SEEK_ENTRY.pack(stored, decoded)
        self._frames += 1
        self._offset += stored

    def _account_opening(self) -> None:
        guard = len(guard_frame()) if is_guarded(self._opening) else 0
        if guard:
            self._account(guard, 0)
        self._account(OPENING_SIZE - guard, 0)

    def _begin_part_for(self, size: int) -> None:
        if self._sink.needs_part(size):
            self._sink.begin_part()
            self._parts += 1
            part = self._record(
                Tag.PART, PART_HEADER.pack(*PartHeader(self._parts, 0, self._offset))
            )
            self._sink.write(part)
            self._account(len(part), 0)
            if self._sink.needs_part(size):
                raise WriteFailedError(f"a part cannot hold {size} bytes: use a larger --split")

    def _emit(self, frame: bytes, decoded: int) -> int:
        """Write one frame, in a new part if need be; returns where it begins in the image."""
        self._begin_part_for(len(frame))
        offset = self._offset
        self._sink.write(frame)
        self._account(len(frame), decoded)
        return offset

    def _add(
        self,
        kind: ChunkKind,
        chunks: int,
        frame: bytes,
        content_hash: bytes,
        frame_hash: bytes,
        base: Base | None = None,
    ) -> None:
        self._builder.end_run()
        if self._builder.is_full():
            self._close_segment()
        size = self._covered(chunks)
        offset = self._emit(frame, size)
        entry = Entry(offset, len(frame), chunks, kind, 0, 0, 0, content_hash, frame_hash)
        self._note_unreadable()
        self._builder.add(entry, size, base)
        self._digest.add(content_hash, chunks)
        if self._builder.is_full():
            self._close_segment()

    def _note_unreadable(self) -> None:
        """What was said of the chunk that is being added, now that its segment is certain."""
        self._builder.add_unreadable(self._unreadable)
        self._unreadable.clear()

    def _covered(self, chunks: int) -> int:
        """Disk bytes of the next chunks; the last one may be shorter."""
        return min(chunks * self._head.chunk_size, self._head.disk_size - self.position)

    def _close_segment(self) -> None:
        self._write_segment(self._builder.build())

    def _write_segment(self, segment: Segment) -> None:
        payload = segment.encode()
        decode_segment(payload, self._head)  # no image is written that no reader would accept
        record = self._record(Tag.SEGMENT, payload)
        self._begin_part_for(len(record))
        self._account_segment(segment, payload)
        frames = self._offset - segment.entries[0].offset
        self._emit(record, 0)
        self._leave_free(segment_slack(frames))

    def _leave_free(self, size: int) -> None:
        if self._slack:
            for record in free_records(size, self._uuid, self._algorithm):
                self._emit(record, 0)
            self._regions.append(self._offset)

    def _account_segment(self, segment: Segment, payload: bytes) -> None:
        """Keep what the index will say of a segment whose record begins here."""
        item = IndexItem(
            segment.start,
            segment.end,
            self._offset,
            0,
            len(payload) + OVERHEAD,
            0,
            self._algorithm.digest(payload),
        )
        self._items += INDEX_ITEM.pack(*item)
        if self._head.revised and len(self._items) > MAX_REVISED_SEGMENTS * INDEX_ITEM.size:
            raise WriteFailedError("too many chunks change: use a larger --chunk-size")
        self._segments.seek(0, os.SEEK_END)
        self._segments.write(payload)

    def _write_copies(self) -> None:
        """Write each segment once more, well apart from the first time, and note where."""
        self._emit(self._record(Tag.SEPARATOR, bytes(SEPARATOR_SIZE)), 0)
        self._segments.seek(0)
        for place in range(0, len(self._items), INDEX_ITEM.size):
            item = IndexItem(*INDEX_ITEM.unpack_from(self._items, place))
            payload = self._segments.read(item.size - OVERHEAD)
            copy_offset = self._emit(self._record(Tag.SEGMENT_COPY, payload), 0)
            INDEX_ITEM.pack_into(self._items, place, *item._replace(copy_offset=copy_offset))

    def _plan_end(
        self, manifest_offset: int, manifest: bytes, index: bytes, content_digest: bytes
    ) -> tuple[Footer, bytearray]:
        """The footer and the seek table; from the first footer on, all lies in one part."""
        frames = self._frames + 4  # footer, index, footer; perhaps a part's header
        if frames > SEEKABLE_MAX_FRAMES:
            raise WriteFailedError("too many chunks for one image: use a larger --chunk-size")
        seek_size = SKIPPABLE.size + frames * SEEK_ENTRY.size + SEEK_FOOTER.size
        self._begin_part_for(2 * FOOTER_RECORD_SIZE + len(index) + seek_size)
        index_offset = self._offset + FOOTER_RECORD_SIZE
        for size in (FOOTER_RECORD_SIZE, len(index), FOOTER_RECORD_SIZE):
            self._account(size, 0)
        table = self._seek
        table += SEEK_FOOTER.pack(self._frames, 0, SEEKABLE_MAGIC)
        SKIPPABLE.pack_into(table, 0, SKIPPABLE_SEEK_TABLE, len(table) - SKIPPABLE.size)
        digest = self._algorithm.digest
        footer = Footer(
            image_size=self._offset + len(table),
            head_offset=OPENING_SIZE,
            head_size=len(self._head_record),
            manifest_offset=manifest_offset,
            manifest_size=len(manifest),
            index_offset=index_offset,
            index_size=len(index),
            seek_table_offset=self._offset,
            seek_table_size=len(table),
            opening_hash=digest(self._opening),
            head_hash=digest(self._head_record),
            manifest_hash=digest(manifest),
            index_hash=digest(index),
            seek_table_hash=digest(table),
            content_digest=content_digest,
        )
        return footer, table
