"""The superblock of XFS: what the volume is, and whether this program may trust it.

XFS Filesystem Structure, "Superblocks"; field names are the document's. Free-space counters are
not read: they are kept in memory while mounted, and prove nothing.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems.xfs.checksum import is_intact
from imager.filesystems.xfs.layout import Layout

MAGIC = b"XFSB"
UUID_AT = 32
CRC_AT = 224
LSN_AT = 240
META_UUID_AT = 248

MIN_SECTOR = 512
MAX_SECTOR = 32768
_MIN_BLOCK = 512
_MAX_BLOCK = 65536
_NUMBITS = 0xF
_DIRV2BIT = 0x2000
_MOREBITSBIT = 0x8000
_VERSION4_BITS = 0xFDF0  # all but the shared bit, which nothing understands


class Features2(IntFlag):
    """Known bits of sb_features2, which only version 4 uses."""

    LAZYSBCOUNT = 0x2
    ATTR2 = 0x8
    PROJID32 = 0x80
    FTYPE = 0x200


class RoCompat(IntFlag):
    """Known bits of sb_features_ro_compat."""

    FINOBT = 0x1
    RMAPBT = 0x2
    REFLINK = 0x4
    INOBTCNT = 0x8


class Incompat(IntFlag):
    """Known bits of sb_features_incompat. Metadata directories and zones are not."""

    FTYPE = 0x1
    SPINODES = 0x2
    META_UUID = 0x4
    BIGTIME = 0x8
    NEEDSREPAIR = 0x10
    NREXT64 = 0x20
    EXCHRANGE = 0x40
    PARENT = 0x80


class LogIncompat(IntFlag):
    """Known bits of sb_features_log_incompat."""

    XATTRS = 0x1


class Superblock(NamedTuple):
    """struct xfs_dsb; only what is needed here."""

    sb_magicnum: bytes
    sb_blocksize: int
    sb_dblocks: int
    sb_rblocks: int
    sb_rextents: int
    sb_uuid: bytes
    sb_logstart: int
    sb_agblocks: int
    sb_agcount: int
    sb_logblocks: int
    sb_versionnum: int
    sb_sectsize: int
    sb_blocklog: int
    sb_sectlog: int
    sb_agblklog: int
    sb_inprogress: int
    sb_features2: int
    sb_features_compat: int
    sb_features_ro_compat: int
    sb_features_incompat: int
    sb_features_log_incompat: int
    sb_meta_uuid: bytes


_SUPERBLOCK = struct.Struct(
    ">4sIQQQ16sQ28x"  # 0 sb_magicnum
    "II4x"  # 84 sb_agblocks
    "IHH16x"  # 96 sb_logblocks
    "BB2x"  # 120 sb_blocklog
    "BxB73x"  # 124 sb_agblklog
    "I4x"  # 200 sb_features2
    "IIII24x"  # 208 sb_features_compat
    "16s"  # 248 sb_meta_uuid
)


def read_layout(data: bytes, volume_size: int) -> Layout:
    """Check the first 32 KiB of a volume of `volume_size` bytes and interpret the superblock.

    Raises NotUnderstoodError unless every feature is known, checksum and fields are valid, and
    the file system's metadata can be believed, but for what its log says.
    """
    sb = Superblock._make(_SUPERBLOCK.unpack_from(data))
    if sb.sb_magicnum != MAGIC:
        raise NotUnderstoodError("no XFS superblock")
    version = sb.sb_versionnum & _NUMBITS
    if version not in (4, 5):
        raise NotUnderstoodError(f"XFS version {version} is not known")
    if not _is_size(sb.sb_sectsize, sb.sb_sectlog, MIN_SECTOR, MAX_SECTOR):
        raise NotUnderstoodError("sector size is out of range")
    if not _is_size(sb.sb_blocksize, sb.sb_blocklog, _MIN_BLOCK, _MAX_BLOCK):
        raise NotUnderstoodError("block size is out of range")
    if sb.sb_sectsize > sb.sb_blocksize or sb.sb_sectsize > len(data):
        raise NotUnderstoodError("sector size is out of range")
    if version == 5:
        if not is_intact(data[: sb.sb_sectsize], CRC_AT):
            raise NotUnderstoodError("wrong superblock checksum")
        _check_features5(sb)
    else:
        _check_features4(sb)
    _check_state(sb)
    layout = Layout(
        block_size=sb.sb_blocksize,
        sector_size=sb.sb_sectsize,
        blocks=sb.sb_dblocks,
        group_blocks=sb.sb_agblocks,
        group_count=sb.sb_agcount,
        group_bits=sb.sb_agblklog,
        log_start=sb.sb_logstart,
        log_blocks=sb.sb_logblocks,
        checksums=version == 5,
        uuid=sb.sb_uuid,
        meta_uuid=_meta_uuid(sb, version),
    )
    layout.check(volume_size)
    return layout


def _is_size(size: int, log: int, least: int, most: int) -> bool:
    return least <= size <= most and log < 32 and size == 1 << log


def _meta_uuid(sb: Superblock, version: int) -> bytes:
    if version == 5 and sb.sb_features_incompat & Incompat.META_UUID:
        return sb.sb_meta_uuid
    return sb.sb_uuid


def _check_features4(sb: Superblock) -> None:
    bits = sb.sb_versionnum & ~_NUMBITS
    if bits & ~_VERSION4_BITS:
        raise NotUnderstoodError(f"XFS version bits {bits & ~_VERSION4_BITS:#x} are not known")
    if not bits & _DIRV2BIT:
        raise NotUnderstoodError("XFS directories of version 1")
    if bits & _MOREBITSBIT:
        _check_known("additional", sb.sb_features2, sum(Features2))


def _check_features5(sb: Superblock) -> None:
    _check_known("compatible", sb.sb_features_compat, 0)
    _check_known("read-only compatible", sb.sb_features_ro_compat, sum(RoCompat))
    _check_known("incompatible", sb.sb_features_incompat, sum(Incompat))
    _check_known("log-incompatible", sb.sb_features_log_incompat, sum(LogIncompat))
    if sb.sb_features_incompat & Incompat.NEEDSREPAIR:
        raise NotUnderstoodError("file system is marked as needing repair")


def _check_known(name: str, bits: int, known: int) -> None:
    if bits & ~known:
        raise NotUnderstoodError(f"{name} XFS features {bits & ~known:#x} are not known")


def _check_state(sb: Superblock) -> None:
    if sb.sb_inprogress:
        raise NotUnderstoodError("making or copying the file system was not finished")
    if sb.sb_rblocks or sb.sb_rextents:
        raise NotUnderstoodError("file system has a realtime section")
    if not sb.sb_logstart:
        # Whether the log is clean stands nowhere but in the log.
        raise NotUnderstoodError("file system has its log on another device")
    if not sb.sb_agblocks or not sb.sb_dblocks or not sb.sb_agcount:
        raise NotUnderstoodError("file system has no blocks")
