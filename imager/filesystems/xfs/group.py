"""The headers of an allocation group: where its free-space trees and its free list are.

    | superblock | AGF | AGI | AGFL |        a sector each

XFS Filesystem Structure, "AG Free Space Management": AGF, AGFL.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.xfs.checksum import is_intact
from imager.filesystems.xfs.layout import HEADERS, Layout

AGF_SECTOR = 1
AGF_MAGIC = b"XAGF"
AGF_UUID_AT = 64
AGF_LSN_AT = 208
AGF_CRC_AT = 216
AGFL_SECTOR = 3
AGFL_MAGIC = b"XAFL"
AGFL_UUID_AT = 8
AGFL_LSN_AT = 24
AGFL_CRC_AT = 32

_AGF_VERSION = 1
_MAX_LEVELS = 9


class Agf(NamedTuple):
    """struct xfs_agf, without what only the trees of owners and references need."""

    agf_magicnum: bytes
    agf_versionnum: int
    agf_seqno: int
    agf_length: int
    agf_bno_root: int
    agf_cnt_root: int
    agf_bno_level: int
    agf_cnt_level: int
    agf_flfirst: int
    agf_fllast: int
    agf_flcount: int
    agf_freeblks: int
    agf_uuid: bytes


_AGF = struct.Struct(">4sIIIII4xII4xIIII8x16s")


class AgflHeader(NamedTuple):
    """struct xfs_agfl, which only version 5 has, without LSN and checksum."""

    agfl_magicnum: bytes
    agfl_seqno: int
    agfl_uuid: bytes


_AGFL_HEADER = struct.Struct(">4sI16s8x4x")
_BLOCK = struct.Struct(">I")


@dataclass(frozen=True)
class Group:
    """An allocation group's free space, as its headers describe it; blocks are the group's own."""

    number: int
    length: int
    """Blocks."""
    bno_root: int
    """The root of the tree of free extents by block."""
    bno_levels: int
    cnt_root: int
    """The root of the tree of free extents by size."""
    cnt_levels: int
    free_blocks: int
    """Blocks in either tree. It is written with them, unlike the superblock's counters."""
    free_list: tuple[int, ...]
    """Blocks kept for the trees to grow; not in the trees."""


def read_group(volume: Volume, layout: Layout, number: int) -> Group:
    """Read and check the headers of group `number`; NotUnderstoodError unless they are consistent."""
    size = layout.sector_size
    headers = volume.read(layout.group_start(number), HEADERS * size)
    sector = headers[AGF_SECTOR * size :][:size]
    agf = Agf._make(_AGF.unpack_from(sector))
    length = layout.group_length(number)
    if layout.checksums and not is_intact(sector, AGF_CRC_AT):
        raise NotUnderstoodError(f"wrong checksum of the header of group {number}")
    first = layout.header_blocks
    if not (
        agf.agf_magicnum == AGF_MAGIC
        and agf.agf_versionnum == _AGF_VERSION
        and agf.agf_seqno == number
        and agf.agf_length == length
        and (agf.agf_uuid == layout.meta_uuid or not layout.checksums)
        and min(agf.agf_bno_root, agf.agf_cnt_root) >= first
        and max(agf.agf_bno_root, agf.agf_cnt_root) < length
        and min(agf.agf_bno_level, agf.agf_cnt_level) >= 1
        and max(agf.agf_bno_level, agf.agf_cnt_level) <= _MAX_LEVELS
    ):
        raise NotUnderstoodError(f"header of group {number} makes no sense")
    return Group(
        number=number,
        length=length,
        bno_root=agf.agf_bno_root,
        bno_levels=agf.agf_bno_level,
        cnt_root=agf.agf_cnt_root,
        cnt_levels=agf.agf_cnt_level,
        free_blocks=agf.agf_freeblks,
        free_list=_free_list(layout, agf, headers[AGFL_SECTOR * size :]),
    )


def _free_list(layout: Layout, agf: Agf, sector: bytes) -> tuple[int, ...]:
    """The blocks of the free list: a ring in the AGFL, of which the AGF tells the ends."""
    start = 0
    if layout.checksums:
        start = _AGFL_HEADER.size
        header = AgflHeader._make(_AGFL_HEADER.unpack_from(sector))
        if not is_intact(sector, AGFL_CRC_AT):
            raise NotUnderstoodError(f"wrong checksum of the free list of group {agf.agf_seqno}")
        if header != (AGFL_MAGIC, agf.agf_seqno, layout.meta_uuid):
            raise NotUnderstoodError(f"free list of group {agf.agf_seqno} makes no sense")
    room = (len(sector) - start) // _BLOCK.size
    count = agf.agf_flcount
    blocks: tuple[int, ...] = ()
    if count:
        # Old kernels on 64-bit machines had room for one block less in version 5; where their ring
        # goes round the ends do not fit, and mounting gives the list up.
        fits = max(agf.agf_flfirst, agf.agf_fllast) < room and count <= room
        if not fits or (agf.agf_flfirst + count - 1) % room != agf.agf_fllast:
            raise NotUnderstoodError(f"free list of group {agf.agf_seqno} makes no sense")
        ring = [block for (block,) in _BLOCK.iter_unpack(sector[start : start + room * 4])]
        blocks = tuple((ring * 2)[agf.agf_flfirst : agf.agf_flfirst + count])
    if any(not layout.header_blocks <= block < agf.agf_length for block in blocks):
        raise NotUnderstoodError(f"free list of group {agf.agf_seqno} is out of range")
    return blocks
