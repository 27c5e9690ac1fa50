"""Records of the log: a header, and what transactions logged.

    | header | [more headers: words of sectors 64 ...] | sector | sector | ...

The first word of each sector on disk is the cycle number; the words that belong there are kept in the
headers. XFS Filesystem Structure, "Log Records"; names are those of the kernel's
fs/xfs/libxfs/xfs_log_format.h.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from crc32c import crc32c

from imager.errors import NotUnderstoodError
from imager.filesystems.xfs.layout import Layout
from imager.filesystems.xfs.log import MAX_RECORD, RECORD_MAGIC, SECTOR, Log

_VERSIONS = (1, 2)
_FORMAT_LITTLE_ENDIAN = 1
_WORD = 4
_WORDS = 64  # for as many sectors a header has room
_WORDS_AT = 44
_MORE_WORDS_AT = 4
_MORE_SIZE = _MORE_WORDS_AT + _WORDS * _WORD
_CRC = slice(32, 36)
_HEADER_SIZES = (328, 324)
"""What the checksum covers of the header: machines with 32 bits know no padding at its end."""
_UNMOUNT_FLAG = 0x20
_UNMOUNT_FLAG_AT = 9  # in struct xlog_op_header


class RecordHeader(NamedTuple):
    """struct xlog_rec_header, without the words of sectors."""

    h_magicno: int
    h_cycle: int
    h_version: int
    h_len: int
    h_lsn: int
    h_tail_lsn: int
    h_crc: int
    h_num_logops: int
    h_fmt: int
    h_fs_uuid: bytes
    h_size: int

    @property
    def header_sectors(self) -> int:
        """How many sectors the header takes."""
        if self.h_version == 1:
            return 1
        return max(-(-self.h_size // (_WORDS * SECTOR)), 1)

    @property
    def sectors(self) -> int:
        """How many sectors the record takes."""
        return self.header_sectors + -(-self.h_len // SECTOR)

    @property
    def describes_all(self) -> bool:
        """Whether it has room for the words of all its sectors. In mkfs's only record it may not."""
        return self.header_sectors * _WORDS * SECTOR >= self.h_len


_HEADER = struct.Struct(">IIIIQQ4x4xI256xI16sI")
_CHECKSUM = struct.Struct("<I")
_CYCLE = struct.Struct(">I")


def read_header(log: Log, layout: Layout, at: int) -> RecordHeader:
    """The header in sector `at`; NotUnderstoodError unless it can be one of this log's."""
    data = log.read(at, 1)
    magic, cycle, version, length, lsn, tail_lsn, operations, form, uuid, size = (
        _HEADER.unpack_from(data)
    )
    (crc,) = _CHECKSUM.unpack_from(data, _CRC.start)
    header = RecordHeader(
        magic, cycle, version, length, lsn, tail_lsn, crc, operations, form, uuid, size
    )
    if header.h_fs_uuid != layout.uuid:
        raise NotUnderstoodError("its log belongs to another file system")
    if header.h_fmt != _FORMAT_LITTLE_ENDIAN:
        raise NotUnderstoodError("its log is of another kind of machine")
    if not (
        magic == RECORD_MAGIC
        and version in _VERSIONS
        and lsn == cycle << 32 | at % log.size
        and 0 < length <= MAX_RECORD * SECTOR
        and size <= MAX_RECORD * SECTOR
        and header.sectors <= min(MAX_RECORD, log.size)
    ):
        raise NotUnderstoodError("its log is damaged")
    return header


def read_record(log: Log, layout: Layout, at: int, header: RecordHeader) -> bytes:
    """What the record whose header is in sector `at` holds.

    NotUnderstoodError for a wrong checksum. In version 4, older kernels have written none.
    """
    return _body(layout, header, log.read(at, header.sectors))


def was_cut_off(log: Log, layout: Layout, at: int, header: RecordHeader, head: int) -> bool:
    """Whether a record that reaches beyond the head was not written to its end.

    The other possibility is that the cycle number behind the head is damaged.
    """
    data = bytearray(log.read(at, header.sectors))
    for sector in range(head, at + header.sectors):
        cycle = header.h_cycle + (sector % log.size < at % log.size)
        _CYCLE.pack_into(data, (sector - at) * SECTOR, cycle)
    try:
        _body(layout, header, bytes(data))
    except NotUnderstoodError:
        return True
    return not header.h_crc


def _body(layout: Layout, header: RecordHeader, data: bytes) -> bytes:
    """What a record holds, with the words of its sectors in their places."""
    if not header.describes_all:
        raise NotUnderstoodError("its log is damaged")
    start = header.header_sectors * SECTOR
    body = bytearray(data[start : start + header.h_len])
    words = bytearray()
    sectors = -(-header.h_len // SECTOR)
    covered = []
    for index in range(-(-sectors // _WORDS)):
        at_words = index * SECTOR + (_MORE_WORDS_AT if index else _WORDS_AT)
        words += data[at_words : at_words + _WORDS * _WORD]
        if index:
            covered.append(data[index * SECTOR : index * SECTOR + _MORE_SIZE])
    if (header.h_crc or layout.checksums) and not any(
        _checksum(data[:size], covered, body) == header.h_crc for size in _HEADER_SIZES
    ):
        raise NotUnderstoodError("its log is damaged")
    for byte in range(_WORD):
        body[byte::SECTOR] = words[byte : sectors * _WORD : _WORD]
    return bytes(body)


def is_unmount(log: Log, header: RecordHeader, at: int) -> bool:
    """Whether the record in sector `at` says that all is in its place: the last one of a mount.

    mkfs writes one, too, without a checksum.
    """
    if header.h_num_logops != 1:
        return False
    operation = log.read(at + header.header_sectors, 1)
    return bool(operation[_UNMOUNT_FLAG_AT] & _UNMOUNT_FLAG)


def _checksum(header: bytes, more: list[bytes], body: bytearray) -> int:
    crc: int = crc32c(header[: _CRC.start])
    crc = crc32c(header[_CRC.stop :], crc32c(bytes(4), crc))
    for part in more:
        crc = crc32c(part, crc)
    crc = crc32c(bytes(body), crc)
    return crc
