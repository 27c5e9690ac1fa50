"""Group descriptors: where each group keeps its bitmaps and inodes, and whether it has any yet.

Linux documentation, "ext4 Data Structures and Algorithms": Block Group Descriptors, Flexible Block
Groups, Lazy Block Group Initialization.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems.ext.blocks import Blocks
from imager.filesystems.ext.checksum import crc16, crc32c
from imager.filesystems.ext.layout import DescriptorChecksum, Layout

_INODE_UNINIT = 0x1
_BLOCK_UNINIT = 0x2
_INODE_ZEROED = 0x4
_CRC16_START = 0xFFFF


class GroupDescriptor(NamedTuple):
    """struct ext4_group_desc, the 64-byte form; the upper halves of a short one are zero."""

    bg_block_bitmap_lo: int
    bg_inode_bitmap_lo: int
    bg_inode_table_lo: int
    bg_free_blocks_count_lo: int
    bg_free_inodes_count_lo: int
    bg_used_dirs_count_lo: int
    bg_flags: int
    bg_exclude_bitmap_lo: int
    bg_block_bitmap_csum_lo: int
    bg_inode_bitmap_csum_lo: int
    bg_itable_unused_lo: int
    bg_checksum: int
    bg_block_bitmap_hi: int
    bg_inode_bitmap_hi: int
    bg_inode_table_hi: int
    bg_free_blocks_count_hi: int
    bg_free_inodes_count_hi: int
    bg_used_dirs_count_hi: int
    bg_itable_unused_hi: int
    bg_exclude_bitmap_hi: int
    bg_block_bitmap_csum_hi: int
    bg_inode_bitmap_csum_hi: int


_DESCRIPTOR = struct.Struct("<IIIHHHHIHHHHIIIHHHHIHH4x")
_BG_CHECKSUM = slice(0x1E, 0x20)


@dataclass(frozen=True)
class Groups:
    """What the descriptors of all groups say, in arrays by number of group."""

    block_bitmap: array[int]
    """The block of each group's block bitmap."""
    block_bitmap_csum: array[int]
    inode_table: array[int]
    """The first block of each group's inode table."""
    block_uninit: bytearray
    """1 where the block bitmap on disk was never written."""
    free_clusters: array[int]
    """What each descriptor counts as free."""
    metadata: Extents
    """Bytes of superblocks, descriptors, bitmaps and inode tables: always in use."""


def read_groups(blocks: Blocks, layout: Layout) -> Groups:
    """Read and check all group descriptors and lay out the structures that they name.

    Raises NotUnderstoodError unless all checksums are right and all structures lie apart from
    each other within the file system.
    """
    block_bitmap, inode_bitmap, inode_table = array("Q"), array("Q"), array("Q")
    block_bitmap_csum, free_clusters = array("I"), array("I")
    block_uninit = bytearray()
    checksum = _checksum(layout)
    table_blocks = layout.inode_table_blocks
    for group, raw in enumerate(_descriptors(blocks, layout)):
        desc = GroupDescriptor._make(_DESCRIPTOR.unpack(raw[:64].ljust(_DESCRIPTOR.size, b"\0")))
        if checksum is None:
            if desc.bg_flags & (_BLOCK_UNINIT | _INODE_UNINIT):
                raise NotUnderstoodError(f"group {group} is uninitialised without a checksum")
        elif checksum(group, raw) != desc.bg_checksum:
            raise NotUnderstoodError(f"wrong checksum of group descriptor {group}")
        if desc.bg_flags & ~(_BLOCK_UNINIT | _INODE_UNINIT | _INODE_ZEROED):
            raise NotUnderstoodError(f"flags {desc.bg_flags:#x} of group {group} are not known")
        places = (
            desc.bg_block_bitmap_lo | desc.bg_block_bitmap_hi << 32,
            desc.bg_inode_bitmap_lo | desc.bg_inode_bitmap_hi << 32,
            desc.bg_inode_table_lo | desc.bg_inode_table_hi << 32,
        )
        lowest = layout.first_data_block if layout.flex_bg else layout.group_start(group)
        end = layout.blocks_count if layout.flex_bg else layout.group_end(group)
        if min(places) < lowest or max(*places[:2], places[2] + table_blocks - 1) >= end:
            raise NotUnderstoodError(f"structures of group {group} are out of range")
        block_bitmap.append(places[0])
        inode_bitmap.append(places[1])
        inode_table.append(places[2])
        block_uninit.append(bool(desc.bg_flags & _BLOCK_UNINIT))
        free_clusters.append(desc.bg_free_blocks_count_lo | desc.bg_free_blocks_count_hi << 16)
        block_bitmap_csum.append(desc.bg_block_bitmap_csum_lo | desc.bg_block_bitmap_csum_hi << 16)
    metadata = _metadata(layout, (block_bitmap, 1), (inode_bitmap, 1), (inode_table, table_blocks))
    return Groups(
        block_bitmap, block_bitmap_csum, inode_table, block_uninit, free_clusters, metadata
    )


def _descriptors(blocks: Blocks, layout: Layout) -> Iterator[bytes]:
    """The raw descriptors of all groups, in order."""
    left = layout.group_count
    size = layout.desc_size
    for first, count in layout.descriptor_runs():
        for at in range(first, first + count, blocks.per_batch):
            data = blocks.read(at, min(blocks.per_batch, first + count - at))
            here = min(left, len(data) // size)
            for offset in range(0, here * size, size):
                yield data[offset : offset + size]
            left -= here


def _checksum(layout: Layout) -> Callable[[int, bytes], int] | None:
    """The function that computes bg_checksum from a group's number and raw descriptor."""
    if layout.descriptor_checksum is DescriptorChecksum.NONE:
        return None
    if layout.descriptor_checksum is DescriptorChecksum.CRC16:
        start = crc16(_CRC16_START, layout.uuid)

        def gdt_csum(group: int, raw: bytes) -> int:
            rest = raw[: _BG_CHECKSUM.start] + raw[_BG_CHECKSUM.stop :]
            return crc16(start, group.to_bytes(4, "little") + rest)

        return gdt_csum

    def metadata_csum(group: int, raw: bytes) -> int:
        blanked = raw[: _BG_CHECKSUM.start] + b"\0\0" + raw[_BG_CHECKSUM.stop :]
        return crc32c(layout.checksum_seed, group.to_bytes(4, "little") + blanked) & 0xFFFF

    return metadata_csum


def _metadata(layout: Layout, *structures: tuple[array[int], int]) -> Extents:
    """All fixed structures; NotUnderstoodError where two of them share a block."""
    fixed = list(layout.fixed_ranges())
    metadata = _extents(fixed, layout.block_size)
    total = sum(end - start for start, end in fixed)
    for starts, count in structures:
        metadata |= _extents(((at, at + count) for at in sorted(starts)), layout.block_size)
        total += len(starts) * count
    if metadata.total != total * layout.block_size:
        raise NotUnderstoodError("structures of block groups overlap")
    return metadata


def _extents(ranges: Iterable[tuple[int, int]], block_size: int) -> Extents:
    """Ascending ranges of blocks as bytes."""
    builder = ExtentsBuilder()
    for start, end in ranges:
        builder.add(start * block_size, end * block_size)
    return builder.build()
