"""The segment information table: which blocks of each segment are valid.

Source: include/linux/f2fs_fs.h, `struct f2fs_sit_entry` and `struct sit_journal`; what must fit as
fs/f2fs/segment.c checks it. Each block of the table is stored twice; a bitmap in the checkpoint says which
copy counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import groupby

from bitarray import bitarray

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems import Volume
from imager.filesystems.f2fs.checkpoint import Checkpoint
from imager.filesystems.f2fs.superblock import BLOCK, SEGMENT_BLOCKS, Layout

_ENTRY = struct.Struct("<H64s8x")
"""vblocks (valid blocks, and above them the type), valid_map, mtime."""
_PER_BLOCK = BLOCK // _ENTRY.size
_COUNT_MASK, _TYPE_SHIFT = 0x3FF, 10
_NODE_TYPES, _TYPES = range(3, 6), 6
"""Types of segments: hot, warm and cold data, then nodes."""
_JOURNAL_COUNT = struct.Struct("<H")
_JOURNAL_ENTRY = struct.Struct("<IH64s8x")
_AT_ONCE = 256
"""Blocks of the table that are read together."""
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))

_Entry = tuple[int, bytes]
"""vblocks and valid_map."""


def valid_blocks(volume: Volume, layout: Layout, checkpoint: Checkpoint) -> Extents:
    """The bytes of the main area that are valid as of `checkpoint`.

    Raises NotUnderstoodError where a count does not fit its bitmap, or the sums not the checkpoint.
    """
    newer = _journal(checkpoint.sit_journal, layout)
    builder = ExtentsBuilder()
    nodes = total = segment = 0
    for entries in _blocks(volume, layout, checkpoint.sit_bitmap):
        entries = entries[: layout.segments - segment]
        for place, entry in enumerate(entries, segment):
            if newer and place in newer:
                entries[place - segment] = entry = newer[place]
            vblocks, valid_map = entry
            count = vblocks & _COUNT_MASK
            if count != int.from_bytes(valid_map, "little").bit_count():
                raise NotUnderstoodError(f"segment {place} has another number of valid blocks")
            total += count
            if vblocks >> _TYPE_SHIFT in _NODE_TYPES:
                nodes += count
            elif count and vblocks >> _TYPE_SHIFT >= _TYPES:
                raise NotUnderstoodError(f"segment {place} is of an unknown type")
        bitmap = b"".join(valid_map for _, valid_map in entries).translate(_REVERSED_BITS)
        base = (layout.main + segment * SEGMENT_BLOCKS) * BLOCK
        builder.add_bitmap(bitmap, len(entries) * SEGMENT_BLOCKS, BLOCK, base)
        segment += len(entries)
    if nodes != checkpoint.valid_nodes or total > checkpoint.valid_blocks:
        raise NotUnderstoodError("its SIT has other numbers of blocks than its checkpoint")
    return builder.build()


def _blocks(volume: Volume, layout: Layout, bitmap: bytes) -> Iterator[list[_Entry]]:
    """The entries of each block of the table."""
    second = bitarray(endian="big")
    second.frombytes(bitmap)
    needed = -(-layout.segments // _PER_BLOCK)
    if needed > layout.sit_blocks:
        raise NotUnderstoodError("its SIT is too small for the volume")
    for copy, numbers in groupby(
        range(needed), lambda number: (second[number], number // _AT_ONCE)
    ):
        run = list(numbers)
        start = layout.sit + copy[0] * layout.sit_blocks + run[0]
        data = volume.read(start * BLOCK, len(run) * BLOCK)
        for at in range(0, len(data), BLOCK):
            yield list(_ENTRY.iter_unpack(data[at : at + _PER_BLOCK * _ENTRY.size]))


def _journal(data: bytes, layout: Layout) -> Mapping[int, _Entry]:
    """The entries that are newer than the table's, by segment."""
    (count,) = _JOURNAL_COUNT.unpack_from(data)
    if count > (len(data) - _JOURNAL_COUNT.size) // _JOURNAL_ENTRY.size:
        raise NotUnderstoodError("the journal of its SIT is longer than its place")
    end = _JOURNAL_COUNT.size + count * _JOURNAL_ENTRY.size
    found: dict[int, _Entry] = {}
    for segment, vblocks, valid_map in _JOURNAL_ENTRY.iter_unpack(data[_JOURNAL_COUNT.size : end]):
        if segment >= layout.segments or segment in found:
            raise NotUnderstoodError("the journal of its SIT makes no sense")
        found[segment] = vblocks, valid_map
    return found
