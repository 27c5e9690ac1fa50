"""The blocks of one inode's data, in order: how the journal is found.

Linux documentation, "ext4 Data Structures and Algorithms": Inode Table, The Contents of
inode.i_block (Direct/Indirect Block Addressing, Extent Tree).
"""

from __future__ import annotations

import stat
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems.ext.blocks import Blocks
from imager.filesystems.ext.checksum import crc32c
from imager.filesystems.ext.groups import Groups
from imager.filesystems.ext.layout import DescriptorChecksum, Layout

_EXTENTS_FLAG = 0x80000
_INLINE_DATA_FLAG = 0x10000000
_EXTENT_MAGIC = 0xF30A
_MAX_DEPTH = 5
_MAX_INITIALISED = 32768  # a greater ee_len means allocated but not written
_DIRECT = 12
_MAX_MAP_BLOCKS = 1 << 16
"""Blocks of an extent tree or of indirect pointers; a journal of the greatest size needs 40,000."""
_MAX_RUNS = 1 << 16
"""Pieces of a file; a journal has a handful."""


class Inode(NamedTuple):
    """struct ext4_inode; only what is needed here."""

    i_mode: int
    i_size_lo: int
    i_links_count: int
    i_flags: int
    i_block: bytes
    i_generation: int
    i_size_high: int
    i_checksum_lo: int
    i_extra_isize: int
    i_checksum_hi: int


_INODE = struct.Struct("<H2xI18xH4xI4x60sI4xI12xH2xHH")
_INODE_SHORT = 128
_CHECKSUM_LO = slice(0x7C, 0x7E)
_CHECKSUM_HI = slice(0x82, 0x84)


class ExtentHeader(NamedTuple):
    """struct ext4_extent_header."""

    eh_magic: int
    eh_entries: int
    eh_max: int
    eh_depth: int
    eh_generation: int


class Extent(NamedTuple):
    """struct ext4_extent, in a leaf."""

    ee_block: int
    ee_len: int
    ee_start_hi: int
    ee_start_lo: int


class ExtentIndex(NamedTuple):
    """struct ext4_extent_idx, in an inner node."""

    ei_block: int
    ei_leaf_lo: int
    ei_leaf_hi: int


_EXTENT_HEADER = struct.Struct("<HHHHI")
_EXTENT = struct.Struct("<IHHI")
_EXTENT_INDEX = struct.Struct("<IIH2x")
_CHECKSUM_SIZE = 4


class FileBlocks:
    """The blocks of a file without holes, found by their number in the file."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._logical: array[int] = array("Q")
        self._physical: array[int] = array("Q")
        self.count = 0
        self.map_blocks: array[int] = array("Q")
        """The volume's blocks that hold the file's extent tree or indirect pointers."""

    def append(self, physical: int, count: int) -> None:
        """Let the file go on with `count` blocks of the volume from block `physical` on.

        Raises NotUnderstoodError where that makes too many pieces.
        """
        if not self._physical or self.place(self.count - 1) + 1 != physical:
            if len(self._physical) == _MAX_RUNS:
                raise NotUnderstoodError("journal is too fragmented")
            self._logical.append(self.count)
            self._physical.append(physical)
        self.count += count

    def place(self, index: int) -> int:
        """The volume's block that holds block `index` of the file."""
        run = bisect_right(self._logical, index) - 1
        return self._physical[run] + index - self._logical[run]

    @property
    def extents(self) -> Extents:
        """The bytes of the volume that the file is in, and its map."""
        size = self._blocks.block_size
        runs = [*self.runs(0, self.count), *((block, 1) for block in self.map_blocks)]
        return Extents.of((first * size, (first + count) * size) for first, count in runs)

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """(first block, blocks) in the volume of `count` blocks from block `first` on."""
        stop = first + count
        run = bisect_right(self._logical, first) - 1
        while first < stop:
            run += 1
            end = min(stop, self._logical[run] if run < len(self._logical) else self.count)
            yield self._physical[run - 1] + first - self._logical[run - 1], end - first
            first = end

    def read(self, first: int, count: int) -> bytes:
        """`count` blocks of the file from its block `first` on."""
        return b"".join(self._blocks.read(*run) for run in self.runs(first, count))


def read_file_blocks(
    blocks: Blocks, layout: Layout, groups: Groups, number: int, max_blocks: int
) -> FileBlocks:
    """Where the data of inode `number`, a file without holes, lies.

    Raises NotUnderstoodError where the inode is not such a file of at most `max_blocks` blocks, or
    anything in its map is doubtful.
    """
    inode, seed = _read_inode(blocks, layout, groups, number)
    if not stat.S_ISREG(inode.i_mode) or not inode.i_links_count:
        raise NotUnderstoodError(f"inode {number} is not a file")
    count = (inode.i_size_lo | inode.i_size_high << 32) // layout.block_size
    if not 0 < count <= min(max_blocks, layout.blocks_count):
        raise NotUnderstoodError(f"size of inode {number} is out of range")
    if inode.i_flags & _INLINE_DATA_FLAG:
        raise NotUnderstoodError(f"inode {number} holds its data inline")
    mapper = _Mapper(blocks, layout, seed, count)
    if inode.i_flags & _EXTENTS_FLAG:
        mapper.add_extents(inode.i_block, None)
    else:
        mapper.add_pointers(inode.i_block)
    if mapper.file.count < count:
        raise NotUnderstoodError(f"inode {number} has holes")
    extents = mapper.file.extents
    distinct = extents.total == (count + len(mapper.file.map_blocks)) * layout.block_size
    if not distinct or extents & groups.metadata:
        raise NotUnderstoodError(f"blocks of inode {number} are in use twice")
    return mapper.file


def _read_inode(blocks: Blocks, layout: Layout, groups: Groups, number: int) -> tuple[Inode, int]:
    """An inode whose checksum is right, and the seed for those of its map."""
    group, index = divmod(number - 1, layout.inodes_per_group)
    block, offset = divmod(index * layout.inode_size, layout.block_size)
    raw = blocks.read(groups.inode_table[group] + block, 1)[offset : offset + layout.inode_size]
    inode = Inode._make(_INODE.unpack(raw[: _INODE.size].ljust(_INODE.size, b"\0")))
    if layout.descriptor_checksum is not DescriptorChecksum.CRC32C:
        return inode, 0
    origin = number.to_bytes(4, "little") + inode.i_generation.to_bytes(4, "little")
    seed = crc32c(layout.checksum_seed, origin)
    blanked = bytearray(raw)
    blanked[_CHECKSUM_LO] = b"\0\0"
    expected, mask = inode.i_checksum_lo, 0xFFFF
    if layout.inode_size > _INODE_SHORT and inode.i_extra_isize >= _CHECKSUM_HI.stop - _INODE_SHORT:
        blanked[_CHECKSUM_HI] = b"\0\0"
        expected, mask = expected | inode.i_checksum_hi << 16, 0xFFFFFFFF
    if crc32c(seed, bytes(blanked)) & mask != expected:
        raise NotUnderstoodError(f"wrong checksum of inode {number}")
    return inode, seed


class _Mapper:
    """Collects the first `count` blocks of a file from its map, in bounded time."""

    def __init__(self, blocks: Blocks, layout: Layout, seed: int, count: int) -> None:
        self.file = FileBlocks(blocks)
        self._blocks = blocks
        self._layout = layout
        self._seed = seed
        self._count = count

    def add_extents(self, node: bytes, depth: int | None) -> None:
        """Add what a node of an extent tree maps; `depth` is None for the root in the inode."""
        header = ExtentHeader._make(_EXTENT_HEADER.unpack_from(node))
        room = (len(node) - _EXTENT_HEADER.size) // _EXTENT.size
        if (
            header.eh_magic != _EXTENT_MAGIC
            or not header.eh_entries <= header.eh_max <= room
            or header.eh_depth > _MAX_DEPTH
            or (depth is not None and header.eh_depth != depth)
        ):
            raise NotUnderstoodError("damaged extent tree")
        if depth is not None:
            self._check_tail(node, header)
        for index in range(header.eh_entries):
            at = _EXTENT_HEADER.size + index * _EXTENT.size
            if header.eh_depth:
                child = ExtentIndex._make(_EXTENT_INDEX.unpack_from(node, at))
                self._expect(child.ei_block)
                place = child.ei_leaf_lo | child.ei_leaf_hi << 32
                self.add_extents(self._map_block(place), header.eh_depth - 1)
            else:
                extent = Extent._make(_EXTENT.unpack_from(node, at))
                self._expect(extent.ee_block)
                if not 0 < extent.ee_len <= _MAX_INITIALISED:
                    raise NotUnderstoodError("journal has blocks that were never written")
                self._add(extent.ee_start_lo | extent.ee_start_hi << 32, extent.ee_len)

    def add_pointers(self, i_block: bytes) -> None:
        """Add direct blocks, then those behind one, two and three levels of indirection."""
        pointers = array("I", struct.unpack("<15I", i_block))
        for pointer in pointers[:_DIRECT]:
            self._add_behind(pointer, 0)
        for levels, pointer in enumerate(pointers[_DIRECT:], 1):
            self._add_behind(pointer, levels)

    def _add_behind(self, place: int, levels: int) -> None:
        if self.file.count >= self._count:
            return
        if not levels:
            self._add(place, 1)
            return
        node = self._map_block(place)
        for (pointer,) in struct.iter_unpack("<I", node):
            self._add_behind(pointer, levels - 1)

    def _add(self, place: int, count: int) -> None:
        if not self._layout.holds(place, count):
            raise NotUnderstoodError("journal is out of range")
        self.file.append(place, count)

    def _expect(self, logical: int) -> None:
        """No holes, no overlaps, no cycles: each entry goes on where the last one ended."""
        if logical != self.file.count:
            raise NotUnderstoodError("journal has holes")

    def _map_block(self, place: int) -> bytes:
        if len(self.file.map_blocks) == _MAX_MAP_BLOCKS:
            raise NotUnderstoodError("journal is too fragmented")
        if not self._layout.holds(place):
            raise NotUnderstoodError("journal is out of range")
        self.file.map_blocks.append(place)
        return self._blocks.read(place, 1)

    def _check_tail(self, node: bytes, header: ExtentHeader) -> None:
        if self._layout.descriptor_checksum is not DescriptorChecksum.CRC32C:
            return
        end = _EXTENT_HEADER.size + header.eh_max * _EXTENT.size
        if end + _CHECKSUM_SIZE > len(node):
            raise NotUnderstoodError("damaged extent tree")
        stored = int.from_bytes(node[end : end + _CHECKSUM_SIZE], "little")
        if crc32c(self._seed, node[:end]) != stored:
            raise NotUnderstoodError("wrong checksum in an extent tree")
