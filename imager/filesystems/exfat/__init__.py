"""exFAT: what the allocation bitmap says is in use, united with what its files have.

Source: "exFAT file system specification" (Microsoft, 2019), whose field names are used here. A volume
is

    | boot region | its backup | FAT | (FAT) | cluster heap: clusters 2, 3, ... | excess space |

Skipped are only clusters whose bit is 0 in the bitmap (section 7.1) and that no file or directory
refers to; everything outside of the cluster heap is kept.

*The bitmap alone is not enough.* exFAT has no journal, a stick may be pulled at any time, and
VolumeDirty (section 3.1.13.2) is as good as the driver that had the volume last. A file whose directory entry
reached the disk before its bits did is brought back by repair tools, which rebuild the bitmap from
the directories. So all directories are walked, and what their files have is kept whatever the
bitmap says. With TexFAT there are two bitmaps, of the last two transactions; both count.

*The layout is proven, not believed*: the boot region has a checksum, FAT[0] and FAT[1] must be where
it says, and the up-case table, which the root directory leads to through the FAT, has a checksum too:
with clusters shifted it would not be found.
"""

from __future__ import annotations

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems import Allocation, Volume
from imager.filesystems.exfat.boot import MEDIA_FAILURE, VOLUME_DIRTY, Geometry, read_boot_region
from imager.filesystems.exfat.chains import Chains, Stream
from imager.filesystems.exfat.directory import SystemStreams, read_system_streams
from imager.filesystems.exfat.tree import find_unmarked


def read_allocation(volume: Volume) -> Allocation:
    """What is in use on an exFAT volume.

    Raises NotUnderstoodError where boot region, FAT, bitmap or directories leave a doubt, and
    ReadFailedError where they cannot be read.
    """
    geometry, notes = read_boot_region(volume)
    chains = Chains(volume, geometry)
    root = chains.whole(geometry.root)
    system = read_system_streams(volume, geometry, chains, root)
    marked = Extents()
    for bitmap in system.bitmaps:
        marked |= _read_bitmap(volume, geometry, bitmap)
    _check_marked(marked, geometry, root, system)
    unmarked = find_unmarked(volume, geometry, chains, root, marked)
    if unmarked:
        notes.append("files have clusters that its bitmap does not mark")
    if geometry.flags & VOLUME_DIRTY:
        notes.append("not cleanly unmounted")
    if geometry.flags & MEDIA_FAILURE:
        notes.append("marked as having met disk errors")
    return Allocation(marked | unmarked, geometry.size, tuple(notes))


def _read_bitmap(volume: Volume, geometry: Geometry, bitmap: Stream) -> Extents:
    """The clusters that a bitmap marks, and all that lies outside of the cluster heap.

    Bits behind the last cluster's mean nothing (section 7.1.5).
    """
    if bitmap.size < -(-geometry.clusters // 8):
        raise NotUnderstoodError("its allocation bitmap is too short")
    builder = ExtentsBuilder()
    builder.add(0, geometry.heap)
    done = 0
    for piece in bitmap.pieces(volume, geometry):
        bits = min(8 * len(piece), geometry.clusters - done)
        if bits <= 0:
            break
        base = geometry.heap + done * geometry.cluster
        builder.add_bitmap(piece, bits, geometry.cluster, base)
        done += bits
    builder.add(geometry.offset(geometry.clusters + 2), geometry.size)
    return builder.build()


def _check_marked(marked: Extents, geometry: Geometry, root: Stream, system: SystemStreams) -> None:
    """NotUnderstoodError unless the bitmap has what it must: a bitmap that leaves out itself is none."""
    for stream in (root, system.up_case, *system.bitmaps):
        for first, count in stream.runs:
            if not marked.covers(geometry.offset(first), geometry.offset(first + count)):
                raise NotUnderstoodError(
                    "its allocation bitmap does not mark the file system's own"
                )
