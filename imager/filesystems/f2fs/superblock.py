"""The superblock: where the areas are. It is stored twice, in the first two blocks.

Source: include/linux/f2fs_fs.h, `struct f2fs_super_block`; the areas' order as fs/f2fs/super.c checks it.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

BLOCK = 4096
SEGMENT_BLOCKS = 512
"""Blocks of a segment: 2 MiB."""

_AT = 1024
"""Offset of a superblock in its block."""
_MAGIC = 0xF2F52010
_CRC_AT = 3068
_LOG_BLOCK, _LOG_SEGMENT_BLOCKS = 12, 9
_CHECKPOINT_SEGMENTS = 2


class _Features:
    """Bits of `feature`. Those named here change nothing of where blocks are in use."""

    ZONED = 0x2
    SB_CHECKSUM = 0x800
    KNOWN = 0x7FFD
    """Encryption, atomic writes, extra attributes, project quota, inode checksums, flexible inline
    xattrs, quota inodes, creation times, lost+found, verity, superblock checksum, casefolding,
    compression, read-only."""


class Superblock(NamedTuple):
    """The fields that say what is where; addresses in blocks, counts in what they name."""

    magic: int
    major_ver: int
    minor_ver: int
    log_sectorsize: int
    log_sectors_per_block: int
    log_blocksize: int
    log_blocks_per_seg: int
    segs_per_sec: int
    secs_per_zone: int
    checksum_offset: int
    block_count: int
    section_count: int
    segment_count: int
    segment_count_ckpt: int
    segment_count_sit: int
    segment_count_nat: int
    segment_count_ssa: int
    segment_count_main: int
    segment0_blkaddr: int
    cp_blkaddr: int
    sit_blkaddr: int
    nat_blkaddr: int
    ssa_blkaddr: int
    main_blkaddr: int


class Tail(NamedTuple):
    """Fields further on."""

    cp_payload: int
    feature: int
    first_device: int
    """The first byte of the first device's path: only volumes on several devices have one."""


_SUPERBLOCK = struct.Struct("<IHH7IQ13I")
_TAIL_AT = 1664
_TAIL = struct.Struct("<I512xI17xB")


class Layout(NamedTuple):
    """Where things are, in blocks."""

    blocks: int
    checkpoints: tuple[int, int]
    cp_payload: int
    """Blocks that follow a checkpoint's first, with a SIT bitmap too large for it."""
    sit: int
    sit_blocks: int
    """Of each of the two copies."""
    main: int
    segments: int
    """Of the main area."""

    @property
    def main_end(self) -> int:
        """One past the last block of the main area."""
        return self.main + self.segments * SEGMENT_BLOCKS


def crc(data: bytes, seed: int = _MAGIC) -> int:
    """F2FS's CRC-32: the customary polynomial, begun with the magic number, not inverted."""
    return zlib.crc32(data, seed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_superblock(volume: Volume) -> tuple[Layout, list[str]]:
    """The layout of `volume`, and notes for a person.

    The first copy counts where it is sound, as for the kernel. Raises NotUnderstoodError if neither is, or
    two sound copies describe two layouts.
    """
    if volume.size < 2 * BLOCK:
        raise NotUnderstoodError("too small for an F2FS file system")
    found: list[Layout] = []
    doubt: NotUnderstoodError | None = None
    for copy in range(2):
        try:
            found.append(_parse(volume.read(copy * BLOCK + _AT, _CRC_AT + 4), volume))
        except NotUnderstoodError as fault:
            doubt = doubt or fault
    if not found:
        raise doubt or NotUnderstoodError("no F2FS superblock")
    if len(found) == 2 and found[0] != found[1]:
        raise NotUnderstoodError("its two superblocks differ")
    return found[0], ["one of its two superblocks is damaged"] if doubt else []


def _parse(data: bytes, volume: Volume) -> Layout:
    it = Superblock._make(_SUPERBLOCK.unpack_from(data))
    tail = Tail._make(_TAIL.unpack_from(data, _TAIL_AT))
    if it.magic != _MAGIC:
        raise NotUnderstoodError("no F2FS superblock")
    if tail.feature & _Features.SB_CHECKSUM and (
        it.checksum_offset != _CRC_AT or crc(data[:_CRC_AT]).to_bytes(4, "little") != data[_CRC_AT:]
    ):
        raise NotUnderstoodError("wrong checksum of its superblock")
    if tail.feature & _Features.ZONED:
        raise NotUnderstoodError("F2FS on a zoned device")
    if tail.feature & ~_Features.KNOWN:
        raise NotUnderstoodError(f"unknown F2FS features {tail.feature & ~_Features.KNOWN:#x}")
    if tail.first_device:
        raise NotUnderstoodError("F2FS over several devices")
    _check_sizes(it, volume)
    return Layout(
        blocks=it.block_count,
        checkpoints=(it.cp_blkaddr, it.cp_blkaddr + SEGMENT_BLOCKS),
        cp_payload=tail.cp_payload,
        sit=it.sit_blkaddr,
        sit_blocks=it.segment_count_sit // 2 * SEGMENT_BLOCKS,
        main=it.main_blkaddr,
        segments=it.segment_count_main,
    )


def _check_sizes(it: Superblock, volume: Volume) -> None:
    """Refuse unknown units, and areas that are not one behind the other."""
    if (it.log_blocksize, it.log_blocks_per_seg) != (_LOG_BLOCK, _LOG_SEGMENT_BLOCKS):
        raise NotUnderstoodError("F2FS with blocks or segments of another size")
    if it.log_sectorsize + it.log_sectors_per_block != _LOG_BLOCK:
        raise NotUnderstoodError("sector size makes no sense")
    if it.block_count > volume.size // BLOCK:
        raise NotUnderstoodError("file system is larger than its volume")
    if it.segment_count_ckpt != _CHECKPOINT_SEGMENTS or it.segment_count_sit % 2:
        raise NotUnderstoodError("number of its segments makes no sense")
    at = it.segment0_blkaddr
    for start, segments in (
        (it.cp_blkaddr, it.segment_count_ckpt),
        (it.sit_blkaddr, it.segment_count_sit),
        (it.nat_blkaddr, it.segment_count_nat),
        (it.ssa_blkaddr, it.segment_count_ssa),
        (it.main_blkaddr, it.segment_count_main),
    ):
        if start != at or not segments:
            raise NotUnderstoodError("its areas do not follow one another")
        at = start + segments * SEGMENT_BLOCKS
    if at > it.block_count or it.segment0_blkaddr < 2:
        raise NotUnderstoodError("its areas reach past the end of the file system")
