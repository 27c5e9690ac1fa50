"""The checkpoint: the state of the file system that is found at the next mount.

Source: include/linux/f2fs_fs.h, `struct f2fs_checkpoint`, and f2fs.rst, "Checkpoint". Two packs are written
in turn; a pack is sound if its first and its last block are, and have the same version. The newer sound
one counts.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.f2fs.superblock import BLOCK, SEGMENT_BLOCKS, Layout, crc

CP_UMOUNT = 0x1
CP_COMPACT_SUM = 0x4
CP_FASTBOOT = 0x20
_CP_LARGE_NAT_BITMAP = 0x400

_DOUBTFUL = {
    0x8: "it has met an error",
    0x10: "it asks to be repaired",
    0x1000: "it was in use with checkpoints disabled",
    0x2000: "it was in use with checkpoints disabled",
    0x4000: "it was being resized",
}
_KNOWN_FLAGS = 0x7FFF

COLD_DATA = 2
"""The log whose summary carries the SIT's journal."""
WARM_NODE = 1
"""The log of nodes that fsync writes to; the number among the logs of nodes."""
_DATA_LOGS, _ALL_LOGS = 3, 6

JOURNAL_SIZE = 507
"""SUM_JOURNAL_SIZE."""
_SUMMARY_ENTRIES_SIZE = 512 * 7


class Fields(NamedTuple):
    """`struct f2fs_checkpoint` up to its bitmaps, without the logs."""

    checkpoint_ver: int
    user_block_count: int
    valid_block_count: int
    ckpt_flags: int
    cp_pack_total_block_count: int
    cp_pack_start_sum: int
    valid_node_count: int
    sit_ver_bitmap_bytesize: int
    nat_ver_bitmap_bytesize: int
    checksum_offset: int


_FIELDS = struct.Struct("<QQQ108xIIII8xIII")
_NODE_SEGNO, _NODE_BLKOFF = struct.Struct("<8I"), struct.Struct("<8H")
_NODE_SEGNO_AT, _NODE_BLKOFF_AT = 36, 68
_BITMAPS_AT = 192
_CHECKSUM_AT = BLOCK - 4
"""Where the checksum usually is: at the end of the block."""


class Checkpoint(NamedTuple):
    """What is needed of the newer pack."""

    version: int
    flags: int
    valid_blocks: int
    """Blocks in use, those included that have no place yet."""
    valid_nodes: int
    sit_bitmap: bytes
    """For each block of the SIT whether its second copy counts; most significant bit first."""
    sit_journal: bytes
    next_node: int
    """Block address at which the log of warm nodes goes on."""


def read_checkpoint(volume: Volume, layout: Layout) -> Checkpoint:
    """The newer sound checkpoint of `volume`.

    Raises NotUnderstoodError if there is none, or it says that the volume is not as it should be.
    """
    packs = [pack for at in layout.checkpoints if (pack := _read_pack(volume, layout, at))]
    if not packs:
        raise NotUnderstoodError("it has no sound checkpoint")
    # Versions differ by one, and only ever grow.
    return max(packs, key=lambda pack: pack.fields.checkpoint_ver).look_into(volume, layout)


class _Pack(NamedTuple):
    """A sound pack."""

    at: int
    """Its first block."""
    fields: Fields
    block: bytes

    def look_into(self, volume: Volume, layout: Layout) -> Checkpoint:
        """What it says; NotUnderstoodError if not all of it is known."""
        flags = self.fields.ckpt_flags
        for flag, doubt in _DOUBTFUL.items():
            if flags & flag:
                raise NotUnderstoodError(doubt)
        if flags & ~_KNOWN_FLAGS:
            raise NotUnderstoodError(f"unknown flags of its checkpoint, {flags & ~_KNOWN_FLAGS:#x}")
        segment = _NODE_SEGNO.unpack_from(self.block, _NODE_SEGNO_AT)[WARM_NODE]
        offset = _NODE_BLKOFF.unpack_from(self.block, _NODE_BLKOFF_AT)[WARM_NODE]
        if segment >= layout.segments or offset > SEGMENT_BLOCKS:
            raise NotUnderstoodError("its log of nodes is outside of the volume")
        return Checkpoint(
            version=self.fields.checkpoint_ver,
            flags=flags,
            valid_blocks=self.fields.valid_block_count,
            valid_nodes=self.fields.valid_node_count,
            sit_bitmap=self._sit_bitmap(volume, layout),
            sit_journal=self._sit_journal(volume),
            next_node=layout.main + segment * SEGMENT_BLOCKS + offset,
        )

    def _sit_bitmap(self, volume: Volume, layout: Layout) -> bytes:
        """The version bitmap of the SIT, which is in one of three places."""
        size = self.fields.sit_ver_bitmap_bytesize
        if size * 8 != layout.sit_blocks:
            raise NotUnderstoodError("the bitmap of its SIT has another size")
        at, block = _BITMAPS_AT, self.block
        if self.fields.ckpt_flags & _CP_LARGE_NAT_BITMAP:
            at += 4 + self.fields.nat_ver_bitmap_bytesize
        elif layout.cp_payload:
            at, block = 0, volume.read((self.at + 1) * BLOCK, layout.cp_payload * BLOCK)
        if at + size > len(block):
            raise NotUnderstoodError("the bitmap of its SIT does not fit its checkpoint")
        return block[at : at + size]

    def _sit_journal(self, volume: Volume) -> bytes:
        """The newest SIT entries, which are behind the summaries of the log of cold data."""
        flags, total = self.fields.ckpt_flags, self.fields.cp_pack_total_block_count
        if flags & CP_COMPACT_SUM:
            # | journal of the NAT | journal of the SIT | summaries ...
            place, offset = self.fields.cp_pack_start_sum, JOURNAL_SIZE
        else:
            logs = _ALL_LOGS if flags & (CP_UMOUNT | CP_FASTBOOT) else _DATA_LOGS
            place, offset = total - (logs + 1) + COLD_DATA, _SUMMARY_ENTRIES_SIZE
        if not 0 < place < total:
            raise NotUnderstoodError("summaries of its checkpoint are outside of it")
        block = volume.read((self.at + place) * BLOCK, BLOCK)
        return block[offset : offset + JOURNAL_SIZE]


def _read_pack(volume: Volume, layout: Layout, at: int) -> _Pack | None:
    """The pack at this block, if it is sound."""
    block = volume.read(at * BLOCK, BLOCK)
    first = _read_fields(block)
    if first is None or not 2 <= first.cp_pack_total_block_count <= SEGMENT_BLOCKS:
        return None
    if layout.cp_payload >= first.cp_pack_total_block_count:
        return None
    last = _read_fields(volume.read((at + first.cp_pack_total_block_count - 1) * BLOCK, BLOCK))
    if last is None or last.checkpoint_ver != first.checkpoint_ver:
        return None
    return _Pack(at, first, block)


def _read_fields(block: bytes) -> Fields | None:
    """The fields of a checkpoint's first or last block, if its checksum is right."""
    fields = Fields._make(_FIELDS.unpack_from(block))
    at = fields.checksum_offset
    if not _BITMAPS_AT <= at <= _CHECKSUM_AT:
        return None
    checksum = crc(block[:at])
    if at < _CHECKSUM_AT:
        checksum = crc(block[at + 4 :], checksum)
    return fields if checksum.to_bytes(4, "little") == block[at : at + 4] else None
