"""The journal of HFS+: whether it has to be replayed. A replay is left out.

Source: Apple Technical Note TN1150, section "Journal": Journal Info Block, Journal Header. The info
block is big-endian, the journal in the byte order of the machine that made it.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.hfsplus.header import Header

_MAGIC, _ENDIAN = 0x4A4E4C78, 0x12345678
_INFO = struct.Struct(">I32sQQ")


class InfoFlags(IntFlag):
    """Bits of the info block's `flags`."""

    IN_FS = 1
    ON_OTHER_DEVICE = 2
    NEED_INIT = 4


class JournalHeader(NamedTuple):
    """The beginning of journal_header."""

    magic: int
    endian: int
    start: int
    end: int
    size: int


_HEADERS = (struct.Struct("<IIQQQ"), struct.Struct(">IIQQQ"))


def check_journal(volume: Volume, header: Header) -> list[tuple[int, int]]:
    """The byte ranges of the info block and of the journal, which has to be empty.

    Raises NotUnderstoodError where it is not, or is on another device, or leaves a doubt.
    """
    number = header.volume.journalInfoBlock
    if not 0 < number < header.volume.totalBlocks:
        raise NotUnderstoodError("journal is out of range")
    at = number * header.block_size
    flags, _, offset, size = _INFO.unpack(volume.read(at, _INFO.size))
    if flags & ~sum(InfoFlags) or not flags & InfoFlags.IN_FS or flags & InfoFlags.ON_OTHER_DEVICE:
        raise NotUnderstoodError("journal is on another device")
    if not (0 < offset <= header.size and 0 < size <= header.size - offset):
        raise NotUnderstoodError("journal is out of range")
    if size < _HEADERS[0].size:
        raise NotUnderstoodError("journal is damaged")
    if not flags & InfoFlags.NEED_INIT:
        _check_empty(volume.read(offset, _HEADERS[0].size), size)
    return [(at, at + _INFO.size), (offset, offset + size)]


def _check_empty(data: bytes, size: int) -> None:
    for layout in _HEADERS:
        found = JournalHeader._make(layout.unpack(data))
        if (found.magic, found.endian) == (_MAGIC, _ENDIAN):
            break
    else:
        raise NotUnderstoodError("journal is damaged")
    if found.size != size or max(found.start, found.end) > size:
        raise NotUnderstoodError("journal is damaged")
    if found.start != found.end:
        raise NotUnderstoodError("its journal was not replayed")
