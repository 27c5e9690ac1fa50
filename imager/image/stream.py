"""Reads an image front to back from a pipe.

A segment's record comes behind its frames, so these wait in memory (at most 64 MiB) until their
hashes are known: nothing is handed out that cannot be verified.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imager.errors import ImageError, ImagerError, ReadFailedError, RefusedError
from imager.image.format import (
    FOOTER,
    INCOMPATIBLE_FREE,
    MAX_CHUNK,
    MAX_JSON,
    MAX_REVISED_SEGMENTS,
    MAX_SEGMENT,
    MAX_SEGMENT_ENTRIES,
    MAX_SEGMENT_FRAMES,
    OPENING_SIZE,
    RECORD_HEADER,
    SKIPPABLE,
    SKIPPABLE_RECORD,
    Entry,
    Footer,
    RecordHeader,
    Tag,
    max_frame,
)
from imager.image.frames import is_skippable, read_frame
from imager.image.hashing import ContentDigest
from imager.image.head import Head, Manifest, decode_head, decode_manifest
from imager.image.index import Segment, decode_segment
from imager.image.opening import UNFINISHED, guard_opening
from imager.image.records import OVERHEAD, decode_record
from imager.image.revision import Span, segments_in_force

_SPOOL_MEMORY = 1 << 22


class StreamedSegment(NamedTuple):
    """A segment and its frames."""

    segment: Segment
    frames: dict[int, bytes]
    """By offset in the image."""

    def read_frames(self, entries: Sequence[Entry]) -> list[memoryview | ImagerError]:
        """As `ImageReader.read_frames`, but only once: then the memory is free for the next."""
        return [memoryview(self.frames.pop(entry.offset)) for entry in entries]


class ImageStream:
    """An image that comes through a pipe; its head is read at once, the rest only one time."""

    def __init__(self, fd: int) -> None:
        """Read opening and head from `fd`.

        Raises ImageError if no image begins there, RefusedError for one that needs a parent.
        """
        self._fd = fd
        self._offset = 0
        opening = self._read(OPENING_SIZE)
        if opening == guard_opening(UNFINISHED):
            raise ImageError("the image that comes in is unfinished")
        record = decode_record(self._record_bytes(MAX_JSON), Tag.HEAD)
        self.head: Head = decode_head(record.payload)
        if self.head.incremental:
            raise RefusedError(
                "the image that comes in is incremental, and its parent "
                f"({self.head.parents[0].describe()}) cannot come through the same pipe: "
                "name the image's file, or send what imager export makes of it"
            )
        self.algorithm = record.algorithm
        self.uuid = record.uuid
        self.manifest: Manifest | None = None
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_MEMORY)
        self._spans: list[Span] = []
        self._places = array("Q", (0,))  # of each segment in the spool, and where the last one ends

    def close(self) -> None:
        """Drop what was kept; the descriptor is the caller's."""
        self._spool.close()

    def segments(self) -> Iterator[StreamedSegment]:
        """All segments in the order of the stream; at the end the image's own end is verified.

        That is disk order, but in a revised image the disk is followed by what replaces parts of it.
        Raises ImageError where the stream is damaged or cut short.
        """
        frames: dict[int, bytes] = {}
        held = position = 0
        digest = ContentDigest(self.algorithm, self.head.disk_size, self.head.chunk_size)
        while position < self.head.disk_size or self.head.revised:
            offset = self._offset
            frame = read_frame(self._read, max_frame(MAX_CHUNK))
            if not is_skippable(int.from_bytes(frame[:4], "little")):
                frames[offset] = frame
                held += len(frame)
                if held > MAX_SEGMENT_FRAMES or len(frames) > MAX_SEGMENT_ENTRIES:
                    raise ImageError("the stream's frames are not followed by a segment")
                continue
            tag = self._tag(frame)
            if tag == Tag.PART or (tag == Tag.FREE and self.head.incompatible & INCOMPATIBLE_FREE):
                decode_record(frame, tag, self.uuid)
                continue
            if tag == Tag.SEPARATOR and position == self.head.disk_size and not frames:
                break
            payload = decode_record(frame, Tag.SEGMENT, self.uuid).payload
            segment = decode_segment(payload, self.head)
            described = [(entry.offset, entry.stored_size) for entry in segment.entries]
            follows = segment.start == position or position == self.head.disk_size
            if not follows or described != [
                (offset, len(frame)) for offset, frame in frames.items()
            ]:
                raise ImageError("a segment does not belong to the frames before it")
            self._keep(segment, payload)
            if not self.head.revised:
                _count(digest, segment)
            yield StreamedSegment(segment, frames)
            frames, held, position = {}, 0, max(position, segment.end)
        if self.head.revised:
            for segment in self.segments_again():
                _count(digest, segment)
        self._read_end(digest.result())

    def segments_again(self) -> Iterator[Segment]:
        """The segments once more, in disk order, without their frames; replaced ones are left out."""
        return segments_in_force(self._spans, self._kept, self.head.chunk_size)

    def _keep(self, segment: Segment, payload: bytes) -> None:
        if self.head.revised and (
            segment.number != len(self._spans) or segment.number >= MAX_REVISED_SEGMENTS
        ):
            raise ImageError("the stream's segments are not in order, or too many")
        self._spool.seek(self._places[-1])
        self._spool.write(payload)
        self._places.append(self._places[-1] + len(payload))
        self._spans.append(Span(segment.start, segment.end))

    def _kept(self, number: int) -> Segment:
        start, end = self._places[number : number + 2]
        self._spool.seek(start)
        return decode_segment(self._spool.read(end - start), self.head)

    def _read_end(self, content_digest: bytes) -> None:
        """Separator, copies, manifest, footer; what follows the footer is its repetition."""
        while True:
            frame = read_frame(self._read, MAX_SEGMENT + OVERHEAD)
            tag = self._tag(frame)
            if tag == Tag.MANIFEST:
                self.manifest = decode_manifest(decode_record(frame, tag, self.uuid).payload)
                if self.manifest.head != self.head:
                    raise ImageError("head and manifest contradict each other")
            elif tag == Tag.FOOTER:
                record = decode_record(frame, tag, self.uuid)
                if len(record.payload) != FOOTER.size:
                    raise ImageError("the footer has a wrong length")
                if Footer(*FOOTER.unpack(record.payload)).content_digest != content_digest:
                    raise ImageError("the content digest differs from the chunks' hashes")
                break
            elif tag not in (Tag.SEPARATOR, Tag.SEGMENT_COPY, Tag.PART, Tag.FREE):
                raise ImageError("the stream's end is not that of an image")
        if self.manifest is None:
            raise ImageError("the stream has no manifest")
        while self._try_read(1 << 16):
            pass  # so that the sender does not see a closed pipe

    def _tag(self, frame: bytes) -> bytes:
        if len(frame) < RECORD_HEADER.size:
            raise ImageError("the stream holds a foreign frame")
        header = RecordHeader(*RECORD_HEADER.unpack_from(frame))
        if header.magic != SKIPPABLE_RECORD:
            raise ImageError("the stream holds a foreign frame")
        return header.tag

    def _record_bytes(self, limit: int) -> bytes:
        header = self._read(SKIPPABLE.size)
        magic, size = SKIPPABLE.unpack(header)
        if magic != SKIPPABLE_RECORD or size > limit + OVERHEAD:
            raise ImageError("this is not an imager image")
        return header + self._read(size)

    def _read(self, size: int) -> bytes:
        data = self._try_read(size)
        if len(data) != size:
            raise ImageError("the image that comes in is cut short")
        return data

    def _try_read(self, size: int) -> bytes:
        pieces = []
        while size > 0:
            try:
                piece = os.read(self._fd, min(size, 1 << 20))
            except OSError as error:
                raise ReadFailedError(f"standard input: {error.strerror}") from None
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            self._offset += len(piece)
        return b"".join(pieces)


def _count(digest: ContentDigest, segment: Segment) -> None:
    for entry in segment.entries:
        digest.add(entry.content_hash, entry.chunks)
