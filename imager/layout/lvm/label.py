"""The binary part of a physical volume: label, header, and the headers of its metadata areas."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

_LABEL = struct.Struct("<8sQII8s")
_LABEL_ID, _LABEL_TYPE = b"LABELONE", b"LVM2 001"
_LABEL_SECTORS = 4
"""The label stands in one of the first four sectors of 512 bytes."""
_SECTOR = 512
_CRC_FROM = 20
"""The label's checksum covers the rest of its sector from here."""

_PV_HEADER = struct.Struct("<32sQ")
_AREA = struct.Struct("<QQ")
_EXTENSION = struct.Struct("<II")

_MDA_HEADER = struct.Struct("<I16sIQQ")
_MDA_MAGIC = b" LVM2 x[5A%r0N*>"
_MDA_HEADER_SIZE = 512
_RAW_LOCATION = struct.Struct("<QQII")
_IGNORED = 1
"""Flag of a location: this area is not kept up to date (`pvchange --metadataignore`)."""
_MAX_TEXT = 4 << 20
"""Bytes; a group of a thousand volumes takes a tenth of that."""
_CRC_INITIAL = 0xF597A6CF


class Area(NamedTuple):
    """A range of the physical volume, in bytes; size 0 means up to its end."""

    offset: int
    size: int


class Location(NamedTuple):
    """Where a metadata area has its text: `raw_locn`; offset 0 means nowhere."""

    offset: int
    size: int
    checksum: int
    flags: int


@dataclass(frozen=True)
class PhysicalVolume:
    """What a physical volume says of itself."""

    uuid: str
    """32 characters, without the hyphens with which LVM shows it."""
    device_size: int
    data: Area
    metadata: tuple[str, ...]
    """The text of each metadata area that is in use; none where it belongs to no group."""


def checksum(data: bytes) -> int:
    """LVM's CRC-32: the usual polynomial, another beginning, no inversion at the end."""
    return zlib.crc32(data, _CRC_INITIAL ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_label(volume: Volume) -> PhysicalVolume:
    """Read a physical volume; NotUnderstoodError where anything is damaged, ReadFailedError."""
    if volume.size < _LABEL_SECTORS * _SECTOR:
        raise NotUnderstoodError("too small for an LVM physical volume")
    start = volume.read(0, _LABEL_SECTORS * _SECTOR)
    places = range(0, len(start), _SECTOR)
    found = [at for at in places if start[at : at + 8] == _LABEL_ID]
    if len(found) != 1:
        raise NotUnderstoodError("it has no LVM label, or more than one")
    sector = start[found[0] : found[0] + _SECTOR]
    _, number, stored, offset, kind = _LABEL.unpack_from(sector)
    if number * _SECTOR != found[0] or kind != _LABEL_TYPE:
        raise NotUnderstoodError("its LVM label is of another kind")
    if checksum(sector[_CRC_FROM:]) != stored:
        raise NotUnderstoodError("the checksum of its LVM label is wrong")
    if not _LABEL.size <= offset <= _SECTOR - _PV_HEADER.size:
        raise NotUnderstoodError("its LVM label makes no sense")
    uuid, size = _PV_HEADER.unpack_from(sector, offset)
    data, at = _areas(sector, offset + _PV_HEADER.size)
    areas, _ = _areas(sector, at)
    if not uuid.isascii() or len(data) != 1 or size > volume.size:
        raise NotUnderstoodError("its LVM label makes no sense, or it is larger than its volume")
    texts = tuple(filter(None, (_text(volume, area) for area in areas)))
    return PhysicalVolume(uuid.decode(), size, data[0], texts)


def _areas(sector: bytes, offset: int) -> tuple[list[Area], int]:
    """A list of areas that ends with an empty one, and where it ends."""
    found: list[Area] = []
    while offset + _AREA.size <= len(sector):
        area = Area(*_AREA.unpack_from(sector, offset))
        offset += _AREA.size
        if not area.offset:
            return found, offset
        found.append(area)
    raise NotUnderstoodError("a list in its LVM label has no end")


def _text(volume: Volume, area: Area) -> str | None:
    """The metadata in an area, None where it has none or is ignored."""
    if not _MDA_HEADER_SIZE < area.size <= volume.size - area.offset:
        raise NotUnderstoodError("an LVM metadata area lies outside of the volume")
    header = volume.read(area.offset, _MDA_HEADER_SIZE)
    stored, magic, version, start, size = _MDA_HEADER.unpack_from(header)
    if magic != _MDA_MAGIC or version != 1 or Area(start, size) != area:
        raise NotUnderstoodError("the header of an LVM metadata area is damaged")
    if checksum(header[4:]) != stored:
        raise NotUnderstoodError("the checksum of an LVM metadata area's header is wrong")
    locations = [
        Location(*_RAW_LOCATION.unpack_from(header, _MDA_HEADER.size + number * _RAW_LOCATION.size))
        for number in range(2)
    ]
    if locations[1].offset:
        raise NotUnderstoodError("a change of its LVM group was not finished")
    if locations[0].flags & _IGNORED or not locations[0].offset:
        return None
    return _ring(volume, area, locations[0])


def _ring(volume: Volume, area: Area, at: Location) -> str:
    """The text at a location of the ring behind an area's header."""
    room = area.size - _MDA_HEADER_SIZE
    if not (_MDA_HEADER_SIZE <= at.offset < area.size and 0 < at.size <= min(room, _MAX_TEXT)):
        raise NotUnderstoodError("LVM metadata lie outside of their area")
    first = min(at.size, area.size - at.offset)
    text = volume.read(area.offset + at.offset, first)
    if first < at.size:
        text += volume.read(area.offset + _MDA_HEADER_SIZE, at.size - first)
    if checksum(text) != at.checksum:
        raise NotUnderstoodError("the checksum of LVM metadata is wrong")
    try:
        return text.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise NotUnderstoodError("LVM metadata are no text") from None
