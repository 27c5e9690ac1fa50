"""The superblock of ext2/3/4: what the volume is, and whether this program may trust it.

Linux documentation, "ext4 Data Structures and Algorithms": Super Block, Block Group Descriptors
(meta_bg), Bigalloc; field names are the document's.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems.ext.checksum import CRC_START, crc32c
from imager.filesystems.ext.layout import DescriptorChecksum, Layout

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 1024

_MAGIC = 0xEF53
_STATE_VALID = 0x1
_STATE_ERROR = 0x2
_STATE_ORPHANS = 0x4
_GOOD_OLD_REVISION = 0
_DYNAMIC_REVISION = 1
_GOOD_OLD_INODE_SIZE = 128
_CHECKSUM_TYPE_CRC32C = 1
_MAX_LOG_BLOCK_SIZE = 6  # 64 KiB
_MAX_LOG_CLUSTER_SIZE = 20  # 1 GiB, as mke2fs
_DESCRIPTOR_SIZE = 32
_DESCRIPTOR_SIZES_64BIT = (64, 128, 256, 512, 1024)


class Compat(IntFlag):
    """Known bits of s_feature_compat. Snapshots' exclude bitmaps and lazy_bg are not."""

    DIR_PREALLOC = 0x1
    IMAGIC_INODES = 0x2
    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    RESIZE_INODE = 0x10
    DIR_INDEX = 0x20
    SPARSE_SUPER2 = 0x200
    FAST_COMMIT = 0x400
    STABLE_INODES = 0x800
    ORPHAN_FILE = 0x1000


class Incompat(IntFlag):
    """Known bits of s_feature_incompat. Compression and Lustre's dirdata are not."""

    FILETYPE = 0x2
    RECOVER = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    SIXTY_FOUR_BIT = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class RoCompat(IntFlag):
    """Known bits of s_feature_ro_compat. Snapshots and replica are not.

    With shared_blocks several files may have a block in common; the bitmaps mark it all the same.
    """

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    HUGE_FILE = 0x8
    GDT_CSUM = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    QUOTA = 0x100
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    READONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


class Superblock(NamedTuple):
    """struct ext4_super_block; only what is needed here."""

    s_inodes_count: int
    s_blocks_count_lo: int
    s_first_data_block: int
    s_log_block_size: int
    s_log_cluster_size: int
    s_blocks_per_group: int
    s_clusters_per_group: int
    s_inodes_per_group: int
    s_magic: int
    s_state: int
    s_rev_level: int
    s_inode_size: int
    s_feature_compat: int
    s_feature_incompat: int
    s_feature_ro_compat: int
    s_uuid: bytes
    s_reserved_gdt_blocks: int
    s_journal_inum: int
    s_journal_dev: int
    s_desc_size: int
    s_first_meta_bg: int
    s_blocks_count_hi: int
    s_mmp_block: int
    s_checksum_type: int
    s_backup_bgs_0: int
    s_backup_bgs_1: int
    s_checksum_seed: int
    s_checksum: int


_SUPERBLOCK = struct.Struct(
    "<II12x"  # 0x00 s_inodes_count
    "IIIIII12x"  # 0x14 s_first_data_block
    "HH16x"  # 0x38 s_magic
    "I8x"  # 0x4c s_rev_level
    "H2x"  # 0x58 s_inode_size
    "III16s86x"  # 0x5c s_feature_compat
    "H16x"  # 0xce s_reserved_gdt_blocks
    "II22x"  # 0xe0 s_journal_inum
    "H4x"  # 0xfe s_desc_size
    "I72x"  # 0x104 s_first_meta_bg
    "I20x"  # 0x150 s_blocks_count_hi
    "Q5x"  # 0x168 s_mmp_block
    "B214x"  # 0x175 s_checksum_type
    "II28x"  # 0x24c s_backup_bgs
    "I392x"  # 0x270 s_checksum_seed
    "I"  # 0x3fc s_checksum
)


def read_layout(data: bytes, volume_size: int, still: bool = False) -> Layout:
    """Check the 1024 bytes of a superblock on a volume of `volume_size` bytes and interpret them.

    `still` says that it is mounted and frozen. Raises NotUnderstoodError unless every feature is
    known, checksum and fields are valid, and the file system is in a state in which its bitmaps can
    be believed.
    """
    sb = Superblock._make(_SUPERBLOCK.unpack(data))
    if sb.s_magic != _MAGIC:
        raise NotUnderstoodError("no ext superblock")
    if sb.s_rev_level > _DYNAMIC_REVISION:
        raise NotUnderstoodError(f"ext revision {sb.s_rev_level} is not known")
    compat, incompat, ro_compat = _features(sb)
    if RoCompat.METADATA_CSUM in ro_compat:
        if sb.s_checksum_type != _CHECKSUM_TYPE_CRC32C:
            raise NotUnderstoodError(f"ext checksum type {sb.s_checksum_type} is not known")
        if crc32c(CRC_START, data[:-4]) != sb.s_checksum:
            raise NotUnderstoodError("wrong superblock checksum")
    _check_state(sb, compat, incompat, still)
    layout = _layout(sb, compat, incompat, ro_compat)
    layout.check(volume_size)
    return layout


def _features(sb: Superblock) -> tuple[Compat, Incompat, RoCompat]:
    fields = (sb.s_feature_compat, sb.s_feature_incompat, sb.s_feature_ro_compat)
    known = (sum(Compat), sum(Incompat), sum(RoCompat))
    names = ("compatible", "incompatible", "read-only compatible")
    for name, bits, understood in zip(names, fields, known, strict=True):
        if bits & ~understood:
            raise NotUnderstoodError(f"{name} ext features {bits & ~understood:#x} are not known")
    if sb.s_rev_level == _GOOD_OLD_REVISION and any(fields):
        raise NotUnderstoodError("features in an ext file system of revision 0")
    return Compat(fields[0]), Incompat(fields[1]), RoCompat(fields[2])


def _check_state(sb: Superblock, compat: Compat, incompat: Incompat, still: bool) -> None:
    """With a journal s_state stays valid while mounted; only e2fsck and ext2 clear the bit."""
    if Incompat.JOURNAL_DEV in incompat:
        raise NotUnderstoodError("external ext journal")
    if sb.s_state & ~(_STATE_VALID | _STATE_ERROR | _STATE_ORPHANS):
        raise NotUnderstoodError(f"ext state {sb.s_state:#x} is not known")
    if sb.s_state & _STATE_ERROR:
        raise NotUnderstoodError("file system is marked as having errors")
    if not sb.s_state & _STATE_VALID and not (still and Compat.HAS_JOURNAL not in compat):
        raise NotUnderstoodError("file system was not cleanly unmounted")
    if Compat.HAS_JOURNAL in compat:
        if bool(sb.s_journal_dev) == bool(sb.s_journal_inum):
            raise NotUnderstoodError("it is not clear where the journal is")
        # The kernel sets RECOVER while it has the journal in use, and empties a journal without it.
        if sb.s_journal_dev and Incompat.RECOVER in incompat:
            raise NotUnderstoodError("its journal, on another device, was not replayed")
        if sb.s_journal_inum > sb.s_inodes_count:
            raise NotUnderstoodError("journal inode is out of range")
    elif Incompat.RECOVER in incompat:
        raise NotUnderstoodError("file system needs recovery but has no journal")


def _layout(sb: Superblock, compat: Compat, incompat: Incompat, ro_compat: RoCompat) -> Layout:
    if sb.s_log_block_size > _MAX_LOG_BLOCK_SIZE:
        raise NotUnderstoodError("block size is out of range")
    bigalloc = RoCompat.BIGALLOC in ro_compat
    log_ratio = sb.s_log_cluster_size - sb.s_log_block_size
    if not (log_ratio >= 0 and sb.s_log_cluster_size <= _MAX_LOG_CLUSTER_SIZE):
        raise NotUnderstoodError("cluster size is out of range")
    if log_ratio and not bigalloc:
        raise NotUnderstoodError("cluster size differs from block size")
    if bigalloc and sb.s_blocks_per_group != sb.s_clusters_per_group << log_ratio:
        raise NotUnderstoodError("clusters and blocks per group disagree")
    wide = Incompat.SIXTY_FOUR_BIT in incompat
    if wide and sb.s_desc_size not in _DESCRIPTOR_SIZES_64BIT:
        raise NotUnderstoodError(f"group descriptors of {sb.s_desc_size} bytes")
    return Layout(
        block_size=1024 << sb.s_log_block_size,
        blocks_count=sb.s_blocks_count_lo | (sb.s_blocks_count_hi << 32 if wide else 0),
        first_data_block=sb.s_first_data_block,
        blocks_per_group=sb.s_blocks_per_group,
        cluster_blocks=1 << log_ratio,
        inodes_count=sb.s_inodes_count,
        inodes_per_group=sb.s_inodes_per_group,
        inode_size=sb.s_inode_size if sb.s_rev_level else _GOOD_OLD_INODE_SIZE,
        desc_size=sb.s_desc_size if wide else _DESCRIPTOR_SIZE,
        reserved_gdt_blocks=sb.s_reserved_gdt_blocks,
        first_meta_bg=sb.s_first_meta_bg if Incompat.META_BG in incompat else None,
        sparse_super=RoCompat.SPARSE_SUPER in ro_compat,
        backup_groups=(
            (sb.s_backup_bgs_0, sb.s_backup_bgs_1) if Compat.SPARSE_SUPER2 in compat else None
        ),
        flex_bg=Incompat.FLEX_BG in incompat,
        descriptor_checksum=_descriptor_checksum(ro_compat),
        uuid=sb.s_uuid,
        checksum_seed=(
            sb.s_checksum_seed if Incompat.CSUM_SEED in incompat else crc32c(CRC_START, sb.s_uuid)
        ),
        journal_inum=(sb.s_journal_inum or None) if Compat.HAS_JOURNAL in compat else None,
        external_journal=Compat.HAS_JOURNAL in compat and not sb.s_journal_inum,
        mmp_block=sb.s_mmp_block if Incompat.MMP in incompat else None,
    )


def _descriptor_checksum(ro_compat: RoCompat) -> DescriptorChecksum:
    """metadata_csum takes precedence where both bits are set, as in the kernel."""
    if RoCompat.METADATA_CSUM in ro_compat:
        return DescriptorChecksum.CRC32C
    if RoCompat.GDT_CSUM in ro_compat:
        return DescriptorChecksum.CRC16
    return DescriptorChecksum.NONE
