"""btrfs: what is in use on one device, from the extent tree, the chunks and the log.

    superblock.py   superblock at 64 KiB      -> Superblock: features, roots, this device
    checksum.py     crc32c, xxhash, ...       -> Checksum
    chunks.py       chunk items               -> Mapping: logical addresses to this device's bytes
    tree.py         any tree                  -> leaves in order, each block proven
    roots.py        chunk, root, device tree  -> chunks, where trees begin; do devices agree?
    extent_tree.py  extents, block groups     -> logical addresses in use
    free_space.py   free space tree           -> does it say the same?
    log.py          log trees                 -> what was synced but not committed

**Why this is a proof.** A commit leaves one consistent state that the superblock names, and by the
extent tree of that state the system itself knows what it may overwrite. What an fsync added since
is in the log. So nothing outside of both can be reached by a mount, a check or a scrub. The reader
believes the extent tree only if every block on the way to every leaf is valid, the free space tree
(if there is one) calls free exactly what it does not have, each block group has as many bytes in
use as its extents add up to, the device tree has the chunks that the chunk tree has, and the first
block of every tree is in use.

**Several devices.** Chunks say which of a logical address's copies are on this device, so each
device is right on its own. Where a tree has blocks on other devices only, all chunks of this device
are kept whole: space in no chunk is free for certain, as the chunk tree alone tells. Where that is
on other devices, the device is stored whole.

**Always kept** are the first MiB, which is left to boot loaders, and all superblocks.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Allocation, Volume
from imager.filesystems.btrfs.chunks import Mapping, parse_sys_chunk_array
from imager.filesystems.btrfs.extent_tree import read_extents
from imager.filesystems.btrfs.free_space import check_free_space
from imager.filesystems.btrfs.log import read_log
from imager.filesystems.btrfs.roots import (
    DEV_TREE,
    FREE_SPACE_TREE,
    check_dev_extents,
    read_chunk_tree,
    read_root_tree,
)
from imager.filesystems.btrfs.superblock import (
    MIRRORS,
    SUPERBLOCK_SIZE,
    CompatRo,
    Superblock,
    read_superblock,
)
from imager.filesystems.btrfs.tree import OtherDeviceError, Trees

_BOOT_AREA = 1 << 20
_FREE_SPACE = CompatRo.FREE_SPACE_TREE | CompatRo.FREE_SPACE_TREE_VALID


def read_allocation(volume: Volume) -> Allocation:
    """The bytes in use of one device of a btrfs: see the module's description.

    Raises NotUnderstoodError where the volume has to be stored whole, and ReadFailedError where
    metadata cannot be read.
    """
    superblock = read_superblock(volume)
    system = Mapping(parse_sys_chunk_array(superblock), superblock, volume.size)
    trees = Trees(volume, superblock, system)
    trees.mapping, size = read_chunk_tree(trees, superblock)
    if size > volume.size:
        raise NotUnderstoodError("file system is larger than its volume")
    notes = []
    if superblock.num_devices > 1:
        devid, count = superblock.dev_item.devid, superblock.num_devices
        notes.append(f"one of {count} devices of its file system (devid {devid})")
    try:
        allocated = trees.mapping.physical(_read_logical(trees, superblock, notes))
    except OtherDeviceError:
        allocated = trees.mapping.stripes
        notes.append("its metadata is on other devices: kept all chunks of this one")
    if trees.bad_copies:
        notes.append(f"damaged copies of metadata blocks: {trees.bad_copies}")
    return Allocation((allocated | _fixed()).clip(0, size), size, tuple(notes))


def _read_logical(trees: Trees, superblock: Superblock, notes: list[str]) -> Extents:
    """The logical addresses in use, before and after a replay of the log."""
    roots = read_root_tree(trees, superblock)
    check_dev_extents(trees, roots.find(DEV_TREE), superblock.dev_item.devid)
    logical = read_extents(trees, superblock, roots)
    if superblock.compat_ro & _FREE_SPACE == _FREE_SPACE:
        with suppress(OtherDeviceError):  # then it is not needed: all of the extent tree is here
            tree = roots.find(FREE_SPACE_TREE)
            check_free_space(trees, tree, superblock.sectorsize, logical)
    nodesize = superblock.nodesize
    for bytenr in chain(trees.visited, roots.addresses):
        if not logical.covers(bytenr, bytenr + nodesize):
            raise NotUnderstoodError("extent tree calls a tree block free")
    if superblock.log_root:
        logical |= read_log(trees, superblock)
        notes.append("log not replayed: kept what it refers to")
    return logical


def _fixed() -> Extents:
    superblocks = ((place, place + SUPERBLOCK_SIZE) for place in MIRRORS)
    return Extents.of([(0, _BOOT_AREA), *superblocks])
