"""The journal's superblock: how the log is laid out, and whether it has to be replayed.

    | superblock | log, written round and round        | fast commits |
    0            s_first                               log_end        s_maxlen

Linux documentation, "ext4 Data Structures and Algorithms", section Journal (jbd2); everything in it
is big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems.ext.blocks import JOURNAL_MAGIC, Blocks
from imager.filesystems.ext.checksum import CRC_START, crc32c
from imager.filesystems.ext.groups import Groups
from imager.filesystems.ext.inode import FileBlocks, read_file_blocks
from imager.filesystems.ext.layout import Layout

MAX_JOURNAL_BLOCKS = 10_240_000
"""The largest journal that mke2fs makes."""

_SUPERBLOCK_V2 = 4
_CRC32C = 4
_DEFAULT_FAST_COMMIT_BLOCKS = 256


class JournalCompat(IntFlag):
    """Bits of the journal's s_feature_compat."""

    CHECKSUM = 0x1


class JournalIncompat(IntFlag):
    """Bits of the journal's s_feature_incompat."""

    REVOKE = 0x1
    SIXTY_FOUR_BIT = 0x2
    ASYNC_COMMIT = 0x4
    CSUM_V2 = 0x8
    CSUM_V3 = 0x10
    FAST_COMMIT = 0x20


class JournalSuperblock(NamedTuple):
    """struct journal_superblock_s, without the users' UUIDs."""

    h_magic: bytes
    h_blocktype: int
    h_sequence: int
    s_blocksize: int
    s_maxlen: int
    s_first: int
    s_sequence: int
    s_start: int
    s_errno: int
    s_feature_compat: int
    s_feature_incompat: int
    s_feature_ro_compat: int
    s_uuid: bytes
    s_nr_users: int
    s_checksum_type: int
    s_num_fc_blocks: int
    s_checksum: int


_JOURNAL_SUPERBLOCK = struct.Struct(
    ">4sIIIIIIIIIII16sI12x"  # 0x00 h_magic to s_nr_users
    "B3x"  # 0x50 s_checksum_type
    "I164x"  # 0x54 s_num_fc_blocks
    "I"  # 0xfc s_checksum
)
_CHECKSUM = slice(0xFC, 0x100)
_CHECKED_BYTES = 1024


@dataclass(frozen=True)
class Journal:
    """A journal inside the file system, its superblock understood."""

    file: FileBlocks
    """The journal's blocks."""
    block_size: int
    first: int
    """The log's first block, counted in the journal."""
    end: int
    """One past the log's last block."""
    start: int
    """The first block of the oldest transaction that counts; 0 where none does."""
    sequence: int
    """The number of that transaction."""
    compat: JournalCompat
    incompat: JournalIncompat
    checksum_seed: int

    @property
    def has_block_checksums(self) -> bool:
        """Checksums of version 2 or 3: every block of the log has its own."""
        return bool(self.incompat & (JournalIncompat.CSUM_V2 | JournalIncompat.CSUM_V3))


def is_before(sequence: int, other: int) -> bool:
    """Whether transaction `sequence` came before `other`; the 32-bit numbers wrap around."""
    return (sequence - other) & 0xFFFFFFFF >= 0x80000000


def read_journal(blocks: Blocks, layout: Layout, groups: Groups, inode: int) -> Journal:
    """Find the journal in `inode` and check its superblock; NotUnderstoodError on any doubt."""
    file = read_file_blocks(blocks, layout, groups, inode, MAX_JOURNAL_BLOCKS)
    data = file.read(0, 1)
    jsb = JournalSuperblock._make(_JOURNAL_SUPERBLOCK.unpack_from(data))
    if jsb.h_magic != JOURNAL_MAGIC or jsb.h_blocktype != _SUPERBLOCK_V2:
        raise NotUnderstoodError("no journal superblock")
    unknown = (
        jsb.s_feature_compat & ~sum(JournalCompat)
        | jsb.s_feature_incompat & ~sum(JournalIncompat)
        | jsb.s_feature_ro_compat
    )
    if unknown:
        raise NotUnderstoodError(f"journal features {unknown:#x} are not known")
    incompat = JournalIncompat(jsb.s_feature_incompat)
    checksummed = incompat & (JournalIncompat.CSUM_V2 | JournalIncompat.CSUM_V3)
    if checksummed:
        blanked = data[: _CHECKSUM.start] + bytes(4) + data[_CHECKSUM.stop : _CHECKED_BYTES]
        if jsb.s_checksum_type != _CRC32C or crc32c(CRC_START, blanked) != jsb.s_checksum:
            raise NotUnderstoodError("wrong checksum of the journal superblock")
    if checksummed.bit_count() + (jsb.s_feature_compat & JournalCompat.CHECKSUM) > 1:
        raise NotUnderstoodError("journal has two kinds of checksums")
    if jsb.s_errno:
        raise NotUnderstoodError("journal is marked as having errors")
    end = jsb.s_maxlen
    if JournalIncompat.FAST_COMMIT in incompat:
        end -= jsb.s_num_fc_blocks or _DEFAULT_FAST_COMMIT_BLOCKS
    if (
        jsb.s_blocksize != layout.block_size
        or jsb.s_maxlen > file.count
        or not 0 < jsb.s_first < end
        or (jsb.s_start and not jsb.s_first <= jsb.s_start < end)
        or jsb.s_nr_users > 1
    ):
        raise NotUnderstoodError("journal superblock is out of range")
    return Journal(
        file=file,
        block_size=layout.block_size,
        first=jsb.s_first,
        end=end,
        start=jsb.s_start,
        sequence=jsb.s_sequence,
        compat=JournalCompat(jsb.s_feature_compat),
        incompat=incompat,
        checksum_seed=crc32c(CRC_START, jsb.s_uuid),
    )
