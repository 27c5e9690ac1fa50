"""The B+trees of an allocation group's free extents, one by block and one by size.

    node   | header | keys ... | room for more | pointers to blocks a level below ... |
    leaf   | header | (first block, blocks), (first block, blocks), ... |

Blocks are numbered from the group's start. The blocks of a level are linked with their neighbours.
XFS Filesystem Structure, "AG Free Space B+trees", "Short Format B+trees".
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.xfs.checksum import is_intact
from imager.filesystems.xfs.group import Group
from imager.filesystems.xfs.layout import Layout

BLOCK_LSN_AT = 24
BLOCK_UUID_AT = 32
BLOCK_CRC_AT = 52
BY_BLOCK_MAGICS = {False: b"ABTB", True: b"AB3B"}
"""By whether blocks have checksums (version 5)."""
BY_SIZE_MAGICS = {False: b"ABTC", True: b"AB3C"}

_NONE = 0xFFFFFFFF  # NULLAGBLOCK
_SECTOR = 512  # what bb_blkno counts in
_BATCH_BYTES = 1 << 20
_GAP_BYTES = 1 << 15  # what is cheaper to read than to skip
_SIZE = 0xFFFFFFFF


class BlockHeader(NamedTuple):
    """struct xfs_btree_block, short form, up to what version 5 adds."""

    bb_magic: bytes
    bb_level: int
    bb_numrecs: int
    bb_leftsib: int
    bb_rightsib: int


class SelfDescription(NamedTuple):
    """What version 5 adds, without LSN and checksum."""

    bb_blkno: int
    bb_uuid: bytes
    bb_owner: int


_HEADER = struct.Struct(">4sHHII")
_SELF_DESCRIPTION = struct.Struct(">Q8x16sI4x")
_RECORD_SIZE = 8  # also of a key
_POINTER_SIZE = 4
_LEAST_IN_LEAF = 16
"""Less than half of what the smallest leaf has room for; no leaf but the root is emptier than half."""


class Node(NamedTuple):
    """A block of a tree that is right in itself."""

    left: int
    right: int
    content: bytes
    """Of a leaf the records, of others the pointers."""


@dataclass(frozen=True)
class Tree:
    """One of the two trees of a group."""

    volume: Volume
    layout: Layout
    group: Group
    magic: bytes
    root: int
    levels: int

    @classmethod
    def by_block(cls, volume: Volume, layout: Layout, group: Group) -> Tree:
        """The tree that has the free extents in order of their place."""
        magic = BY_BLOCK_MAGICS[layout.checksums]
        return cls(volume, layout, group, magic, group.bno_root, group.bno_levels)

    @classmethod
    def by_size(cls, volume: Volume, layout: Layout, group: Group) -> Tree:
        """The tree that has them in order of their size."""
        magic = BY_SIZE_MAGICS[layout.checksums]
        return cls(volume, layout, group, magic, group.cnt_root, group.cnt_levels)

    def read(self) -> tuple[array[int], list[int]]:
        """All records in the tree's order, (first block << 32 | blocks), and the tree's own blocks.

        NotUnderstoodError unless every block is right in itself and in its place.
        """
        visited: list[int] = []
        numbers: Sequence[int] = (self.root,)
        content = b""
        for level in reversed(range(self.levels)):
            self._check_count(numbers)
            if len(set(numbers)) != len(numbers):
                raise self._damaged("names a block twice")
            visited += numbers
            nodes = {}
            for number, data in self._blocks(numbers):
                nodes[number] = self._node(number, data, level)
            links = (_NONE, *numbers, _NONE)
            for index, number in enumerate(numbers):
                node = nodes[number]
                if (node.left, node.right) != (links[index], links[index + 2]):
                    raise self._damaged("has wrong links")
            content = b"".join(nodes[number].content for number in numbers)
            if level:
                numbers = _pointers(content)
        return _records(content), visited

    def read_what_is_intact(self) -> array[int]:
        """The records of all leaves that are right in themselves, in any order.

        For a tree whose blocks were written back at different times, while a log has the newest.
        """
        numbers: Sequence[int] = (self.root,)
        content = b""
        for level in reversed(range(self.levels)):
            self._check_count(numbers)
            found = []
            for number, data in self._blocks(numbers):
                try:
                    found.append(self._node(number, data, level).content)
                except NotUnderstoodError:
                    continue
            content = b"".join(found)
            if level:
                numbers = _pointers(content)
        return _records(content)

    def _check_count(self, numbers: Sequence[int]) -> None:
        """Raise NotUnderstoodError for more blocks than a level can have; it bounds what is read."""
        if len(numbers) > self.group.length // _LEAST_IN_LEAF + 1:
            raise self._damaged("has too many blocks")

    def _blocks(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Number and content of blocks, in order of their place, with as few reads as is sensible."""
        size = self.layout.block_size
        ordered = sorted(set(numbers))
        if (
            ordered
            and not self.layout.header_blocks <= ordered[0] <= ordered[-1] < self.group.length
        ):
            raise self._damaged("points out of its group")
        base = self.layout.group_start(self.group.number)
        gap, most = max(_GAP_BYTES // size, 1), max(_BATCH_BYTES // size, 1)
        start = 0
        for end in range(1, len(ordered) + 1):
            first = ordered[start]
            if (
                end < len(ordered)
                and ordered[end] - ordered[end - 1] <= gap
                and ordered[end] - first < most
            ):
                continue
            last = ordered[end - 1]
            data = self.volume.read(base + first * size, (last + 1 - first) * size)
            for number in ordered[start:end]:
                yield number, data[(number - first) * size : (number + 1 - first) * size]
            start = end

    def _node(self, number: int, data: bytes, level: int) -> Node:
        """Interpret a block; NotUnderstoodError unless it is one of this tree at this level."""
        header = BlockHeader._make(_HEADER.unpack_from(data))
        start = _HEADER.size
        if self.layout.checksums:
            if not is_intact(data, BLOCK_CRC_AT):
                raise self._damaged("has a block with a wrong checksum")
            own = SelfDescription._make(_SELF_DESCRIPTION.unpack_from(data, start))
            place = self.layout.group_start(self.group.number) + number * self.layout.block_size
            if own != (place // _SECTOR, self.layout.meta_uuid, self.group.number):
                raise self._damaged("has a block that belongs elsewhere")
            start += _SELF_DESCRIPTION.size
        entry = _RECORD_SIZE + (_POINTER_SIZE if level else 0)
        room = (len(data) - start) // entry
        least = 0 if number == self.root and not level else 1
        if header[:2] != (self.magic, level) or not least <= header.bb_numrecs <= room:
            raise self._damaged("has a block that makes no sense")
        if level:
            start += room * _RECORD_SIZE
        end = start + header.bb_numrecs * (_POINTER_SIZE if level else _RECORD_SIZE)
        return Node(header.bb_leftsib, header.bb_rightsib, data[start:end])

    def _damaged(self, how: str) -> NotUnderstoodError:
        return NotUnderstoodError(f"free-space tree of group {self.group.number} {how}")


def read_free(volume: Volume, layout: Layout, group: Group) -> tuple[array[int], list[int]]:
    """The free extents of a group by block, (first block << 32 | blocks), and both trees' own blocks.

    NotUnderstoodError unless both trees are consistent and have the same extents.
    """
    free, blocks = Tree.by_block(volume, layout, group).read()
    by_size, more = Tree.by_size(volume, layout, group).read()
    if array("Q", sorted(by_size)) != free:
        raise NotUnderstoodError(f"free-space trees of group {group.number} disagree")
    if not _are_in_place(free, layout.header_blocks, group.length) or not _are_by_size(by_size):
        raise NotUnderstoodError(f"free-space trees of group {group.number} make no sense")
    if sum(record & _SIZE for record in free) != group.free_blocks:
        raise NotUnderstoodError(f"free-space trees of group {group.number} are not up to date")
    return free, blocks + more


def _are_in_place(records: array[int], start: int, end: int) -> bool:
    """Whether extents follow each other, none of them empty, within blocks [start, end)."""
    for record in records:
        first, size = record >> 32, record & _SIZE
        if first < start or not size:
            return False
        start = first + size
    return start <= end


def _are_by_size(records: array[int]) -> bool:
    """Whether extents are in order of their size, those of the same size in order of their place."""
    keys = ((record & _SIZE) << 32 | record >> 32 for record in records)
    return all(one < next_one for one, next_one in pairwise(keys))


def _records(content: bytes) -> array[int]:
    records = array("Q", content)
    if sys.byteorder == "little":
        records.byteswap()
    return records


def _pointers(content: bytes) -> Sequence[int]:
    return struct.unpack(f">{len(content) // _POINTER_SIZE}I", content)
