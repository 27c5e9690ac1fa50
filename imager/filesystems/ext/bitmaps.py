"""Block bitmaps: which clusters of each group are in use.

Linux documentation, "ext4 Data Structures and Algorithms": Block and Inode Bitmaps, Lazy Block
Group Initialization, Bigalloc.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from bitarray import bitarray

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems.ext.blocks import Blocks
from imager.filesystems.ext.checksum import crc32c
from imager.filesystems.ext.groups import Groups
from imager.filesystems.ext.layout import DescriptorChecksum, Layout

_CSUM_HI_END = 0x3A  # end of bg_block_bitmap_csum_hi in a group descriptor


def read_bitmaps(
    blocks: Blocks, layout: Layout, groups: Groups, unproven: Container[int] = ()
) -> Iterator[bytes]:
    """The block bitmap of every group in order, one bit a cluster, least significant bit first.

    A bitmap in a block of `unproven` is passed on without regard to its checksum. Raises
    NotUnderstoodError where the checksum of another is wrong, or the last one does not end in
    ones behind the end of the file system.
    """
    places, uninit = groups.block_bitmap, groups.block_uninit
    group = 0
    while group < layout.group_count:
        if uninit[group]:
            yield _derived_bitmap(layout, groups, group)
            group += 1
            continue
        # With flex_bg the bitmaps of neighbouring groups are neighbours.
        limit = min(layout.group_count, group + blocks.per_batch)
        stop = group + 1
        while stop < limit and not uninit[stop] and places[stop] == places[stop - 1] + 1:
            stop += 1
        data = blocks.read(places[group], stop - group)
        for index in range(group, stop):
            at = (index - group) * layout.block_size
            bitmap = data[at : at + layout.bitmap_bytes]
            if places[index] not in unproven:
                _check(layout, groups, index, bitmap)
            yield bitmap
        group = stop


def union(first: Iterator[bytes], second: Iterator[bytes]) -> Iterator[bytes]:
    """The bits that are set in either of each two bitmaps."""
    for one, other in zip(first, second, strict=True):
        if one == other:
            yield one
        else:
            either = int.from_bytes(one, "little") | int.from_bytes(other, "little")
            yield either.to_bytes(len(one), "little")


def allocated_extents(layout: Layout, bitmaps: Iterator[bytes]) -> Extents:
    """The bytes in use by the bitmaps of all groups, and the boot block."""
    builder = ExtentsBuilder()
    builder.add(0, layout.first_data_block * layout.block_size)
    for group, bitmap in enumerate(bitmaps):
        base = layout.group_start(group) * layout.block_size
        builder.add_bitmap(bitmap, layout.group_clusters(group), layout.cluster_size, base)
    allocated = builder.build()
    if allocated and allocated.end > layout.size:  # a last cluster that is cut off
        return allocated.clip(0, layout.size)
    return allocated


def _check(layout: Layout, groups: Groups, group: int, bitmap: bytes) -> None:
    if layout.descriptor_checksum is DescriptorChecksum.CRC32C:
        mask = 0xFFFFFFFF if layout.desc_size >= _CSUM_HI_END else 0xFFFF
        if crc32c(layout.checksum_seed, bitmap) & mask != groups.block_bitmap_csum[group] & mask:
            raise NotUnderstoodError(f"wrong checksum of the block bitmap of group {group}")
    clusters = layout.group_clusters(group)
    if clusters < len(bitmap) * 8:
        bits = bitarray(endian="little")
        bits.frombytes(bitmap)
        if not bits[clusters:].all():
            raise NotUnderstoodError(f"block bitmap of group {group} is not padded with ones")


def _derived_bitmap(layout: Layout, groups: Groups, group: int) -> bytes:
    """The bitmap of a group with BLOCK_UNINIT: only fixed structures, of any group, are in use.

    One flag frees the whole group here, so the descriptor has to count the same number as free, as
    it does on every sound volume: NotUnderstoodError otherwise.
    """
    bits = bitarray(layout.bitmap_bytes * 8, endian="little")
    bits.setall(0)
    base = layout.group_start(group) * layout.block_size
    size = layout.cluster_size
    for start, end in groups.metadata.clip(base, layout.group_end(group) * layout.block_size):
        bits[(start - base) // size : -(-(end - base) // size)] = 1
    if bits[: layout.group_clusters(group)].count(0) != groups.free_clusters[group]:
        raise NotUnderstoodError(f"group {group} is marked as uninitialised but is in use")
    return bits.tobytes()
