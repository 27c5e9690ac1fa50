"""Reads an image file, trusting nothing in it.

Whatever is stored twice is taken from the copy that is intact: head or manifest, either footer, a
segment or its copy; a lost index is rebuilt from the segments, which carry the image's UUID. What
was found damaged is collected as problems, so that one reader serves a restore (which needs its
chunks intact), a check (which reports) and a salvage (which leaves out what is lost).
"""

from __future__ import annotations

import bisect
import enum
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from imager.image.index import Segment, decode_index, decode_items, decode_segment
from imager.image.opening import expired_since
from imager.image.problems import Problems
from imager.image.records import OVERHEAD, Record, decode_record, encode_record, record_size
from imager.image.recovery import find_records, recover_items, recover_written
from imager.image.revision import RevisedIndex

_TAIL = 1 << 26
"""How far from the end a footer is looked for when the seek table does not lead to it (bytes)..."""
_TAIL_PER_CHUNK = 16
"""...and this for each chunk: seek table and index lie behind it."""


class Completeness(enum.Enum):
    """Whether an image was finished."""

    COMPLETE = "complete"
    UNFINISHED = "unfinished"
    CUT_SHORT = "cut short"


@dataclass(frozen=True)
class LostRange:
    """Disk bytes [start, end) whose segment is lost, original and copy."""

    start: int
    end: int
    reason: str = ""
    """What is damaged, if it is in another image or that is not among the problems."""


class ImageReader:
    """An open image: its description, and its segments in disk order."""

    def __init__(self, path: Path) -> None:
        """Open and look at head, end and index.

        Raises ImageError where nothing says what the image is of, UnsupportedImageError where it
        is of a version that this release does not read.
        """
        self.file = ImageFile(path)
        self.problems = Problems()
        self.manifest: Manifest | None = None
        self.footer: Footer | None = None
        self.expired = False
        """Whether the image was given up: what no other image needs of it may be gone."""
        self.uuid = b""
        self._algorithm: HashAlgorithm | None = None
        self._index: Sequence[IndexItem] | None = None
        self._recovered: Sequence[IndexItem] | None = None
        self._revised: RevisedIndex | None = None
        try:
            for problem in self.file.problems:
                self.problems.add(problem)
            self.head = self._open()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    @property
    def algorithm(self) -> HashAlgorithm:
        """The image's hash algorithm."""
        if self._algorithm is None:
            raise ImageError("no record of the image is intact")
        return self._algorithm

    @property
    def uuid_text(self) -> str:
        """The image's UUID as people write it."""
        return str(uuid.UUID(bytes=self.uuid))

    @property
    def completeness(self) -> Completeness:
        """Whether the image has its end, and why not."""
        if self.footer is not None:
            return Completeness.COMPLETE
        if self.file.unfinished_by_name:
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

    def segments(self, both: bool = False) -> Iterator[Segment | LostRange]:
        """All segments in disk order, and the ranges between them where one is lost.

        What is found damaged is added to `problems`; with `both`, the copies that are not needed
        are looked at, too. For an image without its end, what follows its last segment is a
        LostRange up to the disk's end.
        """
        position = 0
        for number, item in enumerate(self.items()):
            if item.start > position:
                yield LostRange(position, item.start)
            yield self.segment(number, item, both)
            position = item.end
        if position < self.head.disk_size:
            yield LostRange(position, self.head.disk_size)

    def written_segments(self) -> Iterator[Segment | LostRange]:
        """All segments in the order of the file, replaced ones included, with their copies.

        What is found damaged is added to `problems`.
        """
        for number, item in enumerate(self.written_items()):
            segment = self._segment(number, item, True)
            yield segment or LostRange(item.start, item.end)

    def replaced_entries(self, segment: Segment) -> Iterator[Entry]:
        """Entries of a written segment whose frames nobody reads: others replace them, wholly or not."""
        if self._revised is None:
            return
        items = self.items()
        for start, end, entry in segment.placed(self.head.chunk_size):
            place = bisect.bisect_right(items, start, key=_start_of) - 1
            whole = place >= 0 and items[place].start <= start and end <= items[place].end
            if not whole or self._revised.numbers[place] != segment.number:
                yield entry

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

    def locate(self, offset: int) -> int | LostRange:
        """The place in `items` of the segment that covers a disk byte, or what is lost around it."""
        items = self.items()
        place = bisect.bisect_right(items, offset, key=_start_of) - 1
        if place >= 0 and offset < items[place].end:
            return place
        return LostRange(
            items[place].end if place >= 0 else 0,
            items[place + 1].start if place + 1 < len(items) else self.head.disk_size,
        )

    def segment(self, place: int, item: IndexItem, both: bool = False) -> Segment | LostRange:
        """The segment that is `item`, at this place in `items`, or the range that is lost with it."""
        revised = self._revised
        if revised is None:
            segment = self._segment(place, item, both)
        else:
            number = revised.numbers[place]
            segment = self._segment(number, revised.written[number], both)
            segment = segment and segment.clipped(item.start, item.end, self.head.chunk_size)
        if segment is None:
            self.problems.add("a segment and its copy are damaged", item.start, item.end)
            return LostRange(item.start, item.end)
        return segment

    def items(self) -> Sequence[IndexItem]:
        """Where each segment is, as far as known; each in the range in which it counts."""
        if self._index is not None:
            return self._index
        if self._recovered is None and self.head.revised:
            self._revised = self._recover_revised()
            self._recovered = self._revised.items
        elif self._recovered is None:
            self._recovered = recover_items(self.file, self.head, self.uuid, self.algorithm)
        return self._recovered

    def written_items(self) -> Sequence[IndexItem]:
        """Where each segment is, in the order of the file, replaced ones included."""
        items = self.items()
        return self._revised.written if self._revised else items

    def _recover_revised(self) -> RevisedIndex:
        """Of a complete image all segments or none: a missing one may have replaced anything."""
        written = recover_written(self.file, self.head, self.uuid, self.algorithm)
        count = self.manifest.facts.get("segments") if self.manifest else None
        if self.footer is not None and count != len(written):
            self.problems.add("the index and a segment are lost: nothing says which chunks count")
            written = []
        return RevisedIndex(written, self.head, whole=False)

    def _open(self) -> Head:
        unsupported: UnsupportedImageError | None = None
        head: Head | None = None
        head_hash = b""
        try:
            record = self.read_record(OPENING_SIZE, MAX_JSON, Tag.HEAD)
        except (ImageError, ReadFailedError) as error:
            # An unknown hash algorithm may be damage: then the image's end will tell.
            unsupported = error if isinstance(error, UnsupportedImageError) else None
            self.problems.add(f"head: {error}")
        else:
            self.uuid, self._algorithm = record.uuid, record.algorithm
            head = decode_head(record.payload)
            head_hash = record.algorithm.digest(encode_record(*record))
        self.footer = self._find_footer(_TAIL + _TAIL_PER_CHUNK * (head.chunks if head else 0))
        if self.footer is not None:
            if head is not None and head_hash != self.footer.head_hash:
                self.problems.add("head: it is not the one that the footer names")
                head = None
            head = self._read_end(self.footer, head)
        if head is None:
            raise unsupported or ImageError(
                f"{self.file.path} is not an imager image, or both its head and its end are lost"
            )
        return head

    def _find_footer(self, tail: int) -> Footer | None:
        """The footer before the seek table; else one in the last `tail` bytes."""
        mine = self.uuid or None
        try:
            return self._footer_at(self._footer_place(), mine)
        except (ImageError, ReadFailedError) as error:
            self.problems.add(f"footer: {error}")
        for offset in find_records(self.file, (Tag.FOOTER,), max(0, self.file.size - tail)):
            try:
                return self._footer_at(offset, mine)
            except (ImageError, ReadFailedError):
                continue
        try:
            # None fits the head; where one is in its place, it may be the head that is not.
            return self._footer_at(self._footer_place(), None)
        except (ImageError, ReadFailedError):
            return None

    def _footer_place(self) -> int:
        tail = self.file.read(self.file.size - SEEK_FOOTER.size, SEEK_FOOTER.size)
        frames, _, magic = SEEK_FOOTER.unpack(tail)
        if magic != SEEKABLE_MAGIC or frames > SEEKABLE_MAX_FRAMES:
            raise ImageError("the file does not end with a seek table")
        table: int = SKIPPABLE.size + frames * SEEK_ENTRY.size + SEEK_FOOTER.size
        return self.file.size - table - FOOTER_RECORD_SIZE

    def _footer_at(self, offset: int, uuid: bytes | None) -> Footer:
        """The footer at `offset`; ImageError unless it is that of this file, in its place."""
        data = self.file.read(offset, FOOTER_RECORD_SIZE)
        record = decode_record(data, Tag.FOOTER, uuid)
        footer = Footer(*FOOTER.unpack(record.payload))
        if offset + FOOTER_RECORD_SIZE not in (footer.index_offset, footer.seek_table_offset):
            raise ImageError("it is not where it says")
        if footer.image_size > self.file.size:
            raise ImageError(f"the image had {footer.image_size} bytes, now {self.file.size}")
        if footer.image_size < self.file.size:
            follow = self.file.size - footer.image_size
            self.problems.add(f"{follow} bytes follow the image's end")
        self.uuid, self._algorithm = record.uuid, record.algorithm
        return footer

    def _read_end(self, footer: Footer, head: Head | None) -> Head | None:
        """Everything that the footer has a hash of; returns the best head there is."""
        if self._is_expired():
            self.expired = True
            self.problems.add("a prune has given it up: what no other image needs may be gone")
        elif not self._hashes(0, OPENING_SIZE, footer.opening_hash):
            self.problems.add("the opening text is damaged")
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
            if head.revised:
                self._revised = RevisedIndex(decode_items(index), head, whole=True)
                self._index = self._revised.items
            else:
                self._index = decode_index(index, head)
        record = encode_record(Tag.FOOTER, self.uuid, self.algorithm, FOOTER.pack(*footer))
        for end in (footer.index_offset, footer.seek_table_offset):
            if not self._holds(end - FOOTER_RECORD_SIZE, record):
                self.problems.add("one of the two footers is damaged")
        return head

    def _is_expired(self) -> bool:
        try:
            return expired_since(self.file.read(0, OPENING_SIZE)) is not None
        except (ImageError, ReadFailedError):
            return False

    def _hashes(self, offset: int, size: int, expected: bytes) -> bool:
        try:
            return self.algorithm.digest(self.file.read(offset, size)) == expected
        except (ImageError, ReadFailedError):
            return False

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
            if self.algorithm.digest(data) != expected:
                raise ImageError("it is not the record that the footer names")
            return decode_record(data, tag, self.uuid).payload
        except (ImageError, ReadFailedError) as error:
            self.problems.add(f"{_NAMES[tag]}: {error}")
            return None

    def _segment(self, number: int, item: IndexItem, both: bool) -> Segment | None:
        """A segment, from its copy if need be; None if both are damaged."""
        segment: Segment | None = None
        for tag, offset in ((Tag.SEGMENT, item.offset), (Tag.SEGMENT_COPY, item.copy_offset)):
            if offset == 0 or (segment is not None and not both):
                continue  # 0: not found when the index was rebuilt
            try:
                payload = self._segment_payload(tag, offset, item)
                segment = segment or self._decode_segment(payload, number, item)
            except UnsupportedImageError:
                raise
            except (ImageError, ReadFailedError) as error:
                self.problems.add(f"segment {number}: {error}")
        return segment

    def _segment_payload(self, tag: bytes, offset: int, item: IndexItem) -> bytes:
        if not OVERHEAD < item.size <= MAX_SEGMENT + OVERHEAD:
            raise ImageError("the index gives it a wrong size")
        data = self.file.read(offset, item.size)
        try:
            payload = decode_record(data, tag, self.uuid).payload
        except UnsupportedImageError as error:  # the head's algorithm is known, so it is damage
            raise ImageError(str(error)) from None
        if self.algorithm.digest(payload) != item.payload_hash:
            raise ImageError("it is not the segment that the index names")
        return payload

    def _decode_segment(self, payload: bytes, number: int, item: IndexItem) -> Segment:
        segment = decode_segment(payload, self.head)
        if (segment.start, segment.end) != (item.start, item.end):
            raise ImageError("it covers another range than the index says")
        if self._index is not None and segment.number != number:
            raise ImageError("it has another number than its place")
        return segment


def _start_of(item: IndexItem) -> int:
    return item.start


_NAMES = {Tag.MANIFEST: "manifest", Tag.INDEX: "index"}
