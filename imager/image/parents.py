"""The table of images that an incremental image refers to, as its head holds it."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass

from imager.errors import ImageError
from imager.image.format import MAX_PARENTS
from imager.image.hashing import HASH_SIZE

_LONGEST_NAME = 255


@dataclass(frozen=True)
class ParentReference:
    """An image by what never changes; where it lies is only a hint."""

    uuid: bytes
    content_digest: bytes
    created: str
    """As the image's head says it."""
    file: str
    """What it was called, without a folder; it may have been renamed since."""
    disk_size: int
    """Bytes."""
    chunk_size: int
    """Bytes."""

    def to_json(self) -> dict[str, object]:
        """As in the head."""
        return {
            "uuid": str(uuid.UUID(bytes=self.uuid)),
            "content_digest": self.content_digest.hex(),
            "created": self.created,
            "file": self.file,
            "disk_size": self.disk_size,
            "chunk_size": self.chunk_size,
        }

    def describe(self) -> str:
        """Which image it is, for a person: file, date and id."""
        name = self.file or "an image without a name"
        return f"{name} of {self.created or 'unknown date'} (id {uuid.UUID(bytes=self.uuid)})"


def decode_parents(table: object, disk_size: int, chunk_size: int) -> tuple[ParentReference, ...]:
    """Parse the untrusted table of an incremental image with this geometry; ImageError if wrong."""
    if not isinstance(table, list) or not 1 <= len(table) <= MAX_PARENTS:
        raise ImageError("an incremental image names no parent, or too many")
    return tuple(_reference(item, disk_size, chunk_size) for item in table)


def _reference(item: object, disk_size: int, chunk_size: int) -> ParentReference:
    if not isinstance(item, dict):
        raise ImageError("the reference to the parent image makes no sense")
    try:
        reference = ParentReference(
            uuid.UUID(_text(item, "uuid")).bytes,
            bytes.fromhex(_text(item, "content_digest")),
            _date(_text(item, "created")),
            _plain_name(_text(item, "file")),
            _number(item, "disk_size"),
            _number(item, "chunk_size"),
        )
    except ValueError:
        raise ImageError("the reference to the parent image makes no sense") from None
    if len(reference.content_digest) != HASH_SIZE:
        raise ImageError("the reference to the parent image makes no sense")
    if (reference.disk_size, reference.chunk_size) != (disk_size, chunk_size):
        raise ImageError("the parent image is of a disk of another size, or has other chunks")
    return reference


def _text(item: dict[str, object], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise ValueError(key)
    return value


def _number(item: dict[str, object], key: str) -> int:
    value = item.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(key)
    return value


def _date(text: str) -> str:
    """A date that goes into messages is one."""
    return text and datetime.datetime.fromisoformat(text).isoformat()


def _plain_name(name: str) -> str:
    """The hint, if it is a file's name; without one the search has to do."""
    plain = not ({"/", "\0"} & set(name)) and name not in (".", "..")
    return name if plain and len(name.encode(errors="replace")) <= _LONGEST_NAME else ""
