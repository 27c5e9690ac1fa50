"""Finds records in an image whose end or index is lost.

Records carry a magic number, the image's UUID and their own hash, so they are found wherever they
lie; what looks like one inside of a chunk (the disk may hold images, too) has another UUID.
"""

from __future__ import annotations

from collections.abc import Iterator

from imager.errors import ImageError, ReadFailedError, UnsupportedImageError
from imager.image.files import ImageFile, Part
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
    found: dict[int, IndexItem] = {}
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
        if segment is not None:
            item = IndexItem(segment.start, segment.end, 0, 0, size, 0, algorithm.digest(payload))
            known = found.setdefault(segment.start, item)
            if known.payload_hash == item.payload_hash:
                found[segment.start] = (
                    known._replace(offset=offset)
                    if header.tag == Tag.SEGMENT
                    else known._replace(copy_offset=offset)
                )
    items: list[IndexItem] = []
    for start in sorted(found):
        if not items or items[-1].end <= start:
            items.append(found[start])
    return items


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
