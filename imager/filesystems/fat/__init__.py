"""FAT12, FAT16 and FAT32: what the file allocation table says is in use.

Source: Microsoft Extensible Firmware Initiative FAT32 File System Specification, version 1.03
(fatgen103), whose field names are used here. A volume is

    | reserved: boot sector, FSInfo, backup | FAT | FAT | root (FAT12/16) | clusters 2, 3, ... |

Skipped are only clusters whose table entry is 0; everything else is kept, clusters marked bad and
reserved values included. Chains are not walked: crossed or looping ones keep their clusters too.

*A dirty volume is noted, not refused.* The dirty flags are set on every volume that is mounted and
every stick that was pulled out. FAT has no journal: nothing will ever be replayed into the table,
it is the allocation. Where a directory entry reached the disk before the table did, the file's
clusters are free to every driver, and repair tools cut the file to its chain, so a copy without
them is worth as much as the original. A table caught in the middle of an update shows in root
directory entries that point to free clusters, which is refused, or in copies that differ: then what
any of them has in use is kept, so that it does not matter which of them a driver or a repair tool
takes for the true one.

*An entry that points outside of the volume is refused.* It would keep its own cluster, but no
driver writes such a link: the table is damaged, and then its zeros prove nothing.

*The layout is proven, not believed*, as a wrong boot sector (boot code copied over it, say) would
shift every cluster: the tables must begin where it says, a single one must not run into
what follows it, FAT32 has a backup to compare with; the root directory must not be empty if there
are files, its entries must point to allocated clusters, and directories among them must begin with
their "." entry. FSInfo's free count proves nothing and is not read.
"""

from __future__ import annotations

from imager.extents import ExtentsBuilder
from imager.filesystems import Allocation, Volume
from imager.filesystems.fat.layout import STATE_DIRTY, STATE_DISK_ERROR, read_layout
from imager.filesystems.fat.root import check_root_directory
from imager.filesystems.fat.table import check_first_entries, check_length, used_clusters


def read_allocation(volume: Volume) -> Allocation:
    """What is in use on a FAT12, FAT16 or FAT32 volume.

    Raises NotUnderstoodError where boot sector, tables or root directory leave a doubt, and
    ReadFailedError where they cannot be read.
    """
    layout = read_layout(volume)
    flags = check_first_entries(volume, layout)
    check_length(volume, layout)
    builder = ExtentsBuilder()
    builder.add(0, layout.data)
    agree = True
    for number, used, same in used_clusters(volume, layout):
        agree &= same
        builder.add_bitmap(used.tobytes(), len(used), layout.cluster, layout.offset(number))
    builder.add(layout.offset(layout.clusters + 2), layout.size)
    allocated = builder.build()
    check_root_directory(volume, layout, allocated)
    notes = []
    if layout.state & STATE_DIRTY or layout.kind.clean & ~flags:
        notes.append("not cleanly unmounted")
    if layout.state & STATE_DISK_ERROR or layout.kind.no_error & ~flags:
        notes.append("marked as having met disk errors")
    if not agree:
        notes.append("the file allocation tables differ: kept what any of them has in use")
    return Allocation(allocated, layout.size, tuple(notes))
