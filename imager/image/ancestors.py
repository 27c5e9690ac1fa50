"""Finds the image that another one refers to: by name if it is still called so, else by its id."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from imager.errors import ImageError, ReadFailedError
from imager.image.files import ImageFile
from imager.image.format import (
    MAX_JSON,
    OPENING_SIZE,
    RECORD_HEADER,
    SKIPPABLE,
    SKIPPABLE_RECORD,
    RecordHeader,
    Tag,
)
from imager.image.head import Head, decode_head
from imager.image.parents import ParentReference
from imager.image.reader import Completeness, ImageReader
from imager.image.records import OVERHEAD, decode_record, record_size


def read_head(path: Path) -> tuple[bytes, Head]:
    """UUID and head of an image, finished or not, without looking at the rest of it.

    Raises ImageError where the head is damaged or this is no image, ReadFailedError where it cannot
    be read.
    """
    with ImageFile(path) as file:
        size = record_size(file.read(OPENING_SIZE, SKIPPABLE.size))
        if size is None or size > MAX_JSON + OVERHEAD:
            raise ImageError(f"{path} is not an imager image, or its head is damaged")
        record = decode_record(file.read(OPENING_SIZE, size), Tag.HEAD)
        return record.uuid, decode_head(record.payload)


def find_image(
    child: ImageReader, reference: ParentReference, elsewhere: Sequence[Path] = ()
) -> ImageReader:
    """Open an image that `child` refers to, which lies in the same folder, or in one `elsewhere`.

    Raises ImageError, which names file, date and id, where it is missing, unfinished or not what it
    was.
    """
    folders = tuple(dict.fromkeys((child.file.path.absolute().parent, *elsewhere)))
    doubt = f"is missing: it is not in {' or '.join(map(str, folders))}"
    for path in _candidates(reference, folders):
        try:
            found = ImageReader(path)
        except (ImageError, ReadFailedError) as error:
            if _uuid_of(path) == reference.uuid:
                doubt = f"cannot be used: {error}"
            continue
        if found.uuid == reference.uuid:
            why = _why_not(found, child, reference)
            if not why:
                return found
            doubt = f"cannot be used: {found.file.path} {why}"
        found.file.close()
    raise ImageError(f"the parent image {reference.describe()} {doubt}")


def _why_not(found: ImageReader, child: ImageReader, reference: ParentReference) -> str:
    """What keeps an image with the right id from being the parent; empty if nothing does."""
    head = child.head
    if found.completeness is not Completeness.COMPLETE or found.footer is None:
        return f"is {found.completeness.value}"
    if found.footer.content_digest != reference.content_digest:
        return "has another content digest than it had"
    if (found.head.disk_size, found.head.chunk_size, found.head.sector_size) != (
        head.disk_size,
        head.chunk_size,
        head.sector_size,
    ) or found.algorithm != child.algorithm:
        return "is of a disk of another size, or has other chunks"
    return ""


def _candidates(reference: ParentReference, folders: Sequence[Path]) -> Iterator[Path]:
    """The files of the hint's name, and then all in the folders whose heads have the id."""
    if reference.file:
        for folder in folders:
            yield folder / reference.file
    for folder in folders:
        try:
            names = sorted(folder.iterdir())
        except OSError:
            continue
        for path in names:
            if path.is_file() and _uuid_of(path) == reference.uuid:
                yield path


def _uuid_of(path: Path) -> bytes | None:
    """The UUID in the head of an image or of its first part; None for any other file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.pread(fd, RECORD_HEADER.size, OPENING_SIZE)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(data) < RECORD_HEADER.size:
        return None
    header = RecordHeader(*RECORD_HEADER.unpack(data))
    right = header.magic == SKIPPABLE_RECORD and header.tag == Tag.HEAD
    return header.uuid if right else None
