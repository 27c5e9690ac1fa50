"""F2FS: what the segment information table says is in use, with what a recovery would bring back.

Source: Linux, Documentation/filesystems/f2fs.rst and include/linux/f2fs_fs.h, whose field names are
used here, and Lee et al., "F2FS: A New File System for Flash Storage" (FAST 2015). A volume is

    | superblock, twice | checkpoint, twice | SIT | NAT | SSA | main area: segments of 2 MiB |

Everything before the main area is kept. Of the main area a block is kept if it is valid in the segment
information table (SIT) as of the newer sound checkpoint, its journal included.

*A checkpoint is not all.* What was fsynced after it is found by following the log of nodes from where the
checkpoint left off, as the next mount does (roll-forward recovery); these nodes and the data that they
point to are kept as well. SIT blocks have no checksum: each count of valid blocks must fit its bitmap, and
the sums must fit the checkpoint, which has one.
"""

from __future__ import annotations

from imager.extents import Extents
from imager.filesystems import Allocation, Volume
from imager.filesystems.f2fs.checkpoint import CP_UMOUNT, read_checkpoint
from imager.filesystems.f2fs.roll_forward import fsynced_blocks
from imager.filesystems.f2fs.sit import valid_blocks
from imager.filesystems.f2fs.superblock import BLOCK, read_superblock


def read_allocation(volume: Volume) -> Allocation:
    """What is in use on an F2FS volume.

    Raises NotUnderstoodError where superblock, checkpoint or SIT leave a doubt, and ReadFailedError where
    they cannot be read.
    """
    layout, notes = read_superblock(volume)
    checkpoint = read_checkpoint(volume, layout)
    kept = Extents.span(0, layout.main * BLOCK) | valid_blocks(volume, layout, checkpoint)
    kept |= fsynced_blocks(volume, layout, checkpoint)
    if not checkpoint.flags & CP_UMOUNT:
        notes.append("not cleanly unmounted")
    size = layout.blocks * BLOCK
    return Allocation(kept | Extents.span(layout.main_end * BLOCK, size), size, tuple(notes))
