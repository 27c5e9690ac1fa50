"""Reads an image file, trusting nothing in it.

Whatever is stored twice is taken from the copy that is intact: head or manifest, either footer, a
segment or its copy; a lost index is rebuilt from the segments, which carry the image's UUID. What
was found damaged is collected as problems, so that one reader serves a restore (which needs its
chunks intact), a check (which reports) and a salvage (which leaves out what is lost).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from imager.errors import ImageError, ImagerError, ReadFailedError, UnsupportedImageError
from imager.image.files import ImageFile
from imager.image.format import (
    FOOTER,
    FOOTER_RECORD_SIZE,
    MAX_INDEX,
    MAX_JSON,
    MAX_SEGMENT,
    OPENING_SIZE,
    SEEK_ENTRY,
    SEEK_FOOTER,
    SEEKABLE_MAGIC,
    SEEKABLE_MAX_FRAMES,
    SKIPPABLE,
    Entry,
    Footer,
    IndexItem,
    Tag,
)
from imager.image.hashing import HashAlgorithm
from imager.image.head import Head, Manifest, decode_head, decode_manifest
from imager.image.index import Segment, decode_index, decode_segment
from imager.image.records import (
    OVERHEAD,
    Record,
    decode_record,
    encode_record,
    record_pattern,
    record_size,
)

_WINDOW = 1 << 22
_TAIL = 1 << 28
"""How far from the end a footer is looked for when the seek table does not lead to it (bytes)."""


class Completeness(enum.Enum):
    """Whether an image was finished."""

    COMPLETE = "complete"
    UNFINISHED = "unfinished"
    CUT_SHORT = "cut short"


@dataclass(frozen=True)
class Problem:
    """Something damaged in an image."""

    message: str
    start: int | None = None
    """First disk byte whose content is lost by it; None if nothing is."""
    end: int | None = None

    @property
    def loses_data(self) -> bool:
        """Whether bytes of the disk cannot be restored."""
        return self.start is not None


@dataclass(frozen=True)
class LostRange:
    """Disk bytes [start, end) whose segment is lost, original and copy."""

    start: int
    end: int


class ImageReader:
    """An open image: its description, and its segments in disk order."""

    def __init__(self, path: Path) -> None:
        """Open and look at head, end and index.

        Raises ImageError where nothing says what the image is of, UnsupportedImageError where it
        is of a version that this release does not read.
        """
        self.file = ImageFile(path)
        self.problems: list[Problem] = []
        self.manifest: Manifest | None = None
        self.footer: Footer | None = None
        self.uuid = b""
        self._algorithm: HashAlgorithm | None = None
        self._items: list[IndexItem] | None = None
        try:
            self.head = self._open()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.file.close()

    @property
    def algorithm(self) -> HashAlgorithm:
        """The image's hash algorithm."""
        if self._algorithm is None:
            raise ImageError("no record of the image is intact")
        return self._algorithm

    @property
    def completeness(self) -> Completeness:
        """Whether the image has its end, and why not."""
        if self.footer is not None:
            return Completeness.COMPLETE
        if not self.file.ends_named_complete:
            return Completeness.UNFINISHED
        return Completeness.CUT_SHORT

    def require_complete(self) -> None:
        """ImageError with what to do, unless the image is complete."""
        if self.completeness is Completeness.UNFINISHED:
            raise ImageError(
                f"{self.file.path} is unfinished (its capture was interrupted): finish it with "
                "imager capture --resume, or restore what it holds with --salvage"
            )
        if self.completeness is Completeness.CUT_SHORT:
            raise ImageError(
                f"{self.file.path} is cut short: its end is missing; "
                "imager check says what it still holds, --salvage restores that"
            )

    def read_record(self, offset: int, limit: int, tag: bytes) -> Record:
        """The record at `offset`, of at most `limit` bytes; ImageError unless it is intact."""
        size = record_size(self.file.read(offset, SKIPPABLE.size))
        if size is None or size > limit + OVERHEAD:
            raise ImageError(f"there is no {tag.decode()} record where one should be")
        return decode_record(self.file.read(offset, size), tag, self.uuid or None)

    def segments(self) -> Iterator[Segment | LostRange]:
        """All segments in disk order, and the ranges between them where one is lost.

        What is found damaged is added to `problems`. For an image without its end, what follows
        its last segment is a LostRange up to the disk's end.
        """
        if self._items is None:
            self._items = self._recover_items()
        position = 0
        for number, item in enumerate(self._items):
            if item.start > position:
                yield LostRange(position, item.start)
            segment = self._segment(number, item)
            if segment is None:
                self.problems.append(
                    Problem("a segment and its copy are damaged", item.start, item.end)
                )
                yield LostRange(item.start, item.end)
            else:
                yield segment
            position = item.end
        if position < self.head.disk_size:
            yield LostRange(position, self.head.disk_size)

    def read_frames(self, entries: Sequence[Entry]) -> list[memoryview | ImagerError]:
        """The stored frames of consecutive entries, or for each why it cannot be had.

        Frames that lie side by side come with one request.
        """
        ends = [entry.offset + entry.stored_size for entry in entries]
        if all(end == entry.offset for end, entry in zip(ends, entries[1:], strict=False)):
            try:
                data = memoryview(self.file.read(entries[0].offset, ends[-1] - entries[0].offset))
                base = entries[0].offset
                return [
                    data[entry.offset - base : end - base]
                    for entry, end in zip(entries, ends, strict=True)
                ]
            except (ImageError, ReadFailedError):
                pass  # find out which ones it concerns
        frames: list[memoryview | ImagerError] = []
        for entry in entries:
            try:
                frames.append(memoryview(self.file.read(entry.offset, entry.stored_size)))
            except (ImageError, ReadFailedError) as error:
                frames.append(error)
        return frames

    def items(self) -> tuple[IndexItem, ...]:
        """Where each segment is, as far as known."""
        if self._items is None:
            self._items = self._recover_items()
        return tuple(self._items)

    def _open(self) -> Head:
        head = self._read_head()
        self._find_footer()
        if self.footer is not None:
            head = self._read_end(self.footer, head)
        if head is None:
            raise ImageError(
                f"{self.file.path} is not an imager image, or both its head and its end are lost"
            )
        return head

    def _read_head(self) -> Head | None:
        try:
            record = self.read_record(OPENING_SIZE, MAX_JSON, Tag.HEAD)
        except UnsupportedImageError:
            raise
        except (ImageError, ReadFailedError) as error:
            self.problems.append(Problem(f"head: {error}"))
            return None
        self.uuid, self._algorithm = record.uuid, record.algorithm
        return decode_head(record.payload)

    def _find_footer(self) -> None:
        for offset in self._footer_places():
            try:
                data = self.file.read(offset, FOOTER_RECORD_SIZE)
                record = decode_record(data, Tag.FOOTER, self.uuid or None)
                footer = Footer(*FOOTER.unpack(record.payload))
            except (ImageError, ReadFailedError) as error:
                self.problems.append(Problem(f"footer: {error}"))
                continue
            if footer.image_size == self.file.size:
                self.footer = footer
                self.uuid, self._algorithm = record.uuid, record.algorithm
                return

    def _footer_places(self) -> Iterator[int]:
        """Where a footer may be: before the seek table; else anywhere near the end."""
        frames, _, magic = 0, 0, 0
        if self.file.size > SEEK_FOOTER.size:
            tail = self.file.read(self.file.size - SEEK_FOOTER.size, SEEK_FOOTER.size)
            frames, _, magic = SEEK_FOOTER.unpack(tail)
        if magic == SEEKABLE_MAGIC and frames <= SEEKABLE_MAX_FRAMES:
            table = SKIPPABLE.size + frames * SEEK_ENTRY.size + SEEK_FOOTER.size
            yield self.file.size - table - FOOTER_RECORD_SIZE
        yield from self._find_records(Tag.FOOTER, max(0, self.file.size - _TAIL))

    def _read_end(self, footer: Footer, head: Head | None) -> Head | None:
        """Manifest, index and the other hashes of the footer; returns the best head there is."""
        if self.algorithm.digest(self.file.read(0, OPENING_SIZE)) != footer.opening_hash:
            self.problems.append(Problem("the opening text is damaged"))
        manifest = self._end_record(
            Tag.MANIFEST, footer.manifest_offset, footer.manifest_size, footer.manifest_hash
        )
        if manifest is not None:
            self.manifest = decode_manifest(manifest)
            if head is None:
                head = self.manifest.head
            elif head != self.manifest.head:
                raise ImageError(f"{self.file.path}: head and manifest contradict each other")
        index = self._end_record(
            Tag.INDEX, footer.index_offset, footer.index_size, footer.index_hash
        )
        if index is not None and head is not None:
            self._items = decode_index(index, head)
        record = self._footer_record(footer)
        for end in (footer.index_offset, footer.seek_table_offset):
            if not self._holds(end - FOOTER_RECORD_SIZE, record):
                self.problems.append(Problem("one of the two footers is damaged"))
        return head

    def _footer_record(self, footer: Footer) -> bytes:
        return encode_record(Tag.FOOTER, self.uuid, self.algorithm, FOOTER.pack(*footer))

    def _holds(self, offset: int, data: bytes) -> bool:
        try:
            return self.file.read(offset, len(data)) == data
        except (ImageError, ReadFailedError):
            return False

    def _end_record(self, tag: bytes, offset: int, size: int, expected: bytes) -> bytes | None:
        """The payload of a record that the footer names; None, and a problem, if it is damaged."""
        try:
            if size > (MAX_INDEX if tag == Tag.INDEX else MAX_JSON) + OVERHEAD:
                raise ImageError("the footer names a record that is too large")
            data = self.file.read(offset, size)
            record = decode_record(data, tag, self.uuid)
            if self.algorithm.digest(data) != expected:
                raise ImageError("it is not the record that the footer names")
        except (ImageError, ReadFailedError) as error:
            self.problems.append(Problem(f"{_NAMES[tag]}: {error}"))
            return None
        return record.payload

    def _segment(self, number: int, item: IndexItem) -> Segment | None:
        """A segment, from its copy if need be; None if both are damaged."""
        segment = None
        for tag, offset in (
            (Tag.SEGMENT, item.offset),
            (Tag.SEGMENT_COPY, item.copy_offset),
        ):
            if offset == 0:  # not found when the index was rebuilt
                continue
            try:
                payload = self._segment_payload(tag, offset, item)
                segment = segment or decode_segment(payload, self.head)
                self._check_place(segment, number, item)
            except (ImageError, ReadFailedError) as error:
                if isinstance(error, UnsupportedImageError):
                    raise
                self.problems.append(Problem(f"segment {number}: {error}"))
        return segment

    def _segment_payload(self, tag: bytes, offset: int, item: IndexItem) -> bytes:
        if not OVERHEAD < item.size <= MAX_SEGMENT + OVERHEAD:
            raise ImageError("the index gives it a wrong size")
        payload = decode_record(self.file.read(offset, item.size), tag, self.uuid).payload
        if self.algorithm.digest(payload) != item.payload_hash:
            raise ImageError("it is not the segment that the index names")
        return payload

    def _check_place(self, segment: Segment, number: int, item: IndexItem) -> None:
        if (segment.start, segment.end) != (item.start, item.end):
            raise ImageError("it covers another range than the index says")
        if self.footer is not None and segment.number != number:
            raise ImageError("it has another number than its place")

    def _find_records(self, tag: bytes, start: int) -> Iterator[int]:
        """Offsets at or behind `start` where something like a record with this tag begins."""
        pattern = record_pattern(tag)
        overlap = SKIPPABLE.size + len(tag) - 1
        while start < self.file.size:
            size = min(_WINDOW, self.file.size - start)
            try:
                data = self.file.read(start, size)
            except ReadFailedError as error:
                self.problems.append(Problem(str(error)))
                data = b""
            for match in pattern.finditer(data):
                yield start + match.start()
            start += size if start + size >= self.file.size else size - overlap

    def _recover_items(self) -> list[IndexItem]:
        """Find all intact segments without an index; the later of two that overlap is dropped."""
        found: dict[int, IndexItem] = {}
        for tag in (Tag.SEGMENT, Tag.SEGMENT_COPY):
            for offset in self._find_records(tag, OPENING_SIZE):
                try:
                    record = self.read_record(offset, MAX_SEGMENT, tag)
                    segment = decode_segment(record.payload, self.head)
                except UnsupportedImageError:
                    raise
                except (ImageError, ReadFailedError):
                    continue
                item = found.get(segment.start)
                payload_hash = self.algorithm.digest(record.payload)
                if item is None:
                    item = IndexItem(
                        segment.start,
                        segment.end,
                        0,
                        0,
                        len(record.payload) + OVERHEAD,
                        0,
                        payload_hash,
                    )
                if item.payload_hash == payload_hash:
                    found[segment.start] = (
                        item._replace(offset=offset)
                        if tag == Tag.SEGMENT
                        else item._replace(copy_offset=offset)
                    )
        items: list[IndexItem] = []
        for start in sorted(found):
            if not items or items[-1].end <= start:
                items.append(found[start])
        return items


_NAMES = {Tag.MANIFEST: "manifest", Tag.INDEX: "index"}
