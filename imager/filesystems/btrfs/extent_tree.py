"""The extent tree: which logical addresses are in use, and whether the block groups agree.

btrfs-progs documentation, "On-disk Format", sections EXTENT_ITEM, METADATA_ITEM, BLOCK_GROUP_ITEM.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems.btrfs.chunks import CHUNK_OBJECTID, Mapping
from imager.filesystems.btrfs.roots import BLOCK_GROUP_TREE, EXTENT_TREE, Roots
from imager.filesystems.btrfs.superblock import MAX_LEVEL, CompatRo, Superblock
from imager.filesystems.btrfs.tree import DATA_START, Leaf, Trees

_EXTENT_ITEM, _METADATA_ITEM, _BLOCK_GROUP_ITEM = 168, 169, 192
_TREE_BLOCK_REF, _EXTENT_DATA_REF, _SHARED_BLOCK_REF, _SHARED_DATA_REF = 176, 178, 182, 184
_REFERENCES = frozenset((_TREE_BLOCK_REF, _EXTENT_DATA_REF, _SHARED_BLOCK_REF, _SHARED_DATA_REF))

_EXTENT = Struct("<QQQ")
_DATA, _TREE_BLOCK, _FULL_BACKREF = 1 << 0, 1 << 1, 1 << 8

_BLOCK_GROUP = Struct("<QQQ")


class _BlockGroup(NamedTuple):
    """btrfs_block_group_item, and the length from its key."""

    length: int
    used: int
    flags: int


def read_extents(trees: Trees, superblock: Superblock, roots: Roots) -> Extents:
    """The logical addresses in use.

    Raises as `Trees.leaves`, and NotUnderstoodError unless each chunk has a block group in which as
    many bytes are used as its extents have.
    """
    in_own_tree = CompatRo.BLOCK_GROUP_TREE in superblock.compat_ro
    reader = _ExtentReader(superblock, trees.mapping)
    for leaf in trees.leaves(roots.find(EXTENT_TREE)):
        reader.add(leaf, with_block_groups=not in_own_tree)
    groups = reader.block_groups
    if in_own_tree:
        for leaf in trees.leaves(roots.find(BLOCK_GROUP_TREE)):
            if any(item[1] != _BLOCK_GROUP_ITEM for item in leaf.items):
                raise NotUnderstoodError("block group tree has unknown items")
            _add_block_groups(leaf, groups, len(trees.mapping.chunks))
    extents = reader.builder.build()
    _check_block_groups(extents, groups, trees.mapping)
    return extents


class _ExtentReader:
    """Gathers the items of the extent tree, leaf by leaf."""

    def __init__(self, superblock: Superblock, mapping: Mapping) -> None:
        self.builder = ExtentsBuilder()
        self.block_groups: dict[int, _BlockGroup] = {}
        self._superblock = superblock
        self._end = 0
        self._chunks = len(mapping.chunks)
        self._limit = mapping.logical.end if mapping.logical else 0

    def add(self, leaf: Leaf, with_block_groups: bool) -> None:
        """One leaf; NotUnderstoodError for what is not known, damaged, or overlaps."""
        nodesize = self._superblock.nodesize
        mask = self._superblock.sectorsize - 1
        generation = self._superblock.generation
        unpack, block, limit, end = _EXTENT.unpack_from, leaf.block, self._limit, self._end
        add = self.builder.add
        for start, kind, offset, place, size in leaf.items:
            if kind == _EXTENT_ITEM:
                length = offset
            elif kind == _METADATA_ITEM:
                length = nodesize
            elif kind in _REFERENCES or (kind == _BLOCK_GROUP_ITEM and with_block_groups):
                continue
            else:
                raise NotUnderstoodError(f"extent tree has items of unknown type {kind}")
            if start < end or not length or (start | length) & mask or start + length > limit:
                raise NotUnderstoodError(f"the extent at logical address {start} is out of place")
            if size < _EXTENT.size:
                raise NotUnderstoodError(f"the extent at logical address {start} is cut short")
            refs, made, flags = unpack(block, DATA_START + place)
            if flags & _TREE_BLOCK:
                good = not flags & ~(_TREE_BLOCK | _FULL_BACKREF) and length == nodesize
                if kind == _METADATA_ITEM and offset >= MAX_LEVEL:
                    good = False
            else:
                good = flags == _DATA and kind == _EXTENT_ITEM
            if not good or not refs or made > generation:
                raise NotUnderstoodError(f"the extent at logical address {start} is damaged")
            end = start + length
            add(start, end)
        self._end = end
        if with_block_groups:
            _add_block_groups(leaf, self.block_groups, self._chunks)


def _add_block_groups(leaf: Leaf, groups: dict[int, _BlockGroup], most: int) -> None:
    for start, length, data in leaf.of_type(_BLOCK_GROUP_ITEM):
        if len(data) != _BLOCK_GROUP.size:
            raise NotUnderstoodError("a block group has a wrong size")
        used, chunk_objectid, flags = _BLOCK_GROUP.unpack(data)
        if chunk_objectid != CHUNK_OBJECTID or start in groups:
            raise NotUnderstoodError("a block group is damaged")
        if len(groups) > most:
            raise NotUnderstoodError("there are more block groups than chunks")
        groups[start] = _BlockGroup(length, used, flags)


def _check_block_groups(extents: Extents, groups: dict[int, _BlockGroup], mapping: Mapping) -> None:
    """Raise NotUnderstoodError unless chunks, block groups and extents match one another."""
    if len(groups) != len(mapping.chunks):
        raise NotUnderstoodError("chunks and block groups contradict each other")
    total = 0
    for chunk in mapping.chunks:
        used = extents.clip(chunk.start, chunk.end).total
        if groups.get(chunk.start) != (chunk.length, used, chunk.type):
            raise NotUnderstoodError(
                f"block group at logical address {chunk.start} contradicts chunk or extents"
            )
        total += used
    if total != extents.total:
        raise NotUnderstoodError("an extent is in no chunk")
