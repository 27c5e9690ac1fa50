"""The superblock of btrfs: what the volume is, and whether this program may trust it.

btrfs-progs documentation, "On-disk Format", section Superblock; field names are those of Linux's
uapi header btrfs_tree.h.
"""

from __future__ import annotations

from enum import IntFlag
from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.btrfs.checksum import CSUM_SIZE, Checksum, find_checksum

SUPERBLOCK_SIZE = 4096
MIRRORS = (64 << 10, 64 << 20, 256 << 30)
"""Where copies of the superblock are, in bytes; a mount reads only the first."""

MAX_LEVEL = 8
"""Trees have fewer levels than that."""

_MAGIC = b"_BHRfS_M"
_MIN_SECTOR, _MAX_NODE = 4096, 65536
_SYS_CHUNK_ARRAY = 0x32B
_SYS_CHUNK_ARRAY_SIZE = 2048

_SUPERBLOCK = Struct("<32s16sQQ8sQQQQQQQQQIIIIIQQQQHBBB98s256sQQ16s")
_DEV_ITEM = Struct("<QQQIIIQQQIBB16s16s")


class Flags(IntFlag):
    """Flags that a sound superblock may have; those of errors and half-done conversions are not."""

    WRITTEN = 1 << 0
    RELOC = 1 << 1
    SEEDING = 1 << 32


class CompatRo(IntFlag):
    """Known bits of compat_ro_flags."""

    FREE_SPACE_TREE = 1 << 0
    FREE_SPACE_TREE_VALID = 1 << 1
    VERITY = 1 << 2
    BLOCK_GROUP_TREE = 1 << 3


class Incompat(IntFlag):
    """Known bits of incompat_flags.

    Not zoned (free space behind a write pointer), extent-tree-v2, raid-stripe-tree and remap-tree
    (addresses are found in other ways).
    """

    MIXED_BACKREF = 1 << 0
    DEFAULT_SUBVOL = 1 << 1
    MIXED_GROUPS = 1 << 2
    COMPRESS_LZO = 1 << 3
    COMPRESS_ZSTD = 1 << 4
    BIG_METADATA = 1 << 5
    EXTENDED_IREF = 1 << 6
    RAID56 = 1 << 7
    SKINNY_METADATA = 1 << 8
    NO_HOLES = 1 << 9
    METADATA_UUID = 1 << 10
    RAID1C34 = 1 << 11
    SIMPLE_QUOTA = 1 << 16


_ZONED = 1 << 12


class DevItem(NamedTuple):
    """btrfs_dev_item: one device of a file system."""

    devid: int
    total_bytes: int
    bytes_used: int
    io_align: int
    io_width: int
    sector_size: int
    type: int
    generation: int
    start_offset: int
    dev_group: int
    seek_speed: int
    bandwidth: int
    uuid: bytes
    fsid: bytes

    @classmethod
    def parse(cls, data: bytes) -> DevItem:
        """NotUnderstoodError where `data` has not the size of one."""
        if len(data) != _DEV_ITEM.size:
            raise NotUnderstoodError("a device item has a wrong size")
        return cls._make(_DEV_ITEM.unpack(data))


class _Fields(NamedTuple):
    """btrfs_super_block up to metadata_uuid."""

    csum: bytes
    fsid: bytes
    bytenr: int
    flags: int
    magic: bytes
    generation: int
    root: int
    chunk_root: int
    log_root: int
    unused_log_root_transid: int
    total_bytes: int
    bytes_used: int
    root_dir_objectid: int
    num_devices: int
    sectorsize: int
    nodesize: int
    leafsize: int
    stripesize: int
    sys_chunk_array_size: int
    chunk_root_generation: int
    compat_flags: int
    compat_ro_flags: int
    incompat_flags: int
    csum_type: int
    root_level: int
    chunk_root_level: int
    log_root_level: int
    dev_item: bytes
    label: bytes
    cache_generation: int
    uuid_tree_generation: int
    metadata_uuid: bytes


class Superblock(NamedTuple):
    """What a reader needs of the superblock; addresses are logical, in bytes."""

    generation: int
    """The number of the last transaction."""
    root: int
    root_level: int
    chunk_root: int
    chunk_root_level: int
    chunk_root_generation: int
    log_root: int
    """0 where there is no log."""
    log_root_level: int
    num_devices: int
    sectorsize: int
    """Bytes; all addresses and sizes are multiples of it."""
    nodesize: int
    """Bytes of a tree block."""
    incompat: Incompat
    compat_ro: CompatRo
    fsid: bytes
    """What each tree block has to name: metadata_uuid, where that differs from the UUID."""
    dev_item: DevItem
    """This device."""
    sys_chunk_array: bytes
    checksum: Checksum


def read_superblock(volume: Volume) -> Superblock:
    """The superblock that a mount would take: the one at 64 KiB, or none.

    Its copies may be older on a healthy volume: an fsync updates the first only. Raises
    NotUnderstoodError unless it is valid and all features are known.
    """
    place = MIRRORS[0]
    if volume.size < place + SUPERBLOCK_SIZE:
        raise NotUnderstoodError("volume is too small for btrfs")
    data = volume.read(place, SUPERBLOCK_SIZE)
    fields = _Fields._make(_SUPERBLOCK.unpack_from(data))
    if fields.magic != _MAGIC or fields.bytenr != place:
        raise NotUnderstoodError("superblock is not one of btrfs")
    checksum = find_checksum(fields.csum_type)
    expected = checksum(memoryview(data)[CSUM_SIZE:])
    if fields.csum[: len(expected)] != expected:
        raise NotUnderstoodError("wrong checksum of the superblock")
    _check_features(fields)
    _check_numbers(fields)
    has_uuid = fields.incompat_flags & Incompat.METADATA_UUID
    fsid = fields.metadata_uuid if has_uuid else fields.fsid
    dev_item = DevItem.parse(fields.dev_item)
    if dev_item.fsid != fsid:
        raise NotUnderstoodError("superblock's device belongs to another file system")
    if not dev_item.devid:
        raise NotUnderstoodError("device is the target of an unfinished replacement")
    end = _SYS_CHUNK_ARRAY + fields.sys_chunk_array_size
    return Superblock(
        fields.generation,
        fields.root,
        fields.root_level,
        fields.chunk_root,
        fields.chunk_root_level,
        fields.chunk_root_generation,
        fields.log_root,
        fields.log_root_level,
        fields.num_devices,
        fields.sectorsize,
        fields.nodesize,
        Incompat(fields.incompat_flags),
        CompatRo(fields.compat_ro_flags),
        fsid,
        dev_item,
        data[_SYS_CHUNK_ARRAY:end],
        checksum,
    )


def _check_features(fields: _Fields) -> None:
    if fields.incompat_flags & _ZONED:
        raise NotUnderstoodError("file system is for zoned devices")
    unknown = (
        ("superblock flags", fields.flags & ~sum(Flags)),
        ("compatible features", fields.compat_flags),
        ("read-only features", fields.compat_ro_flags & ~sum(CompatRo)),
        ("features", fields.incompat_flags & ~sum(Incompat)),
    )
    for name, bits in unknown:
        if bits:
            raise NotUnderstoodError(f"unknown btrfs {name} {bits:#x}")
    if not fields.incompat_flags & Incompat.MIXED_BACKREF:
        raise NotUnderstoodError("file system has references of before 2009")


def _check_numbers(fields: _Fields) -> None:
    sector, node = fields.sectorsize, fields.nodesize
    levels = (fields.root_level, fields.chunk_root_level, fields.log_root_level)
    addresses = (fields.root, fields.chunk_root, fields.log_root)
    checks = (
        (
            _MIN_SECTOR <= sector <= node <= _MAX_NODE
            and not sector & (sector - 1)
            and not node & (node - 1)
            and fields.leafsize == node,
            "sector or node size is out of range",
        ),
        (max(levels) < MAX_LEVEL, "a tree has too many levels"),
        (fields.sys_chunk_array_size <= _SYS_CHUNK_ARRAY_SIZE, "too many system chunks"),
        (fields.num_devices > 0, "file system has no devices"),
    )
    for good, reason in checks:
        if not good:
            raise NotUnderstoodError(reason)
    if any(address % sector for address in addresses):
        raise NotUnderstoodError("the address of a tree is not aligned")
