"""Fast commits: which blocks they put to use, behind the last full commit of the log.

A fast commit does not hold blocks; it describes what became of some inodes and names, as records of
tag, length and value. What became of their data is in ADD_RANGE: an extent that belongs to an inode
from now on. All else that a replay needs (directory blocks, extent trees) it allocates anew, from
blocks that are free and not in any ADD_RANGE, and overwrites; what cannot be described so (extended
attributes, resizing, ...) is never committed this way. So the blocks with content that a replay may
reach are those in use before it, and those of all ADD_RANGE: their union is a map for the volume
whether the kernel, e2fsck or nobody replays it. What DEL_RANGE frees is kept.

    | HEAD tid | ADD_RANGE | INODE | ... | TAIL tid crc, padding | ADD_RANGE | ... | TAIL | older ...

Every block begins with a record, and a record does not cross blocks. A commit counts once its TAIL
is there; the first that does not belong to the transaction at the log's end is a remainder of an
earlier one, as are all behind it. Linux documentation, "ext4 Data Structures and Algorithms",
section Journal (jbd2), Fast commits; values: struct ext4_fc_tail and others of that section.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems.ext.checksum import crc32c
from imager.filesystems.ext.journal import Journal, JournalIncompat, is_before
from imager.filesystems.ext.layout import Layout


class Tag(IntEnum):
    """Kinds of records."""

    ADD_RANGE = 1
    DEL_RANGE = 2
    CREAT = 3
    LINK = 4
    UNLINK = 5
    INODE = 6
    PAD = 7
    TAIL = 8
    HEAD = 9


_RECORD = struct.Struct("<HH")  # fc_tag, fc_len
_HEAD = struct.Struct("<II")  # fc_features, fc_tid
_TAIL = struct.Struct("<II")  # fc_tid, fc_crc
_TAIL_CHECKED = 4  # fc_crc covers what comes before it
_ADD_RANGE = struct.Struct("<IIHHI")  # fc_ino, and a struct ext4_extent
_UNWRITTEN = 32768  # a greater ee_len is of blocks not yet written, and this much too great

_MAX_RANGES = 1 << 18
"""Extents that are kept in memory; the usual 256 blocks of 4 KiB have room for a fifth of that."""

_FIXED = {Tag.ADD_RANGE: _ADD_RANGE.size, Tag.HEAD: _HEAD.size, Tag.DEL_RANGE: 12}
"""Lengths of values that have only one."""


class _Remainder(Exception):
    """What follows was written before the transaction at the end of the log."""


def read_fast_commits(journal: Journal, sequence: int, layout: Layout) -> Extents:
    """The bytes that fast commits in transaction `sequence`, the first not in the log, put to use.

    Raises NotUnderstoodError where one is damaged.
    """
    if JournalIncompat.FAST_COMMIT not in journal.incompat:
        return Extents()
    # The kernel writes from one block behind the log's end on, and this also at the end.
    for first in (journal.end, journal.end + 1):
        if first < journal.file.count and _begins(journal.file.read(first, 1), sequence):
            return _read_area(journal, first, sequence, layout)
    return Extents()


def _begins(block: bytes, sequence: int) -> bool:
    """Whether fast commits of the transaction `sequence` begin with this block."""
    tag, length = _RECORD.unpack_from(block)
    if tag != Tag.HEAD or length != _HEAD.size:
        return False
    features, tid = _HEAD.unpack_from(block, _RECORD.size)
    if is_before(tid, sequence):
        return False
    if tid != sequence or features:
        raise NotUnderstoodError("fast commits in the journal are damaged")
    return True


def _read_area(journal: Journal, first: int, sequence: int, layout: Layout) -> Extents:
    area = _Area(sequence, layout)
    try:
        for number in range(first, journal.file.count):
            area.read_block(journal.file.read(number, 1))
    except _Remainder:
        pass
    return Extents.of(area.added + area.pending)


class _Area:
    """The blocks of fast commits, read one after the other."""

    def __init__(self, sequence: int, layout: Layout) -> None:
        self._sequence = sequence
        self._layout = layout
        self._crc = 0
        self.added: list[tuple[int, int]] = []
        """The ranges of whole commits, in bytes."""
        self.pending: list[tuple[int, int]] = []
        """Those of the last, whose end was not found: it may be damage that hides it."""

    def read_block(self, block: bytes) -> None:
        """Take over what the records of a block add; _Remainder where they are of earlier use."""
        at = 0
        while at + _RECORD.size <= len(block):
            tag, length = _RECORD.unpack_from(block, at)
            start, end = at + _RECORD.size, at + _RECORD.size + length
            if end > len(block) or not _is_record(tag, length):
                raise _Remainder
            if tag == Tag.TAIL:
                self._end(block, at, start)
            else:
                self._crc = crc32c(self._crc, block[at:end])
                if tag == Tag.ADD_RANGE:
                    self._add(block[start:end])
                elif tag == Tag.HEAD and _HEAD.unpack_from(block, start)[1] != self._sequence:
                    raise _Remainder
            at = end

    def _end(self, block: bytes, at: int, start: int) -> None:
        """What a TAIL at `at` with its value at `start` says of the records before it."""
        tid, crc = _TAIL.unpack_from(block, start)
        if tid != self._sequence:
            self.pending.clear()
            raise _Remainder
        if crc32c(self._crc, block[at : start + _TAIL_CHECKED]) != crc:
            raise NotUnderstoodError("fast commits in the journal are damaged")
        self.added += self.pending
        self.pending.clear()
        self._crc = 0

    def _add(self, value: bytes) -> None:
        _, _, length, start_hi, start_lo = _ADD_RANGE.unpack(value)
        count = length if length <= _UNWRITTEN else length - _UNWRITTEN
        first = start_hi << 32 | start_lo
        if not self._layout.holds(first, count):
            raise NotUnderstoodError("fast commits in the journal are damaged")
        if len(self.added) + len(self.pending) >= _MAX_RANGES:
            raise NotUnderstoodError("journal has too many fast commits")
        size = self._layout.block_size
        self.pending.append((first * size, (first + count) * size))


def _is_record(tag: int, length: int) -> bool:
    """Whether a record of this length can have this tag."""
    if tag == Tag.TAIL:
        return length >= _TAIL.size
    return Tag.ADD_RANGE <= tag <= Tag.HEAD and length == _FIXED.get(Tag(tag), length)
