"""Members of Linux software RAID (md): where the array's data are in a member, and if all are there.

    0.90   | data                                    | superblock, up to 128 KiB before the end |
    1.0    | data                                    | (bitmap) superblock, 8 to 12 KiB before  |
    1.1    | superblock, bitmap ... | data                                                       |
    1.2    | 4 KiB | superblock, bitmap ... | data                                               |

A member of a mirror (RAID1) holds all of the array, and so does the only member of a linear one.
That its content is the array's needs proof: the array must have been in sync when this superblock
was written.

Source: linux/include/uapi/linux/raid/md_p.h (struct mdp_superblock_s, struct mdp_superblock_1);
md(4), "MD SUPER BLOCK"; which values mean "in sync" follows drivers/md/md.c (super_90_validate,
super_1_validate).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

_MAGIC = 0xA92B4EFC
_SECTOR = 512
_LEVELS = {1: "RAID1", -1: "linear", 0: "RAID0", 4: "RAID4", 5: "RAID5", 6: "RAID6", 10: "RAID10"}
_MIRROR, _LINEAR = 1, -1

_V1 = struct.Struct("<4I16s32sQiIQIIiIQiIIiQQQQII16sBBHiQQQII32x")
_BITMAP_OFFSET = 1
"""The one feature bit of version 1 under which the data of a mirror are where they always are."""
_NEVER = (1 << 64) - 1
"""resync_offset of an array that is in sync."""
_FIRST_SPECIAL_ROLE = 0xFFFD
_MAX_DEVICES = 1920
_WRITE_MOSTLY = 1

_V0_SIZE = 4096
_V0_ALIGN = 65536
_V0_WORDS = struct.Struct("<1024I")
_CLEAN = 1
"""Bit of `state` in version 0.90; beside it only the bit that there is a bitmap is known here."""
_V0_BITMAP = 1 << 8
_ACTIVE_AND_IN_SYNC = 6


class _Superblock1(NamedTuple):
    """struct mdp_superblock_1 (md_p.h), sizes and offsets in sectors of 512 bytes."""

    magic: int
    major_version: int
    feature_map: int
    pad0: int
    set_uuid: bytes
    set_name: bytes
    ctime: int
    level: int
    layout: int
    size: int
    chunksize: int
    raid_disks: int
    bitmap_offset: int
    new_level: int
    reshape_position: int
    delta_disks: int
    new_layout: int
    new_chunk: int
    new_offset: int
    data_offset: int
    data_size: int
    super_offset: int
    recovery_offset: int
    dev_number: int
    cnt_corrected_read: int
    device_uuid: bytes
    devflags: int
    bblog_shift: int
    bblog_size: int
    bblog_offset: int
    utime: int
    events: int
    resync_offset: int
    sb_csum: int
    max_dev: int


@dataclass(frozen=True)
class Member:
    """A member that holds all of its array."""

    version: str
    level: str
    uuid: str
    name: str
    start: int
    """Where the array's data begin, bytes."""
    size: int
    """Of the array, bytes."""
    clean: bool
    """Whether the superblock itself says that the array was in sync; else only the kernel can."""


def read_member(volume: Volume) -> Member:
    """What a member's superblock says, NotUnderstoodError unless its data are all of the array's.

    Raises ReadFailedError where a place of superblocks cannot be read.
    """
    found = list(_superblocks(volume))
    if len(found) != 1:
        raise NotUnderstoodError("it has no superblock of a RAID, or more than one")
    version, offset, block = found[0]
    if version == "0.90":
        return _version_0(block, offset)
    return _version_1(volume, version, offset, block)


def _superblocks(volume: Volume) -> Iterator[tuple[str, int, bytes]]:
    """Version, place and first 4 KiB of each superblock."""
    size = volume.size
    at_end = max((size // _SECTOR - 16) & ~7, 0) * _SECTOR
    places = (
        ("0.90", size // _V0_ALIGN * _V0_ALIGN - _V0_ALIGN),
        ("1.0", at_end),
        ("1.1", 0),
        ("1.2", 4096),
    )
    for version, offset in places:
        if not 0 <= offset <= size - _V0_SIZE:
            continue
        block = volume.read(offset, _V0_SIZE)
        magic, major = struct.unpack_from("<II", block)
        if magic == _MAGIC and major == (0 if version == "0.90" else 1):
            # Two places can be the same; what the superblock says of its own decides.
            if major and _Superblock1(*_V1.unpack_from(block)).super_offset * _SECTOR != offset:
                continue
            yield version, offset, block


def _version_1(volume: Volume, version: str, offset: int, block: bytes) -> Member:
    found = _Superblock1(*_V1.unpack_from(block))
    if not 0 < found.max_dev <= _MAX_DEVICES:
        raise NotUnderstoodError("its RAID superblock makes no sense")
    length = _V1.size + 2 * found.max_dev
    whole = volume.read(offset, -(-length // _SECTOR) * _SECTOR)[:length]
    if _sum_1(whole, found) != found.sb_csum:
        raise NotUnderstoodError("the checksum of its RAID superblock is wrong")
    _require_all(found.level, found.raid_disks)
    if found.feature_map & ~_BITMAP_OFFSET:
        raise NotUnderstoodError("its RAID is being changed or repaired, or has a journal")
    if found.devflags & _WRITE_MOSTLY:
        raise NotUnderstoodError("it may lag behind the other disks of its RAID (write-mostly)")
    roles = struct.unpack_from(f"<{found.max_dev}H", whole, _V1.size)
    if found.dev_number >= found.max_dev or roles[found.dev_number] >= _FIRST_SPECIAL_ROLE:
        raise NotUnderstoodError("it is a spare or faulty disk of its RAID")
    size = found.size if found.level == _MIRROR else found.data_size
    start = found.data_offset
    if not 0 < size <= found.data_size or (start + found.data_size) * _SECTOR > volume.size:
        raise NotUnderstoodError("its RAID is larger than its volume")
    behind = offset // _SECTOR >= start + found.data_size
    if not behind and (offset + len(whole)) > start * _SECTOR:
        raise NotUnderstoodError("its RAID superblock makes no sense")
    if found.feature_map & _BITMAP_OFFSET:
        bitmap = offset // _SECTOR + found.bitmap_offset
        if bitmap < 0 or start <= bitmap < start + found.data_size:
            raise NotUnderstoodError("its RAID superblock makes no sense")
    clean = found.resync_offset == _NEVER or found.level == _LINEAR
    return Member(
        version,
        _LEVELS[found.level],
        str(uuid.UUID(bytes=found.set_uuid)),
        found.set_name.split(b"\0")[0].decode("utf-8", "replace"),
        start * _SECTOR,
        size * _SECTOR,
        clean,
    )


def _sum_1(whole: bytes, found: _Superblock1) -> int:
    """The checksum of version 1: all 32-bit words, its own field left out, carries added once."""
    even = len(whole) & ~3
    total: int = sum(struct.unpack(f"<{even // 4}I", whole[:even])) - found.sb_csum
    if even != len(whole):
        total += int.from_bytes(whole[even:], "little")
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def _version_0(block: bytes, offset: int) -> Member:
    """struct mdp_superblock_s: words of 32 bits; numbers below are those of words (md_p.h)."""
    words = _V0_WORDS.unpack(block)
    total = sum(words) - words[38]
    if ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF != words[38]:
        raise NotUnderstoodError("the checksum of its RAID superblock is wrong")
    level = words[7] - (1 << 32) if words[7] >> 31 else words[7]
    minor, kibibytes, raid_disks, state, own_state = (words[at] for at in (2, 8, 10, 33, 996))
    _require_all(level, raid_disks)
    if minor != 90 or state & ~(_CLEAN | _V0_BITMAP):
        raise NotUnderstoodError("its RAID is being changed or repaired")
    if own_state != _ACTIVE_AND_IN_SYNC:
        raise NotUnderstoodError("it is a spare or faulty disk of its RAID")
    if not 0 < kibibytes * 1024 <= offset:
        raise NotUnderstoodError("its RAID is larger than its volume")
    # Where the name stands in version 1 there is none; set_uuid0 is word 5, the others 13 to 15.
    set_uuid = struct.pack(">4I", words[5], *words[13:16])
    return Member(
        "0.90", _LEVELS[level], str(uuid.UUID(bytes=set_uuid)), "", 0, kibibytes * 1024,
        bool(state & _CLEAN),
    )  # fmt: skip


def _require_all(level: int, raid_disks: int) -> None:
    """NotUnderstoodError unless one member holds the whole array."""
    if level == _MIRROR or (level == _LINEAR and raid_disks == 1):
        return
    name = _LEVELS.get(level, f"level {level}")
    raise NotUnderstoodError(f"part of a RAID ({name}), of which other disks hold the rest")
