"""ext2, ext3 and ext4: what is in use, from the block bitmaps, before and after the journal.

A file system that was not unmounted has bitmaps in its journal that are newer than those on disk.
The allocation is then the union of what the bitmaps on disk say and what they say once the journal
has been replayed, in memory; and of what fast commits behind the log put to use.
"""

from __future__ import annotations

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Allocation, Volume
from imager.filesystems.ext.bitmaps import allocated_extents, read_bitmaps, union
from imager.filesystems.ext.blocks import Blocks, ReplayedBlocks
from imager.filesystems.ext.fast_commit import read_fast_commits
from imager.filesystems.ext.groups import Groups, read_groups
from imager.filesystems.ext.journal import Journal, read_journal
from imager.filesystems.ext.layout import Layout
from imager.filesystems.ext.replay import replay
from imager.filesystems.ext.superblock import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, read_layout


def read_allocation(volume: Volume) -> Allocation:
    """The allocation of an ext2, ext3 or ext4 volume.

    Raises NotUnderstoodError where the volume has to be stored whole, and ReadFailedError where
    metadata cannot be read.
    """
    return _read(volume, still=False)


def read_still(volume: Volume) -> Allocation:
    """The same for one that is mounted and frozen.

    Without a journal it is marked as not clean from mount to unmount. A freeze writes out all of its
    metadata (linux/fs/super.c, `freeze_super`: sync_filesystem), so its bitmaps are right.
    """
    return _read(volume, still=True)


def _read(volume: Volume, still: bool) -> Allocation:
    if volume.size < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
        raise NotUnderstoodError("volume is too small for an ext file system")
    layout = read_layout(volume.read(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE), volume.size, still)
    disk = Blocks(volume, layout.block_size)
    groups = read_groups(disk, layout)
    notes: list[str] = []
    journal, added = None, Extents()
    if layout.journal_inum is not None:
        journal = read_journal(disk, layout, groups, layout.journal_inum)
    if journal is None or not journal.start:
        bitmaps = read_bitmaps(disk, layout, groups)
    else:
        logged, sequence = replay(journal, _map_blocks(layout, groups))
        added = read_fast_commits(journal, sequence, layout)
        replayed = ReplayedBlocks(volume, layout.block_size, logged)
        later_groups = _replayed_groups(replayed, layout, groups, volume.size)
        bitmaps = union(
            # On disk a logged bitmap and the descriptor with its checksum may differ in age.
            read_bitmaps(disk, layout, groups, unproven=logged),
            read_bitmaps(replayed, layout, later_groups),
        )
        notes.append("journal not replayed: kept what is in use before and after")
    if layout.external_journal:
        notes.append("its journal is on another device, and empty")
    allocated = allocated_extents(layout, bitmaps) | added
    allocation = Allocation(allocated, layout.size, tuple(notes))
    _check_fixed(allocation, layout, groups, journal)
    return allocation


def _map_blocks(layout: Layout, groups: Groups) -> set[int]:
    """The blocks that say what is in use: superblock, group descriptors, block bitmaps."""
    blocks = {layout.superblock_block, *groups.block_bitmap}
    for first, count in layout.descriptor_runs():
        blocks.update(range(first, first + count))
    return blocks


def _replayed_groups(blocks: Blocks, layout: Layout, groups: Groups, volume_size: int) -> Groups:
    """The group descriptors after the replay, which may not have moved anything.

    Where they have, the file system was resized and crashed, and `_map_blocks` of the log were
    looked for in the wrong places.
    """
    data = blocks.read(layout.superblock_block, 1)
    offset = SUPERBLOCK_OFFSET % layout.block_size
    if read_layout(data[offset : offset + SUPERBLOCK_SIZE], volume_size) != layout:
        raise NotUnderstoodError("journal changes the file system's layout")
    replayed = read_groups(blocks, layout)
    if replayed.block_bitmap != groups.block_bitmap or replayed.metadata != groups.metadata:
        raise NotUnderstoodError("journal moves structures of block groups")
    return replayed


def _check_fixed(
    allocation: Allocation, layout: Layout, groups: Groups, journal: Journal | None
) -> None:
    """Raise NotUnderstoodError where the bitmaps call free what is known to be in use."""
    covers = allocation.allocated.covers
    if not all(covers(start, end) for start, end in groups.metadata):
        raise NotUnderstoodError("block bitmaps call metadata free")
    if journal is not None and not all(covers(start, end) for start, end in journal.file.extents):
        raise NotUnderstoodError("block bitmaps call the journal free")
    if layout.mmp_block is not None:
        start = layout.mmp_block * layout.block_size
        if not covers(start, start + layout.block_size):
            raise NotUnderstoodError("block bitmaps call the mmp block free")
