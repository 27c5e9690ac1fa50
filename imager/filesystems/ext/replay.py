"""Replaying a journal in memory: which blocks the log would overwrite, and with what.

    descriptor (tags) | logged block | ... | [more descriptors] | revoke | commit |  next sequence

Only whole transactions count, up to the first that is not; what a later transaction logs replaces
what an earlier one did, and a revoked block is taken back. Nothing is written anywhere. Linux
documentation, "ext4 Data Structures and Algorithms", section Journal (jbd2).
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems.ext.blocks import BATCH_BYTES, JOURNAL_MAGIC, LoggedBlock
from imager.filesystems.ext.checksum import CRC_START, crc32_be, crc32c
from imager.filesystems.ext.journal import Journal, JournalCompat, JournalIncompat, is_before

_DESCRIPTOR = 1
_COMMIT = 2
_REVOKE = 5

_TAG_ESCAPE = 0x1
_TAG_SAME_UUID = 0x2
_TAG_DELETED = 0x4
_TAG_LAST = 0x8
_TAG_FLAGS = _TAG_ESCAPE | _TAG_SAME_UUID | _TAG_DELETED | _TAG_LAST
_UUID_SIZE = 16
_TAIL_SIZE = 4  # struct jbd2_journal_block_tail
_CRC32 = 1
_CRC32_SIZE = 4


class BlockHeader(NamedTuple):
    """struct journal_header_s."""

    h_magic: bytes
    h_blocktype: int
    h_sequence: int


class BlockTag(NamedTuple):
    """struct journal_block_tag_s or journal_block_tag3_s, as the features have it."""

    t_blocknr: int
    t_flags: int
    t_checksum: int


class CommitHeader(NamedTuple):
    """struct commit_header behind its block header, without the time."""

    h_chksum_type: int
    h_chksum_size: int
    h_chksum: int


_HEADER = struct.Struct(">4sII")
_TAG = struct.Struct(">IHH")
_TAG_HIGH = struct.Struct(">I")
_TAG3 = struct.Struct(">IIII")
_REVOKE_COUNT = struct.Struct(">I")
_COMMIT_HEADER = struct.Struct(">BB2xI")
_COMMIT_CHECKSUM = slice(16, 20)


class _Incomplete(Exception):
    """The log ends here, or is damaged here."""


def replay(journal: Journal, wanted: Container[int]) -> tuple[dict[int, LoggedBlock], int]:
    """The newest committed copy in the log of each logged block in `wanted`.

    And the number of the transaction that would come next. Raises NotUnderstoodError where a
    transaction that was committed cannot be proven intact.
    """
    if not journal.start:
        return {}, journal.sequence
    log = _Log(journal, wanted)
    try:
        while True:
            log.read_transaction()
    except _Incomplete:
        log.check_end()
    return log.replayed, log.sequence


class _Log:
    """The log as a ring of blocks, read transaction by transaction."""

    def __init__(self, journal: Journal, wanted: Container[int]) -> None:
        self.replayed: dict[int, LoggedBlock] = {}
        self.sequence = journal.sequence
        """The transaction that comes next."""
        self._journal = journal
        self._wanted = wanted
        self._at = journal.start
        self._left = journal.end - journal.first
        self._batch = max(BATCH_BYTES // journal.block_size, 1)
        self._wide = JournalIncompat.SIXTY_FOUR_BIT in journal.incompat
        self._tail = _TAIL_SIZE if journal.has_block_checksums else 0

    def read_transaction(self) -> None:
        """Take over the next transaction's blocks; _Incomplete unless it is whole and intact."""
        start = self._at, self._left
        logged: dict[int, LoggedBlock] = {}
        revoked: list[int] = []
        crc = CRC_START
        try:
            while True:
                block = self._read(1)
                header = BlockHeader._make(_HEADER.unpack_from(block))
                if header.h_magic != JOURNAL_MAGIC or header.h_sequence != self.sequence:
                    raise _Incomplete
                if header.h_blocktype == _DESCRIPTOR:
                    crc = self._read_logged(block, logged, crc32_be(crc, block))
                elif header.h_blocktype == _REVOKE:
                    revoked += self._revoked(block)
                elif header.h_blocktype == _COMMIT:
                    self._check_commit(block, crc)
                    break
                else:
                    raise _Incomplete
        except _Incomplete:
            self._at, self._left = start
            raise
        self.replayed |= logged
        for number in revoked:
            self.replayed.pop(number, None)
        self.sequence = (self.sequence + 1) & 0xFFFFFFFF

    def check_end(self) -> None:
        """Raise NotUnderstoodError if the rest of the ring holds a commit that should count.

        What the log was last time round has lower sequence numbers; a commit of this or a later
        number means that the log did not end here but is damaged. A logged block never begins
        with the magic: it is escaped.
        """
        while self._left:
            count = min(self._batch, self._left, self._journal.end - self._at)
            data = self._read(count)
            for offset in range(0, len(data), self._journal.block_size):
                if not data.startswith(JOURNAL_MAGIC, offset):
                    continue
                header = BlockHeader._make(_HEADER.unpack_from(data, offset))
                if header.h_blocktype == _COMMIT and not is_before(
                    header.h_sequence, self.sequence
                ):
                    raise NotUnderstoodError("journal is damaged")

    def _read(self, count: int) -> bytes:
        """The next `count` blocks of the ring, once round at most."""
        if count > self._left:
            raise _Incomplete
        self._left -= count
        before_wrap = min(count, self._journal.end - self._at)
        data = self._journal.file.read(self._at, before_wrap)
        self._at += before_wrap
        if self._at == self._journal.end:
            self._at = self._journal.first
        if before_wrap < count:
            data += self._journal.file.read(self._at, count - before_wrap)
            self._at += count - before_wrap
        return data

    def _read_logged(self, descriptor: bytes, logged: dict[int, LoggedBlock], crc: int) -> int:
        """Read the blocks behind a descriptor, check them, remember the wanted ones."""
        self._check_tail(descriptor)
        tags = list(self._tags(descriptor))
        size = self._journal.block_size
        seed = crc32c(self._journal.checksum_seed, self.sequence.to_bytes(4, "big"))
        for first in range(0, len(tags), self._batch):
            part = tags[first : first + self._batch]
            at = self._at
            data = self._read(len(part))
            if JournalCompat.CHECKSUM in self._journal.compat:
                crc = crc32_be(crc, data)
            for index, tag in enumerate(part):
                self._check_tag(tag, seed, data[index * size : (index + 1) * size])
                if tag.t_blocknr in self._wanted:
                    place = self._journal.file.place(self._wrap(at + index))
                    logged[tag.t_blocknr] = LoggedBlock(place, bool(tag.t_flags & _TAG_ESCAPE))
        return crc

    def _wrap(self, at: int) -> int:
        journal = self._journal
        return at if at < journal.end else at - journal.end + journal.first

    def _tags(self, descriptor: bytes) -> Iterator[BlockTag]:
        """The tags of a descriptor block, up to the one that says that it is the last."""
        v3 = JournalIncompat.CSUM_V3 in self._journal.incompat
        v2 = JournalIncompat.CSUM_V2 in self._journal.incompat
        # A quirk of the kernel: with checksums of version 2 a tag has two spare bytes at its end.
        short = _TAG.size + (_TAG_HIGH.size if self._wide else 0) + (2 if v2 else 0)
        tag_size = _TAG3.size if v3 else short
        end = len(descriptor) - self._tail
        at = _HEADER.size
        flags = 0
        while not flags & _TAG_LAST and at + tag_size <= end:
            if v3:
                number, flags, high, checksum = _TAG3.unpack_from(descriptor, at)
            else:
                number, checksum, flags = _TAG.unpack_from(descriptor, at)
                high = _TAG_HIGH.unpack_from(descriptor, at + _TAG.size)[0] if self._wide else 0
            if flags & ~_TAG_FLAGS:
                raise _Incomplete
            yield BlockTag(number | high << 32 if self._wide else number, flags, checksum)
            at += tag_size if flags & _TAG_SAME_UUID else tag_size + _UUID_SIZE

    def _revoked(self, block: bytes) -> list[int]:
        """The wanted blocks among those that a revoke block takes back."""
        self._check_tail(block)
        (r_count,) = _REVOKE_COUNT.unpack_from(block, _HEADER.size)
        start = _HEADER.size + _REVOKE_COUNT.size
        size = 8 if self._wide else 4
        if not start <= r_count <= len(block) - self._tail or (r_count - start) % size:
            raise _Incomplete
        numbers = struct.iter_unpack(">Q" if self._wide else ">I", block[start:r_count])
        return [number for (number,) in numbers if number in self._wanted]

    def _check_tail(self, block: bytes) -> None:
        if self._tail:
            stored = int.from_bytes(block[-_TAIL_SIZE:], "big")
            blanked = block[:-_TAIL_SIZE] + bytes(_TAIL_SIZE)
            if crc32c(self._journal.checksum_seed, blanked) != stored:
                raise _Incomplete

    def _check_tag(self, tag: BlockTag, seed: int, content: bytes) -> None:
        if self._tail:
            mask = 0xFFFFFFFF if JournalIncompat.CSUM_V3 in self._journal.incompat else 0xFFFF
            if crc32c(seed, content) & mask != tag.t_checksum:
                raise _Incomplete

    def _check_commit(self, block: bytes, crc: int) -> None:
        commit = CommitHeader._make(_COMMIT_HEADER.unpack_from(block, _HEADER.size))
        if self._tail:
            blanked = block[: _COMMIT_CHECKSUM.start] + bytes(4) + block[_COMMIT_CHECKSUM.stop :]
            if crc32c(self._journal.checksum_seed, blanked) != commit.h_chksum:
                raise _Incomplete
        # The first kind of checksum may be switched on while the log holds older commits.
        elif JournalCompat.CHECKSUM in self._journal.compat and commit not in (
            (_CRC32, _CRC32_SIZE, crc),
            (0, 0, 0),
        ):
            raise _Incomplete
