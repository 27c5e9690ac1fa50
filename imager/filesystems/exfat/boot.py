"""The boot region: where the parts of the volume are.

Source: "exFAT file system specification", section 3, "Main and Backup Boot Regions".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.filesystems import Volume

ACTIVE_FAT, VOLUME_DIRTY, MEDIA_FAILURE = 1, 2, 4
"""Bits of VolumeFlags; section 3.1.13."""

FIRST_CLUSTER = 2
"""The number of the first cluster in the heap."""


class BootSector(NamedTuple):
    """Section 3.1, table 4; offsets and lengths in sectors unless they say otherwise."""

    JumpBoot: bytes
    FileSystemName: bytes
    MustBeZero: bytes
    PartitionOffset: int
    VolumeLength: int
    FatOffset: int
    FatLength: int
    ClusterHeapOffset: int
    ClusterCount: int
    FirstClusterOfRootDirectory: int
    VolumeSerialNumber: int
    FileSystemRevision: int
    VolumeFlags: int
    BytesPerSectorShift: int
    SectorsPerClusterShift: int
    NumberOfFats: int
    DriveSelect: int
    PercentInUse: int
    Reserved: bytes
    BootCode: bytes
    BootSignature: int


_BOOT_SECTOR = struct.Struct("<3s8s53sQQIIIIIIHHBBBBB7s390sH")
_JUMP, _NAME, _SIGNATURE = b"\xeb\x76\x90", b"EXFAT   ", 0xAA55
_SMALLEST_SECTOR_SHIFT, _LARGEST_SECTOR_SHIFT = 9, 12
_LARGEST_CLUSTER_SHIFT = 25
_MOST_CLUSTERS = 2**32 - 11
_REGION_SECTORS = 12
"""Sectors of a boot region, the last of which holds checksums."""
_VOLATILE = (106, 107, 112)
"""VolumeFlags and PercentInUse, which change with every mount, are in no checksum; section 3.4."""


class Geometry(NamedTuple):
    """Where things are; offsets and sizes in bytes."""

    sector: int
    fat: int
    """Offset of the FAT that is active."""
    heap: int
    """Offset of cluster 2, the first."""
    cluster: int
    clusters: int
    root: int
    """Number of the root directory's first cluster."""
    fats: int
    flags: int
    """VolumeFlags."""
    size: int

    def offset(self, number: int) -> int:
        """Where the cluster of this number begins."""
        return self.heap + (number - FIRST_CLUSTER) * self.cluster


def read_boot_region(volume: Volume) -> tuple[Geometry, list[str]]:
    """The layout of `volume`, and notes for a person.

    Raises NotUnderstoodError unless each field makes sense and the checksum is right.
    """
    if volume.size < _BOOT_SECTOR.size:
        raise NotUnderstoodError("too small for an exFAT file system")
    boot = BootSector._make(_BOOT_SECTOR.unpack(volume.read(0, _BOOT_SECTOR.size)))
    _check_kind(boot)
    sector = 1 << boot.BytesPerSectorShift
    _check_fields(boot, volume, sector)
    region = volume.read(0, _REGION_SECTORS * sector)
    if not _is_sound(region, sector):
        raise NotUnderstoodError("wrong checksum of its boot region")
    active = boot.VolumeFlags & ACTIVE_FAT
    geometry = Geometry(
        sector=sector,
        fat=(boot.FatOffset + active * boot.FatLength) * sector,
        heap=boot.ClusterHeapOffset * sector,
        cluster=sector << boot.SectorsPerClusterShift,
        clusters=boot.ClusterCount,
        root=boot.FirstClusterOfRootDirectory,
        fats=boot.NumberOfFats,
        flags=boot.VolumeFlags,
        size=boot.VolumeLength * sector,
    )
    return geometry, [] if _has_backup(volume, region) else ["its backup boot region is damaged"]


def checksum(data: bytes | bytearray, start: int = 0) -> int:
    """The 32-bit checksum of boot regions and up-case tables; figures 1 and 3 of the specification."""
    total = start
    for byte in data:
        total = ((total & 1) << 31 | total >> 1) + byte & 0xFFFFFFFF
    return total


def _check_kind(boot: BootSector) -> None:
    named = boot.JumpBoot == _JUMP and boot.FileSystemName == _NAME
    if not named or boot.BootSignature != _SIGNATURE or any(boot.MustBeZero):
        raise NotUnderstoodError("no exFAT boot sector")
    if boot.FileSystemRevision != 0x0100:
        major, minor = divmod(boot.FileSystemRevision, 256)
        raise NotUnderstoodError(f"exFAT of an unknown revision, {major}.{minor:02}")
    if not _SMALLEST_SECTOR_SHIFT <= boot.BytesPerSectorShift <= _LARGEST_SECTOR_SHIFT:
        raise NotUnderstoodError("sector size makes no sense")
    if boot.BytesPerSectorShift + boot.SectorsPerClusterShift > _LARGEST_CLUSTER_SHIFT:
        raise NotUnderstoodError("cluster size makes no sense")


def _check_fields(boot: BootSector, volume: Volume, sector: int) -> None:
    if sector < volume.sector_size:
        raise NotUnderstoodError("sectors are smaller than the disk's")
    if boot.VolumeLength > volume.size // sector:
        raise NotUnderstoodError("file system is larger than its volume")
    if boot.NumberOfFats not in (1, 2) or boot.VolumeFlags & ACTIVE_FAT >= boot.NumberOfFats:
        raise NotUnderstoodError("number of file allocation tables makes no sense")
    fats_end = boot.FatOffset + boot.NumberOfFats * boot.FatLength
    if boot.FatOffset < 2 * _REGION_SECTORS or boot.ClusterHeapOffset < fats_end:
        raise NotUnderstoodError("boot region, file allocation table and clusters overlap")
    if not 1 <= boot.ClusterCount <= _MOST_CLUSTERS:
        raise NotUnderstoodError("number of clusters makes no sense")
    if boot.FatLength * sector < 4 * (boot.ClusterCount + FIRST_CLUSTER):
        raise NotUnderstoodError("file allocation table is too short for the volume")
    heap = boot.ClusterCount << boot.SectorsPerClusterShift
    if boot.ClusterHeapOffset + heap > boot.VolumeLength:
        raise NotUnderstoodError("clusters reach past the end of the file system")


def _is_sound(region: bytes, sector: int) -> bool:
    """Whether the last sector repeats the checksum of those before it; section 3.4."""
    summed, sums = bytearray(region[:-sector]), region[-sector:]
    for at in reversed(_VOLATILE):
        del summed[at]
    return checksum(summed).to_bytes(4, "little") * (sector // 4) == sums


def _has_backup(volume: Volume, region: bytes) -> bool:
    """Whether the backup region is the same; only a note depends on it, so it need not be legible."""
    try:
        backup = bytearray(volume.read(len(region), len(region)))
    except ReadFailedError:
        return False
    for at in _VOLATILE:
        backup[at] = region[at]
    return backup == region
