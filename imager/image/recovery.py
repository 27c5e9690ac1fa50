"""Finds records in an image whose end or index is lost.

Records carry a magic number, the image's UUID and their own hash, so they are found wherever they
lie; what looks like one inside of a chunk (the disk may hold images, too) has another UUID.
"""

from __future__ import annotations

from collections.abc import Iterator

from imager.errors import ImageError, ReadFailedError, UnsupportedImageError
from imager.extents import Extents
from imager.image.files import PART_RECORD_SIZE, ImageFile, Part
from imager.image.format import (
    MAX_SEGMENT,
    OPENING_SIZE,
    RECORD_HEADER,
    SKIPPABLE,
    IndexItem,
    RecordHeader,
    Tag,
)
from imager.image.hashing import HashAlgorithm
from imager.image.head import Head
from imager.image.index import Segment, decode_segment
from imager.image.records import OVERHEAD, decode_record, record_pattern

_WINDOW = 1 << 22
_SECTOR = 4096
_PATIENCE = 1 << 30
"""Bytes of damaged records that are hashed, beside twice the image's own size."""


def find_records(file: ImageFile, tags: tuple[bytes, ...], start: int) -> Iterator[int]:
    """Offsets at or behind `start` where something like a record with one of `tags` begins.

    What cannot be read is passed over, sector by sector.
    """
    pattern = record_pattern(*tags)
    overlap = SKIPPABLE.size + len(Tag.HEAD) - 1
    for part in file.parts:
        position = max(start, part.start)
        while position < part.end:
            size = min(_WINDOW, part.end - position)
            for match in pattern.finditer(_read_around_damage(file, part, position, size)):
                yield position + match.start()
            position += size if position + size >= part.end else size - overlap


def recover_items(
    file: ImageFile, head: Head, uuid: bytes, algorithm: HashAlgorithm
) -> list[IndexItem]:
    """The places of all intact segments, in disk order; of two that overlap the first one counts.

    An item's offset, or its copy's, is 0 where that one was not found.
    """
    segments: dict[int, IndexItem] = {}
    copies: dict[int, IndexItem] = {}
    for segment, item in _intact_segments(file, head, uuid, algorithm):
        (segments if item.offset else copies).setdefault(segment.start, item)
    return _tile(segments, copies)


def recover_written(
    file: ImageFile, head: Head, uuid: bytes, algorithm: HashAlgorithm
) -> list[IndexItem]:
    """The segments of a revised image in the order of writing, up to the first that is lost.

    Behind that one nothing is known: it may have replaced what is there.
    """
    segments: dict[int, IndexItem] = {}
    copies: dict[int, IndexItem] = {}
    for segment, item in _intact_segments(file, head, uuid, algorithm):
        (segments if item.offset else copies).setdefault(segment.number, item)
    written: list[IndexItem] = []
    while found := segments.get(len(written)) or copies.get(len(written)):
        copy = copies.get(len(written))
        if copy is not None and copy.payload_hash == found.payload_hash:
            found = found._replace(copy_offset=copy.copy_offset)
        written.append(found)
    return written


def _intact_segments(
    file: ImageFile, head: Head, uuid: bytes, algorithm: HashAlgorithm
) -> Iterator[tuple[Segment, IndexItem]]:
    """Every segment and copy that is intact, in the order of the file, and where it is."""
    patience = 2 * file.size + _PATIENCE
    for offset in find_records(file, (Tag.SEGMENT, Tag.SEGMENT_COPY), OPENING_SIZE):
        try:
            header = RecordHeader(*RECORD_HEADER.unpack(file.read(offset, RECORD_HEADER.size)))
            size = header.size + SKIPPABLE.size
            if header.uuid != uuid or size > MAX_SEGMENT + OVERHEAD:
                continue
            data = file.read(offset, size)
            patience -= size
            payload = decode_record(data, header.tag, uuid).payload
        except (ImageError, ReadFailedError):
            if patience < 0:
                break
            continue
        patience += size
        segment = _decode(payload, head)
        if segment is None:
            continue
        item = IndexItem(segment.start, segment.end, 0, 0, size, 0, algorithm.digest(payload))
        if header.tag == Tag.SEGMENT_COPY:
            yield segment, item._replace(copy_offset=offset)
        elif _follows_its_frames(segment, offset):
            yield segment, item._replace(offset=offset)


def _follows_its_frames(segment: Segment, offset: int) -> bool:
    """Whether a segment stands where a writer puts it, and is not the content of a chunk."""
    last = segment.entries[-1]
    return offset - (last.offset + last.stored_size) in (0, PART_RECORD_SIZE)


def _tile(segments: dict[int, IndexItem], copies: dict[int, IndexItem]) -> list[IndexItem]:
    """Segments in disk order, with their copies; copies alone where there is no segment."""
    items: list[IndexItem] = []
    for start in sorted(segments):
        item, copy = segments[start], copies.get(start)
        if copy is not None and copy.payload_hash == item.payload_hash:
            item = item._replace(copy_offset=copy.copy_offset)
        if not items or items[-1].end <= start:
            items.append(item)
    held = Extents.of((item.start, item.end) for item in items)
    end = 0
    for start in sorted(copies):
        copy = copies[start]
        if start >= end and not held.count(start, copy.end):
            items.append(copy)
            end = copy.end
    return sorted(items)


def _decode(payload: bytes, head: Head) -> Segment | None:
    try:
        return decode_segment(payload, head)
    except UnsupportedImageError:
        raise
    except ImageError:
        return None


def _read_around_damage(file: ImageFile, part: Part, offset: int, size: int) -> bytes:
    """The bytes, with zeros in place of the sectors that cannot be read."""
    try:
        return file.read(offset, size)
    except (ImageError, ReadFailedError):
        middle = (offset + size // 2 - part.start) // _SECTOR * _SECTOR + part.start
        if not offset < middle < offset + size:
            if size <= _SECTOR:
                return bytes(size)
            middle = offset + _SECTOR
        return _read_around_damage(file, part, offset, middle - offset) + _read_around_damage(
            file, part, middle, offset + size - middle
        )
