"""The boot sector: which FAT it is, and where its parts are.

Source: fatgen103, sections "Boot Sector and BPB", "FAT Type Determination" and "FAT32 FSInfo Sector
Structure and Backup Boot Sector".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

STATE_DIRTY, STATE_DISK_ERROR = 1, 2
"""Bits of BS_Reserved1, in which Windows NT and Linux remember a volume's state."""


class BootSector(NamedTuple):
    """The fields that all FAT types share."""

    BS_jmpBoot: bytes
    BS_OEMName: bytes
    BPB_BytsPerSec: int
    BPB_SecPerClus: int
    BPB_RsvdSecCnt: int
    BPB_NumFATs: int
    BPB_RootEntCnt: int
    BPB_TotSec16: int
    BPB_Media: int
    BPB_FATSz16: int
    BPB_SecPerTrk: int
    BPB_NumHeads: int
    BPB_HiddSec: int
    BPB_TotSec32: int


class Fat32Fields(NamedTuple):
    """What follows them on FAT32."""

    BPB_FATSz32: int
    BPB_ExtFlags: int
    BPB_FSVer: int
    BPB_RootClus: int
    BPB_FSInfo: int
    BPB_BkBootSec: int
    BPB_Reserved: bytes


class DriveFields(NamedTuple):
    """What follows then, on all types."""

    BS_DrvNum: int
    BS_Reserved1: int
    BS_BootSig: int


_BOOT_SECTOR = struct.Struct("<3s8sHBHBHHBHHHII")
_FAT32_FIELDS = struct.Struct("<IHHIHH12s")
_DRIVE_FIELDS = struct.Struct("<BBB")

_BOOT_SIZE = 512
"""The part of a boot sector that has a meaning, whatever the sector size."""
_SIGNATURE_AT, _SIGNATURE = 510, b"\x55\xaa"
_JUMPS = (0xEB, 0xE9)
_MEDIA = (0xF0, 0xF8, 0xF9, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF)
_BOOT_SIGNATURES = (0x28, 0x29)
_ACTIVE_FAT, _NOT_MIRRORED = 0x000F, 0x0080
_NO_SECTOR = (0, 0xFFFF)
_DIRECTORY_ENTRY_SIZE = 32

_MOST_FATS = 4
"""As mkfs.fat makes them; the specification has no limit, and two are usual."""

_DISPUTED_COUNTS = (4085, 4086)
"""FAT16 by the specification, FAT12 to Windows NT; formatting tools stay away from them."""


_TYPE_SIGNATURE = 0x29
_TYPE_AT = 54  # BS_FilSysType of FAT12 and FAT16
_TYPES = {b"FAT12   ": 12, b"FAT16   ": 16}


class Kind(NamedTuple):
    """A type of FAT; section "FAT Data Structure"."""

    bits: int
    """How wide a table entry is."""
    mask: int
    """The bits of it that count: the upper four of FAT32 do not."""
    clean: int
    """ClnShutBitMask of FAT[1]: set unless the volume is dirty."""
    no_error: int
    """HrdErrBitMask of FAT[1]: set unless a disk error was met."""


FAT12 = Kind(12, 0xFFF, 0, 0)
FAT16 = Kind(16, 0xFFFF, 0x8000, 0x4000)
FAT32 = Kind(32, 0x0FFFFFFF, 0x08000000, 0x04000000)


class Layout(NamedTuple):
    """Where things are; offsets and sizes in bytes."""

    kind: Kind
    sector: int
    media: int
    fats: tuple[int, ...]
    """Offsets of the tables that are in force: what one has in use, is."""
    fat_size: int
    root: int
    """Offset of the root directory, or of its first cluster."""
    root_size: int
    data: int
    """Offset of cluster 2, the first."""
    cluster: int
    """Size of a cluster."""
    clusters: int
    """How many there are."""
    size: int
    state: int
    """BS_Reserved1, or 0 where the boot sector is too old to have it."""

    def offset(self, number: int) -> int:
        """Where the cluster of this number begins."""
        return self.data + (number - 2) * self.cluster


def read_layout(volume: Volume) -> Layout:
    """The layout of `volume`; NotUnderstoodError unless each field makes sense."""
    if volume.size < _BOOT_SIZE:
        raise NotUnderstoodError("too small for a FAT file system")
    sector = volume.read(0, _BOOT_SIZE)
    boot = BootSector._make(_BOOT_SECTOR.unpack_from(sector))
    if sector[_SIGNATURE_AT:] != _SIGNATURE or boot.BS_jmpBoot[0] not in _JUMPS:
        raise NotUnderstoodError("no FAT boot sector")
    _check_shared_fields(volume, boot)
    if boot.BPB_FATSz16:
        return _fat16_layout(sector, boot)
    more = Fat32Fields._make(_FAT32_FIELDS.unpack_from(sector, _BOOT_SECTOR.size))
    layout = _fat32_layout(sector, boot, more)
    if more.BPB_BkBootSec not in _NO_SECTOR:
        _check_backup(sector, volume.read(more.BPB_BkBootSec * boot.BPB_BytsPerSec, _BOOT_SIZE))
    return layout


def _fat16_layout(sector: bytes, boot: BootSector) -> Layout:
    """The layout of FAT12 and FAT16, which only the number of clusters tells apart."""
    fats, root = _table_offsets(boot, boot.BPB_FATSz16)
    root_size = boot.BPB_RootEntCnt * _DIRECTORY_ENTRY_SIZE
    if root_size == 0 or root_size % boot.BPB_BytsPerSec:
        raise NotUnderstoodError("size of the root directory makes no sense")
    clusters = _count_clusters(boot, root + root_size)
    if clusters in _DISPUTED_COUNTS or clusters >= 65525:
        raise NotUnderstoodError("number of clusters leaves the FAT type open")
    layout = Layout(
        kind=FAT12 if clusters < 4085 else FAT16,
        sector=boot.BPB_BytsPerSec,
        media=boot.BPB_Media,
        fats=fats,
        fat_size=boot.BPB_FATSz16 * boot.BPB_BytsPerSec,
        root=root,
        root_size=root_size,
        data=root + root_size,
        cluster=boot.BPB_SecPerClus * boot.BPB_BytsPerSec,
        clusters=clusters,
        size=_total_size(boot),
        state=_state(sector, _BOOT_SECTOR.size),
    )
    _check_room(layout)
    _check_type(sector, layout)
    return layout


def _check_type(sector: bytes, layout: Layout) -> None:
    """Refuse a boot sector that names the other of FAT12 and FAT16.

    The name does not decide, and many have none. But a damaged number of sectors makes one type of
    the other, and a table read with entries of another width has zeros in other places.
    """
    drive = DriveFields._make(_DRIVE_FIELDS.unpack_from(sector, _BOOT_SECTOR.size))
    named = _TYPES.get(sector[_TYPE_AT : _TYPE_AT + 8], layout.kind.bits)
    if drive.BS_BootSig == _TYPE_SIGNATURE and named != layout.kind.bits:
        raise NotUnderstoodError(
            "number of clusters and name of the FAT type contradict each other"
        )


def _fat32_layout(sector: bytes, boot: BootSector, more: Fat32Fields) -> Layout:
    """The layout of FAT32, which all drivers tell by BPB_FATSz16 = 0.

    By the specification it also has 65525 clusters or more; EFI system partitions on disks with
    4096-byte sectors often have fewer. They cannot be mistaken for FAT16, which has no other field
    to say how long its table is, and FAT[0] and FAT[1] prove how wide an entry is.
    """
    if boot.BPB_RootEntCnt or more.BPB_FSVer or any(more.BPB_Reserved):
        raise NotUnderstoodError("FAT32 of an unknown version")
    if more.BPB_ExtFlags & ~(_ACTIVE_FAT | _NOT_MIRRORED):
        raise NotUnderstoodError("unknown FAT32 flags")
    for number in (more.BPB_FSInfo, more.BPB_BkBootSec):
        if number not in _NO_SECTOR and number >= boot.BPB_RsvdSecCnt:
            raise NotUnderstoodError("FSInfo or backup boot sector is outside of the reserved area")
    fats, data = _table_offsets(boot, more.BPB_FATSz32)
    if more.BPB_ExtFlags & _NOT_MIRRORED:
        active = more.BPB_ExtFlags & _ACTIVE_FAT
        if active >= len(fats):
            raise NotUnderstoodError("the active file allocation table does not exist")
        fats = fats[active : active + 1]
    clusters = _count_clusters(boot, data)
    cluster = boot.BPB_SecPerClus * boot.BPB_BytsPerSec
    layout = Layout(
        kind=FAT32,
        sector=boot.BPB_BytsPerSec,
        media=boot.BPB_Media,
        fats=fats,
        fat_size=more.BPB_FATSz32 * boot.BPB_BytsPerSec,
        root=data + (more.BPB_RootClus - 2) * cluster,
        root_size=cluster,
        data=data,
        cluster=cluster,
        clusters=clusters,
        size=_total_size(boot),
        state=_state(sector, _BOOT_SECTOR.size + _FAT32_FIELDS.size),
    )
    _check_room(layout)
    if not 2 <= more.BPB_RootClus < clusters + 2:
        raise NotUnderstoodError("root directory is outside of the volume")
    return layout


def _check_shared_fields(volume: Volume, boot: BootSector) -> None:
    """Refuse values that no FAT type allows, and volumes larger than what holds them."""
    if boot.BPB_BytsPerSec not in (512, 1024, 2048, 4096):
        raise NotUnderstoodError("sector size makes no sense")
    if boot.BPB_BytsPerSec < volume.sector_size:
        raise NotUnderstoodError("sectors are smaller than the disk's")
    if boot.BPB_SecPerClus not in (1, 2, 4, 8, 16, 32, 64, 128):
        raise NotUnderstoodError("cluster size makes no sense")
    if boot.BPB_RsvdSecCnt == 0:
        raise NotUnderstoodError("no reserved sectors")
    if not 1 <= boot.BPB_NumFATs <= _MOST_FATS:
        raise NotUnderstoodError("number of file allocation tables makes no sense")
    if boot.BPB_Media not in _MEDIA:
        raise NotUnderstoodError("unknown media type")
    if boot.BPB_TotSec16 and boot.BPB_TotSec32 not in (0, boot.BPB_TotSec16):
        raise NotUnderstoodError("two different sizes are given")
    if _total_size(boot) > volume.size:
        raise NotUnderstoodError("file system is larger than its volume")


def _check_backup(sector: bytes, backup: bytes) -> None:
    """Refuse a backup boot sector that describes another layout.

    Only the fields that shape the volume are compared, BPB_BytsPerSec to BPB_FATSz16, BPB_TotSec32
    and BPB_FATSz32, BPB_FSVer and BPB_RootClus: drivers and tools change others (dirty flag,
    active table, hidden sectors, label) in the first copy alone.
    """
    for shape in (slice(11, 24), slice(32, 40), slice(42, 48), slice(_SIGNATURE_AT, _BOOT_SIZE)):
        if sector[shape] != backup[shape]:
            raise NotUnderstoodError("boot sector differs from its backup")


def _total_size(boot: BootSector) -> int:
    return (boot.BPB_TotSec16 or boot.BPB_TotSec32) * boot.BPB_BytsPerSec


def _count_clusters(boot: BootSector, data: int) -> int:
    """CountofClusters: the whole clusters from `data` to the end; a rest belongs to none."""
    return max(_total_size(boot) - data, 0) // (boot.BPB_SecPerClus * boot.BPB_BytsPerSec)


def _table_offsets(boot: BootSector, sectors: int) -> tuple[tuple[int, ...], int]:
    """Offsets of the tables, each of that many sectors, and of what follows them."""
    starts = [boot.BPB_RsvdSecCnt + copy * sectors for copy in range(boot.BPB_NumFATs + 1)]
    *fats, end = (start * boot.BPB_BytsPerSec for start in starts)
    return tuple(fats), end


def _state(sector: bytes, offset: int) -> int:
    drive = DriveFields._make(_DRIVE_FIELDS.unpack_from(sector, offset))
    return drive.BS_Reserved1 if drive.BS_BootSig in _BOOT_SIGNATURES else 0


def _check_room(layout: Layout) -> None:
    """Refuse a volume without clusters, or with more than its table has entries or numbers for."""
    if layout.clusters == 0:
        raise NotUnderstoodError("no room for clusters")
    if (layout.clusters + 2) * layout.kind.bits > layout.fat_size * 8:
        raise NotUnderstoodError("file allocation table is too short for the volume")
    # The mark of bad clusters is the lowest number that is never a cluster's on any type of FAT.
    if layout.clusters + 1 >= layout.kind.mask - 8:
        raise NotUnderstoodError("more clusters than FAT can number")
