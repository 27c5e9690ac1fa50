"""The log: what fsync has saved since the last commit, for the next mount to replay.

An fsync writes neither the extent tree nor the subvolume's tree. It writes a log tree for the
subvolume, with the items of the files that were synced, and a tree of log trees, to which the
superblock's log_root refers. Their blocks, and the extents of new file data, are free by the extent
tree: only the log tells of them. New chunks are never in use before a commit.

Linux, fs/btrfs/tree-log.c; struct btrfs_file_extent_item in the uapi header btrfs_tree.h.
"""

from __future__ import annotations

from struct import Struct

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems.btrfs.roots import ROOT_ITEM, RootItem
from imager.filesystems.btrfs.superblock import Superblock
from imager.filesystems.btrfs.tree import Root, Trees

_LOG_TREE = (1 << 64) - 6
_EXTENT_DATA = 108
_KNOWN_ITEMS = frozenset((1, 12, 13, 24, 36, 37, 60, 72, 84, 96, _EXTENT_DATA, 128))
"""Of inodes, names, attributes, verity, logged parts of directories; file extents; checksums."""

_FILE_EXTENT = Struct("<QQBBHBQQQQ")
_INLINE, _REGULAR, _PREALLOCATED = 0, 1, 2
_INLINE_HEADER = 21
_MAX_EXTENTS = 1 << 20


def read_log(trees: Trees, superblock: Superblock) -> Extents:
    """The logical addresses of the log, and of the file data that it alone refers to.

    Raises as `Trees.leaves`, and NotUnderstoodError where the log is damaged.
    """
    ranges = []
    before = len(trees.visited)
    for root in _read_roots(trees, superblock):
        for leaf in trees.leaves(root):
            if any(item[1] not in _KNOWN_ITEMS for item in leaf.items):
                raise NotUnderstoodError("the log has unknown items")
            for _, _, data in leaf.of_type(_EXTENT_DATA):
                found = _file_extent(data, superblock)
                if found is not None:
                    ranges.append(found)
            if len(ranges) > _MAX_EXTENTS:
                raise NotUnderstoodError("the log is too large")
    nodesize = superblock.nodesize
    ranges += ((bytenr, bytenr + nodesize) for bytenr in trees.visited[before:])
    logged = Extents.of(ranges)
    if logged - trees.mapping.logical:
        raise NotUnderstoodError("the log refers to an address in no chunk")
    return logged


def _file_extent(data: bytes, superblock: Superblock) -> tuple[int, int] | None:
    """The range on disk of a btrfs_file_extent_item; None where it has none (inline, a hole)."""
    if len(data) >= _INLINE_HEADER and data[_INLINE_HEADER - 1] == _INLINE:
        return None
    if len(data) != _FILE_EXTENT.size:
        raise NotUnderstoodError("a file extent in the log has a wrong size")
    _, _, _, _, _, kind, bytenr, size, _, _ = _FILE_EXTENT.unpack(data)
    if kind not in (_REGULAR, _PREALLOCATED):
        raise NotUnderstoodError("a file extent in the log is of an unknown kind")
    if (bytenr | size) % superblock.sectorsize or bytenr + size >= 1 << 63:
        raise NotUnderstoodError("a file extent in the log is damaged")
    return (bytenr, bytenr + size) if bytenr else None


def _read_roots(trees: Trees, superblock: Superblock) -> list[Root]:
    """The log trees, one for each subvolume with synced files."""
    generation = superblock.generation + 1
    root = Root(_LOG_TREE, superblock.log_root, generation, superblock.log_root_level)
    found: list[Root] = []
    for leaf in trees.leaves(root):
        if any(item[:2] != (_LOG_TREE, ROOT_ITEM) for item in leaf.items):
            raise NotUnderstoodError("the log has an unknown tree")
        for _, _, data in leaf.of_type(ROOT_ITEM):
            item = RootItem.parse(data)
            found.append(Root(_LOG_TREE, item.bytenr, item.generation, item.level))
    return found
