"""The root tree and the chunk tree: where the other trees begin, and what the devices are.

btrfs-progs documentation, "On-disk Format", sections ROOT_ITEM, DEV_ITEM, DEV_EXTENT; struct
btrfs_root_item in Linux's uapi header btrfs_tree.h.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems.btrfs.chunks import (
    CHUNK_ITEM,
    CHUNK_OBJECTID,
    SYSTEM,
    Chunk,
    Mapping,
    parse_chunk,
)
from imager.filesystems.btrfs.superblock import MAX_LEVEL, DevItem, Superblock
from imager.filesystems.btrfs.tree import Root, Trees

ROOT_TREE, EXTENT_TREE, CHUNK_TREE, DEV_TREE = 1, 2, 3, 4
FREE_SPACE_TREE, BLOCK_GROUP_TREE = 10, 11

ROOT_ITEM = 132
_DEV_EXTENT, _DEV_ITEM = 204, 216
_DEV_ITEMS_OBJECTID = 1
_MAX_CHUNKS = 1 << 18  # 256 TiB in chunks of 1 GiB; bounds what they cost

_ROOT = Struct("<160xQQQQQQQI17sBB")
_EXTENT = Struct("<QQQQ16s")


class RootItem(NamedTuple):
    """btrfs_root_item behind its inode, up to level."""

    generation: int
    root_dirid: int
    bytenr: int
    byte_limit: int
    bytes_used: int
    last_snapshot: int
    flags: int
    refs: int
    drop_progress: bytes
    drop_level: int
    level: int

    @classmethod
    def parse(cls, data: bytes) -> RootItem:
        """NotUnderstoodError where `data` is no root item."""
        if len(data) < _ROOT.size:
            raise NotUnderstoodError("a root item is cut short")
        item = cls._make(_ROOT.unpack_from(data))
        if item.level >= MAX_LEVEL:
            raise NotUnderstoodError("a tree has too many levels")
        return item


def read_chunk_tree(trees: Trees, superblock: Superblock) -> tuple[Mapping, int]:
    """All chunks, and how many bytes of the device belong to the file system.

    `trees` knows the system chunks. Raises as `Trees.leaves`, and NotUnderstoodError where chunks
    or devices contradict each other.
    """
    root = Root(
        CHUNK_TREE,
        superblock.chunk_root,
        superblock.chunk_root_generation,
        superblock.chunk_root_level,
    )
    chunks: list[Chunk] = []
    devids: set[int] = set()
    ours = None
    for leaf in trees.leaves(root):
        for objectid, start, data in leaf.of_type(CHUNK_ITEM):
            if objectid != CHUNK_OBJECTID:
                raise NotUnderstoodError("a chunk has an unknown object id")
            chunks.append(parse_chunk(start, data, superblock))
        if len(chunks) > _MAX_CHUNKS:
            raise NotUnderstoodError("file system has too many chunks")
        for objectid, devid, data in leaf.of_type(_DEV_ITEM):
            device = DevItem.parse(data)
            if objectid != _DEV_ITEMS_OBJECTID or device.devid != devid:
                raise NotUnderstoodError("a device item contradicts its key")
            devids.add(devid)
            if devid == superblock.dev_item.devid:
                ours = device
    if ours is None or (ours.uuid, ours.fsid) != (superblock.dev_item.uuid, superblock.fsid):
        raise NotUnderstoodError("device is none of the file system's")
    if any(stripe.devid not in devids for chunk in chunks for stripe in chunk.stripes):
        raise NotUnderstoodError("a chunk is on a device that is none of the file system's")
    mapping = Mapping(chunks, superblock, ours.total_bytes)
    if [chunk for chunk in mapping.chunks if chunk.type & SYSTEM] != trees.mapping.chunks:
        raise NotUnderstoodError("superblock and chunk tree have different system chunks")
    return mapping, ours.total_bytes


class Roots(NamedTuple):
    """What the root tree tells."""

    by_id: dict[int, Root]
    """Trees that there are once, by object id."""
    addresses: array[int]
    """Of all trees' first blocks."""

    def find(self, owner: int) -> Root:
        """NotUnderstoodError where there is no such tree."""
        if owner not in self.by_id:
            raise NotUnderstoodError(f"file system has no tree {owner}")
        return self.by_id[owner]


def read_root_tree(trees: Trees, superblock: Superblock) -> Roots:
    """Raises as `Trees.leaves`."""
    root = Root(ROOT_TREE, superblock.root, superblock.generation, superblock.root_level)
    roots = Roots({}, array("Q"))
    for leaf in trees.leaves(root):
        for objectid, offset, data in leaf.of_type(ROOT_ITEM):
            item = RootItem.parse(data)
            if item.generation > superblock.generation:
                raise NotUnderstoodError("a tree is younger than the file system")
            roots.addresses.append(item.bytenr)
            if not offset:
                roots.by_id[objectid] = Root(objectid, item.bytenr, item.generation, item.level)
    return roots


def check_dev_extents(trees: Trees, root: Root, devid: int) -> None:
    """Raise NotUnderstoodError unless the device tree and the chunks agree on this device."""
    missing = {
        (offset, chunk.start, chunk.stripe_size) for offset, chunk, _ in trees.mapping.placed()
    }
    for leaf in trees.leaves(root):
        for device, offset, data in leaf.of_type(_DEV_EXTENT):
            if len(data) != _EXTENT.size:
                raise NotUnderstoodError("a device extent has a wrong size")
            chunk_tree, chunk_objectid, chunk_offset, length, _ = _EXTENT.unpack(data)
            if (chunk_tree, chunk_objectid) != (CHUNK_TREE, CHUNK_OBJECTID):
                raise NotUnderstoodError("a device extent is of an unknown kind")
            if device == devid:
                if (offset, chunk_offset, length) not in missing:
                    raise NotUnderstoodError("device tree has an extent that is in no chunk")
                missing.remove((offset, chunk_offset, length))
    if missing:
        raise NotUnderstoodError("device tree lacks an extent of a chunk")
