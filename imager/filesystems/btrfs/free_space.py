"""The free space tree: a second record of what is free, kept with each extent.

    block group    info | extent | extent | ...        start and length, in the keys
                   info | bitmap | bitmap | ...        where that is shorter: a bit for each sector

btrfs-progs documentation, "Btrees", section Free space tree; key types in Linux's uapi header
btrfs_tree.h.
"""

from __future__ import annotations

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems.btrfs.tree import DATA_START, Root, Trees

_INFO, _EXTENT, _BITMAP = 198, 199, 200


_LIMIT = 1 << 63


def check_free_space(trees: Trees, root: Root, sectorsize: int, used: Extents) -> None:
    """Raise NotUnderstoodError unless the tree calls all of the chunks but `used` free.

    Of chunks that are no more, mkfs leaves entries. Raises as `Trees.leaves`, too.
    """
    builder = ExtentsBuilder()
    chunks = trees.mapping.logical
    for leaf in trees.leaves(root):
        for start, kind, length, place, size in leaf.items:
            if kind == _INFO:
                continue
            if start + length > _LIMIT or length % sectorsize:
                raise NotUnderstoodError("free space is out of place")
            if kind == _EXTENT:
                builder.add(start, start + length)
            elif kind == _BITMAP and length // sectorsize <= size * 8:
                data = leaf.block[DATA_START + place : DATA_START + place + size]
                builder.add_bitmap(data, length // sectorsize, sectorsize, start)
            else:
                raise NotUnderstoodError("free space tree is damaged")
    if builder.build() & chunks != chunks - used:
        raise NotUnderstoodError("extent tree and free space tree contradict each other")
