"""Records: skippable frames of ours that carry their own hash.

    magic u32 | size u32 | tag 4 | hash algorithm u16 | 0 u16 | image UUID 16 | payload | hash 32

The hash is over everything before it, the frame's own header included.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from imager.errors import ImageError
from imager.image.format import RECORD_HEADER, SKIPPABLE, SKIPPABLE_RECORD, RecordHeader
from imager.image.hashing import HASH_SIZE, HashAlgorithm, hash_algorithm_number

OVERHEAD = RECORD_HEADER.size + HASH_SIZE
"""Bytes that a record takes beside its payload."""


class Record(NamedTuple):
    """A record whose hash was found right."""

    tag: bytes
    uuid: bytes
    algorithm: HashAlgorithm
    payload: bytes


def encode_record(tag: bytes, uuid: bytes, algorithm: HashAlgorithm, payload: bytes) -> bytes:
    """The record's bytes."""
    size = RECORD_HEADER.size - SKIPPABLE.size + len(payload) + HASH_SIZE
    header = RecordHeader(SKIPPABLE_RECORD, size, tag, algorithm.number, 0, uuid)
    body = RECORD_HEADER.pack(*header) + payload
    return body + algorithm.digest(body)


def record_size(header: bytes) -> int | None:
    """Bytes of the record that begins with these (at least 8) bytes; None if none begins here."""
    magic, size = SKIPPABLE.unpack_from(header)
    return SKIPPABLE.size + size if magic == SKIPPABLE_RECORD else None


def decode_record(data: bytes, tag: bytes, uuid: bytes | None = None) -> Record:
    """The record that fills `data`; ImageError unless it is whole, `tag`, and of image `uuid`."""
    name = tag.decode()
    if len(data) < OVERHEAD:
        raise ImageError(f"the {name} record is cut short")
    header = RecordHeader(*RECORD_HEADER.unpack_from(data))
    if header.magic != SKIPPABLE_RECORD or header.tag != tag:
        raise ImageError(f"there is no {name} record where one should be")
    if header.size + SKIPPABLE.size != len(data):
        raise ImageError(f"the {name} record has a wrong length")
    algorithm = hash_algorithm_number(header.hash_algorithm)
    if algorithm.digest(memoryview(data)[:-HASH_SIZE]) != data[-HASH_SIZE:]:
        raise ImageError(f"the {name} record is damaged (its hash differs)")
    if header.reserved or (uuid is not None and header.uuid != uuid):
        raise ImageError(f"the {name} record belongs to another image")
    return Record(tag, header.uuid, algorithm, data[RECORD_HEADER.size : -HASH_SIZE])


def record_pattern(*tags: bytes) -> re.Pattern[bytes]:
    """Finds places in damaged data where a record with one of these tags may begin."""
    magic = re.escape(SKIPPABLE_RECORD.to_bytes(4, "little"))
    return re.compile(magic + b".{4}(?:" + b"|".join(map(re.escape, tags)) + b")", re.DOTALL)
