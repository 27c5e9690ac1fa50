"""The NTFS boot sector: where everything else is found.

Format: "NTFS Documentation" of the Linux-NTFS project (R. Russon, Y. Fledel), file $Boot; cluster
sizes above 64 KiB: libfsntfs, "New Technologies File System", section "The volume header".
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

_BOOT_SECTOR = Struct("<3s8sHBHBHHBHHHIIIqqqb3xb3xQI426sH")
_SECTOR_SIZES = (512, 1024, 2048, 4096)
_MAX_CLUSTER_SIZE = 2 << 20
_MAX_RECORD_SIZE = 64 << 10


class BootSector(NamedTuple):
    """The first 512 bytes of the volume."""

    jump: bytes
    oem_id: bytes
    bytes_per_sector: int
    sectors_per_cluster: int
    reserved_sectors: int
    fats: int
    root_entries: int
    sectors: int
    media_type: int
    sectors_per_fat: int
    sectors_per_track: int
    heads: int
    hidden_sectors: int
    large_sectors: int
    physical_drive: int
    number_of_sectors: int
    mft_lcn: int
    mftmirr_lcn: int
    clusters_per_mft_record: int
    clusters_per_index_record: int
    volume_serial_number: int
    checksum: int
    bootstrap: bytes
    end_of_sector_marker: int


class Geometry(NamedTuple):
    """What the boot sector says, checked against the volume; sizes in bytes."""

    sector_size: int
    number_of_sectors: int
    """Without the backup boot sector that follows the last one."""
    cluster_size: int
    clusters: int
    """Whole clusters; up to a cluster's worth of sectors may follow the last one."""
    record_size: int
    mft_lcn: int
    mftmirr_lcn: int


def read_geometry(volume: Volume) -> Geometry:
    """Read and check the boot sector of `volume`."""
    if volume.size < _BOOT_SECTOR.size:
        raise NotUnderstoodError("volume is too small for ntfs")
    boot = BootSector._make(_BOOT_SECTOR.unpack(volume.read(0, _BOOT_SECTOR.size)))
    if boot.oem_id != b"NTFS    " or boot.end_of_sector_marker != 0xAA55:
        raise NotUnderstoodError("no ntfs boot sector")
    # These describe FAT; NTFS leaves them zero.
    if boot.reserved_sectors or boot.fats or boot.root_entries or boot.sectors_per_fat:
        raise NotUnderstoodError("ntfs boot sector has values of a FAT volume")
    if boot.bytes_per_sector not in _SECTOR_SIZES:
        raise NotUnderstoodError(f"ntfs sector size {boot.bytes_per_sector} is not known")
    cluster_size = boot.bytes_per_sector * _sectors_per_cluster(boot.sectors_per_cluster)
    if cluster_size > _MAX_CLUSTER_SIZE:
        raise NotUnderstoodError(f"ntfs cluster size {cluster_size} is not known")
    if not 0 < boot.number_of_sectors <= volume.size // boot.bytes_per_sector:
        raise NotUnderstoodError("ntfs is larger than its volume")
    clusters = boot.number_of_sectors * boot.bytes_per_sector // cluster_size
    if not (0 < boot.mft_lcn < clusters and 0 < boot.mftmirr_lcn < clusters):
        raise NotUnderstoodError("$MFT lies outside the volume")
    return Geometry(
        boot.bytes_per_sector,
        boot.number_of_sectors,
        cluster_size,
        clusters,
        _record_size(boot.clusters_per_mft_record, cluster_size),
        boot.mft_lcn,
        boot.mftmirr_lcn,
    )


def _sectors_per_cluster(value: int) -> int:
    """Decode the byte: a count up to 128, or, from 244, the negative of a power of two."""
    if value >= 244:
        return 1 << (256 - value)
    if value not in (1, 2, 4, 8, 16, 32, 64, 128):
        raise NotUnderstoodError(f"ntfs cluster of {value} sectors is not known")
    return value


def _record_size(value: int, cluster_size: int) -> int:
    """Decode the signed byte: a number of clusters, or the negative of a power of two in bytes."""
    size = value * cluster_size if value > 0 else 1 << -value
    if size not in (512 << shift for shift in range(8)) or size > _MAX_RECORD_SIZE:
        raise NotUnderstoodError("ntfs file record size is not known")
    return size
