"""B-trees: tree blocks read from the copies on this device, and walked in the order of keys.

    node    header | key, child, generation | key, child, generation | ...
    leaf    header | item: key, offset, size | item | ... free ... | data | data

btrfs-progs documentation, "On-disk Format", sections Header, Internal Node, Leaf Node. A tree block
counts if its checksum is right and it names the file system, its own address, and the owner, level
and generation for which its parent refers to it. A child begins with the key that its parent has
for it and ends before the next one, so no block can be met twice: a walk ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import add, lt
from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.filesystems import Volume
from imager.filesystems.btrfs.checksum import CSUM_SIZE
from imager.filesystems.btrfs.chunks import Mapping
from imager.filesystems.btrfs.superblock import Superblock

_HEADER = Struct("<32s16sQQ16sQQIB")
_ITEM = Struct("<QBQII")
_KEY_POINTER = Struct("<QBQQQ")
_READ_BYTES = 1 << 20
"""Neighbours are read together up to this size."""
_BATCH_BYTES = 4 << 20
"""So much of one level is in memory at a time, to be read in the order of the disk."""

Key = tuple[int, int, int]
"""Objectid, type, offset."""
_BEYOND_ALL_KEYS: Key = (1 << 64, 0, 0)

Item = tuple[int, int, int, int, int]
"""btrfs_item: objectid, type, offset, then where the data is in the leaf, and its bytes."""
DATA_START = _HEADER.size
"""Where the place of an item's data counts from."""


class OtherDeviceError(NotUnderstoodError):
    """A tree block has no copy on this device of several."""


class Leaf(NamedTuple):
    """A leaf's items and all its bytes."""

    items: Sequence[Item]
    block: bytes

    def of_type(self, kind: int) -> Iterator[tuple[int, int, bytes]]:
        """(objectid, offset, data) of the items of this type."""
        for objectid, found, offset, place, size in self.items:
            if found == kind:
                start = DATA_START + place
                yield objectid, offset, self.block[start : start + size]


class Root(NamedTuple):
    """Where a tree begins."""

    owner: int
    bytenr: int
    generation: int
    level: int


class _Pointer(NamedTuple):
    """A parent's reference to a tree block."""

    bytenr: int
    generation: int
    first: Key | None
    """Its first key; None for a root."""
    bound: Key
    """What all its keys are less than."""


class Trees:
    """Reads the trees of one file system from one of its devices."""

    def __init__(self, volume: Volume, superblock: Superblock, mapping: Mapping) -> None:
        self._volume = volume
        self._superblock = superblock
        self.mapping = mapping
        self.visited: array[int] = array("Q")
        """Logical addresses of all tree blocks read so far."""
        self.bad_copies = 0
        """Copies of tree blocks that are damaged or out of date, where another one was good."""

    def leaves(self, root: Root) -> Iterator[Leaf]:
        """All leaves of a tree in order of keys.

        Raises OtherDeviceError where a tree block is on another device, NotUnderstoodError where no
        copy is valid, ReadFailedError where none can be read.
        """
        pointer = _Pointer(root.bytenr, root.generation, None, _BEYOND_ALL_KEYS)
        return self._walk(root.owner, root.level, [pointer])

    def _walk(self, owner: int, level: int, pointers: Sequence[_Pointer]) -> Iterator[Leaf]:
        nodesize = self._superblock.nodesize
        per_batch = max(_BATCH_BYTES // nodesize, 1)
        for first in range(0, len(pointers), per_batch):
            batch = pointers[first : first + per_batch]
            for pointer, block in zip(batch, self._read(owner, level, batch), strict=True):
                self.visited.append(pointer.bytenr)
                if level:
                    yield from self._walk(owner, level - 1, self._children(pointer, block))
                else:
                    items = _items(block)
                    _check_keys(pointer, items)
                    yield Leaf(items, block)

    def _children(self, pointer: _Pointer, block: bytes) -> list[_Pointer]:
        count = _count(block, _KEY_POINTER.size)
        found = list(
            _KEY_POINTER.iter_unpack(block[DATA_START : DATA_START + count * _KEY_POINTER.size])
        )
        keys: list[Key] = [entry[:3] for entry in found]
        sector = self._superblock.sectorsize
        if (
            not keys
            or not all(map(lt, keys, islice(keys, 1, None)))
            or any(entry[3] % sector or entry[4] > pointer.generation for entry in found)
        ):
            raise _damaged(pointer)
        _check_keys(pointer, keys)
        bounds = [*keys[1:], pointer.bound]
        return [
            _Pointer(entry[3], entry[4], key, bound)
            for entry, key, bound in zip(found, keys, bounds, strict=True)
        ]

    def _read(self, owner: int, level: int, pointers: Sequence[_Pointer]) -> list[bytes]:
        """The valid tree blocks that `pointers` are for, read in the order of the disk."""
        nodesize = self._superblock.nodesize
        copies = [self.mapping.copies(pointer.bytenr, nodesize) for pointer in pointers]
        if not all(copies):
            raise OtherDeviceError("its metadata is on other devices of the file system")
        blocks = [b""] * len(pointers)
        order = sorted(range(len(pointers)), key=lambda index: copies[index][0])
        first = 0
        while first < len(order):
            start = copies[order[first]][0]
            stop = first + 1
            while (
                stop < len(order)
                and copies[order[stop]][0] == start + (stop - first) * nodesize
                and (stop - first) * nodesize < _READ_BYTES
            ):
                stop += 1
            for index, block in enumerate(self._read_run(start, stop - first), first):
                which = order[index]
                pointer = pointers[which]
                if block is None or not self._is_valid(block, pointer, owner, level):
                    block = self._read_again(pointer, owner, level, copies[which])
                blocks[which] = block
            first = stop
        return blocks

    def _read_run(self, start: int, count: int) -> Sequence[bytes | None]:
        nodesize = self._superblock.nodesize
        try:
            data = self._volume.read(start, count * nodesize)
        except ReadFailedError:
            return [None] * count
        return [data[at : at + nodesize] for at in range(0, len(data), nodesize)]

    def _read_again(self, pointer: _Pointer, owner: int, level: int, copies: list[int]) -> bytes:
        """Any valid copy, one by one."""
        failure: Exception = _damaged(pointer)
        for bad, place in enumerate(copies):
            try:
                block = self._volume.read(place, self._superblock.nodesize)
            except ReadFailedError as error:
                failure = error
                continue
            if self._is_valid(block, pointer, owner, level):
                self.bad_copies += bad
                return block
        raise failure

    def _is_valid(self, block: bytes, pointer: _Pointer, owner: int, level: int) -> bool:
        csum, fsid, bytenr, _, _, generation, found_owner, _, found_level = _HEADER.unpack_from(
            block
        )
        expected = self._superblock.checksum(memoryview(block)[CSUM_SIZE:])
        return (
            csum[: len(expected)] == expected
            and fsid == self._superblock.fsid
            and (bytenr, generation) == (pointer.bytenr, pointer.generation)
            and (found_owner, found_level) == (owner, level)
        )


def _items(block: bytes) -> list[Item]:
    """A leaf's items; NotUnderstoodError unless keys increase and data is packed as it must be.

    Each item's data ends where that of the one before begins. So where two keys are the same the
    second tuple is not the larger one, and comparing tuples compares keys.
    """
    count = _count(block, _ITEM.size)
    end = DATA_START + count * _ITEM.size
    items: list[Item] = list(_ITEM.iter_unpack(block[DATA_START:end]))
    if items:
        _, _, _, places, sizes = zip(*items, strict=True)
        packed = [len(block) - DATA_START, *places[:-1]]
        if (
            list(map(add, places, sizes)) != packed
            or DATA_START + places[-1] < end
            or not all(map(lt, items, islice(items, 1, None)))
        ):
            raise NotUnderstoodError("a leaf is damaged")
    return items


def _count(block: bytes, entry: int) -> int:
    """The number of entries of `entry` bytes that a tree block says that it has."""
    count: int = _HEADER.unpack_from(block)[7]
    if count > (len(block) - DATA_START) // entry:
        raise NotUnderstoodError("a tree block has too many entries")
    return count


def _check_keys(pointer: _Pointer, entries: Sequence[tuple[int, ...]]) -> None:
    """Raise NotUnderstoodError unless the entries are those that the parent announces."""
    if pointer.first is None:
        return
    if not entries or entries[0][:3] != pointer.first or entries[-1][:3] >= pointer.bound:
        raise _damaged(pointer)


def _damaged(pointer: _Pointer) -> NotUnderstoodError:
    return NotUnderstoodError(f"the tree block at logical address {pointer.bytenr} is damaged")
