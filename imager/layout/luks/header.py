"""The headers of LUKS: where the ciphertext is, and how it was made."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

_SECTOR = 512
_MAGIC, _MAGIC_SECONDARY = b"LUKS\xba\xbe", b"SKUL\xba\xbe"

_HEADER_1 = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT_1 = struct.Struct(">II32sII")
_SLOTS_1 = 8
_ENABLED, _DISABLED = 0x00AC71F3, 0x0000DEAD

_HEADER_2 = struct.Struct(">6sHQQ48s32s64s40s48sQ184x64s")
_CHECKSUM_AT = 448
_HEADER_2_SIZE = 4096
_SIZES_2 = tuple(_HEADER_2_SIZE << shift for shift in range(2, 11))
"""Allowed sizes of a header with its JSON area: 16 KiB to 4 MiB (section 2.4)."""
_SECTOR_SIZES = (512, 1024, 2048, 4096)
_DECIMAL = re.compile(r"[0-9]{1,19}", re.ASCII)


class _Header1(NamedTuple):
    """struct luks_phdr (specification 1, figure 1); offsets in sectors of 512 bytes."""

    magic: bytes
    version: int
    cipher_name: bytes
    cipher_mode: bytes
    hash_spec: bytes
    payload_offset: int
    key_bytes: int
    mk_digest: bytes
    mk_digest_salt: bytes
    mk_digest_iter: int
    uuid: bytes


class _Header2(NamedTuple):
    """struct luks2_hdr_disk (specification 2, section 2.1)."""

    magic: bytes
    version: int
    hdr_size: int
    seqid: int
    label: bytes
    csum_alg: bytes
    salt: bytes
    uuid: bytes
    subsystem: bytes
    hdr_offset: int
    csum: bytes


@dataclass(frozen=True)
class Header:
    """Where the ciphertext of a LUKS volume is, in bytes, and its cipher."""

    version: int
    uuid: str
    offset: int
    size: int
    cipher: str
    """As the kernel writes it: "aes-xts-plain64"."""
    sector_size: int
    """What is encrypted in one piece, bytes."""
    iv_offset: int
    """The number of the first sector, in sectors of 512 bytes."""


def read_header(volume: Volume) -> Header:
    """Read a LUKS header; NotUnderstoodError where it is damaged or not of the plain kind."""
    if volume.size < _HEADER_2_SIZE:
        raise NotUnderstoodError("too small for LUKS")
    start = volume.read(0, _HEADER_2_SIZE)
    if start[:6] != _MAGIC:
        raise NotUnderstoodError("its LUKS header is damaged")
    version = int.from_bytes(start[6:8], "big")
    if version == 1:
        header = _read_1(start, volume.size)
    elif version == 2:
        header = _read_2(volume, start)
    else:
        raise NotUnderstoodError("LUKS of a version that is not known")
    if header.offset + header.size > volume.size or header.size <= 0:
        raise NotUnderstoodError("its LUKS volume is larger than what it lies in")
    return header


def _read_1(start: bytes, size: int) -> Header:
    found = _Header1(*_HEADER_1.unpack_from(start))
    offset = found.payload_offset * _SECTOR
    slots = [
        _SLOT_1.unpack_from(start, _HEADER_1.size + number * _SLOT_1.size)
        for number in range(_SLOTS_1)
    ]
    if any(slot[0] not in (_ENABLED, _DISABLED) for slot in slots):
        raise NotUnderstoodError("its LUKS header is damaged")
    if not 0 < found.key_bytes <= 512:
        raise NotUnderstoodError("its LUKS header is damaged")
    ends = [(slot[3] * _SECTOR + slot[4] * found.key_bytes) for slot in slots]
    # With a header of its own elsewhere the offset is 0, and nothing is known of this volume.
    if not offset or max(ends) > offset or offset >= size:
        raise NotUnderstoodError("its LUKS header makes no sense")
    cipher = f"{_text(found.cipher_name)}-{_text(found.cipher_mode)}"
    return Header(1, _text(found.uuid), offset, _rounded(size - offset, _SECTOR), cipher, 512, 0)


def _read_2(volume: Volume, start: bytes) -> Header:
    first = _checked(volume, 0, _MAGIC)
    header = _Header2(*_HEADER_2.unpack_from(first))
    second = _checked(volume, header.hdr_size, _MAGIC_SECONDARY)
    copy = _Header2(*_HEADER_2.unpack_from(second))
    text = first[_HEADER_2_SIZE:].rstrip(b"\0")
    if copy.seqid != header.seqid or text != second[_HEADER_2_SIZE:].rstrip(b"\0"):
        raise NotUnderstoodError("the two copies of its LUKS header differ")
    try:
        area = json.loads(text)
    except (ValueError, RecursionError):
        raise NotUnderstoodError("its LUKS header is damaged") from None
    return _describe_2(area, _text(header.uuid), 2 * header.hdr_size, volume.size)


def _checked(volume: Volume, offset: int, magic: bytes) -> bytes:
    """A binary header with its JSON area, the checksum over both proven."""
    if offset + _HEADER_2_SIZE > volume.size:
        raise NotUnderstoodError("its LUKS header is damaged")
    found = _Header2(*_HEADER_2.unpack_from(volume.read(offset, _HEADER_2_SIZE)))
    size = found.hdr_size
    if found.magic != magic or found.version != 2 or found.hdr_offset != offset:
        raise NotUnderstoodError("a copy of its LUKS header is damaged")
    if size not in _SIZES_2 or offset not in (0, size) or offset + size > volume.size:
        raise NotUnderstoodError("a copy of its LUKS header makes no sense")
    whole = volume.read(offset, size)
    algorithm = _text(found.csum_alg)
    if algorithm not in ("sha1", "sha256", "sha512"):
        raise NotUnderstoodError("its LUKS header has a checksum that is not known")
    blank = whole[:_CHECKSUM_AT] + bytes(64) + whole[_CHECKSUM_AT + 64 :]
    digest = hashlib.new(algorithm, blank).digest()
    if not found.csum.startswith(digest):
        raise NotUnderstoodError("the checksum of a copy of its LUKS header is wrong")
    return whole


def _describe_2(area: Any, uuid: str, header_end: int, volume_size: int) -> Header:
    """What the JSON area says (section 3)."""
    config = area.get("config") if isinstance(area, dict) else None
    segments = area.get("segments") if isinstance(area, dict) else None
    if not isinstance(config, dict) or not isinstance(segments, dict):
        raise NotUnderstoodError("its LUKS header makes no sense")
    requirements = config.get("requirements", {})
    if not isinstance(requirements, dict) or requirements.get("mandatory"):
        raise NotUnderstoodError(
            "its LUKS volume is being encrypted anew, or needs what is not known"
        )
    if [*segments] != ["0"] or not isinstance(segments["0"], dict):
        raise NotUnderstoodError("its LUKS volume has more than one segment")
    segment = segments["0"]
    if segment.get("type") != "crypt" or segment.get("flags"):
        raise NotUnderstoodError("its LUKS volume is of a kind that is not known")
    if "integrity" in segment:
        raise NotUnderstoodError("its LUKS volume has authentication tags")
    offset, iv_offset = _decimal(segment, "offset"), _decimal(segment, "iv_tweak")
    sector_size, cipher = segment.get("sector_size"), segment.get("encryption")
    if sector_size not in _SECTOR_SIZES or not isinstance(cipher, str):
        raise NotUnderstoodError("its LUKS header makes no sense")
    if segment.get("size") == "dynamic":
        size = _rounded(volume_size - offset, sector_size)
    else:
        size = _decimal(segment, "size")
    if offset < header_end or offset % _SECTOR or size % sector_size:
        raise NotUnderstoodError("its LUKS header makes no sense")
    return Header(2, uuid, offset, size, cipher, sector_size, iv_offset)


def _decimal(segment: dict[str, Any], key: str) -> int:
    """JSON has no 64-bit numbers: LUKS2 writes them as strings."""
    text = segment.get(key)
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        raise NotUnderstoodError("its LUKS header makes no sense")
    return int(text)


def _rounded(size: int, unit: int) -> int:
    return size // unit * unit


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("ascii", "replace")
