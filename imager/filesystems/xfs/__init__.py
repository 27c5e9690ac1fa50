"""XFS: what is in use, from the trees of free extents, before and after the log.

All that neither tree of an allocation group calls free is in use, the blocks of its free list
included. A file system that was not unmounted has newer trees in its log than on disk: the allocation
is then what is in use after the log has been replayed in memory, and what is not free on disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems import Allocation, Volume
from imager.filesystems.xfs.group import read_group
from imager.filesystems.xfs.layout import Layout
from imager.filesystems.xfs.replay import replay
from imager.filesystems.xfs.superblock import MAX_SECTOR, read_layout
from imager.filesystems.xfs.tree import Tree, read_free

_COUNT = 0xFFFFFFFF


def read_allocation(volume: Volume) -> Allocation:
    """The allocation of an XFS volume.

    Raises NotUnderstoodError where the volume has to be stored whole, and ReadFailedError where
    metadata cannot be read.
    """
    layout = _read_layout(volume)
    replayed = replay(volume, layout)
    if replayed is None:
        return Allocation(_allocated(volume, layout), layout.size)
    if _read_layout(replayed) != layout:
        raise NotUnderstoodError("its log changes the file system's layout")
    allocated = _allocated(replayed, layout)
    notes: tuple[str, ...] = ()
    changed = {
        offset // layout.group_bytes for offset in replayed.offsets if offset % layout.group_bytes
    }
    if changed:
        allocated |= _not_free_on_disk(volume, layout, sorted(changed))
        notes = ("log not replayed: kept what is in use before and after",)
    return Allocation(allocated, layout.size, notes)


def _read_layout(volume: Volume) -> Layout:
    if volume.size < MAX_SECTOR:
        raise NotUnderstoodError("volume is too small for an XFS file system")
    return read_layout(volume.read(0, MAX_SECTOR), volume.size)


def _allocated(volume: Volume, layout: Layout) -> Extents:
    """What is in use where all groups are consistent, else NotUnderstoodError."""
    free = ExtentsBuilder()
    fixed: list[tuple[int, int]] = [layout.log_range()]
    for number in range(layout.group_count):
        group = read_group(volume, layout, number)
        records, own = read_free(volume, layout, group)
        _add(free, layout, number, records)
        start, size = layout.group_start(number), layout.block_size
        blocks = (*own, *group.free_list)
        if len(set(blocks)) != len(blocks):
            raise NotUnderstoodError(f"free list and trees of group {number} overlap")
        fixed += ((start + block * size, start + (block + 1) * size) for block in blocks)
    allocated = free.build().complement(0, layout.size)
    if not all(allocated.covers(start, end) for start, end in fixed):
        raise NotUnderstoodError("free-space trees call metadata free")
    return allocated


def _not_free_on_disk(volume: Volume, layout: Layout, groups: Iterable[int]) -> Extents:
    """What the trees on disk do not call free of some groups.

    Their blocks may be of different ages. One that is damaged says of nothing that it is free.
    """
    found = ExtentsBuilder()
    for number in groups:
        start = layout.group_start(number)
        end = start + layout.group_length(number) * layout.block_size
        free = ExtentsBuilder()
        try:
            tree = Tree.by_block(volume, layout, read_group(volume, layout, number))
            _add(free, layout, number, sorted(tree.read_what_is_intact()))
        except NotUnderstoodError:
            free = ExtentsBuilder()
        for first, last in free.build().complement(start, end):
            found.add(first, last)
    return found.build()


def _add(free: ExtentsBuilder, layout: Layout, number: int, records: Iterable[int]) -> None:
    """Add free extents of a group, as the trees have them, in order of their start."""
    start, size = layout.group_start(number), layout.block_size
    for record in records:
        first = record >> 32
        free.add(start + first * size, start + (first + (record & _COUNT)) * size)
