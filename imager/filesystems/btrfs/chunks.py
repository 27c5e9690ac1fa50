"""Chunks: which bytes of this device are behind a range of logical addresses.

    logical   |  chunk: start, length, type  |  chunk  |         one address space for all devices
                  |            |
    physical   devid 1: offset   devid 2: offset                 stripes, as long on each device

The profile says how a chunk's bytes are dealt out. Of `width` columns each gets 64 KiB by turns
(RAID0: a column for each stripe; RAID10: for each two); with one column all stripes hold the same
(single, DUP, RAID1). So the part of a logical range that is in one stripe is one physical range.
With parity (RAID5, RAID6) stripes are only told as a whole.

btrfs-progs documentation, "On-disk Format", section CHUNK_ITEM; the rules for a valid chunk are
those that Linux has in fs/btrfs/tree-checker.c.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems.btrfs.superblock import Incompat, Superblock

STRIPE_LEN = 64 << 10

CHUNK_ITEM = 228
CHUNK_OBJECTID = 256

SYSTEM = 1 << 1
_DATA, _METADATA = 1 << 0, 1 << 2
_TYPES = _DATA | SYSTEM | _METADATA
_DUP = 1 << 5

_CHUNK = Struct("<QQQQIIIHH")
_STRIPE = Struct("<QQ16s")
_KEY = Struct("<QBQ")


class _Profile(NamedTuple):
    """How the stripes of a chunk share its bytes."""

    stripes: range
    """How many there may be."""
    copies: int
    """How many stripes hold the same; 0: all."""
    parity: int = 0
    """Stripes' worth of parity."""


_MANY = 1 << 16
_PROFILES = {
    0: _Profile(range(1, 2), 1),  # single
    1 << 3: _Profile(range(1, _MANY), 1),  # RAID0
    1 << 4: _Profile(range(2, 3), 0),  # RAID1
    _DUP: _Profile(range(2, 3), 0),
    1 << 6: _Profile(range(2, _MANY, 2), 2),  # RAID10
    1 << 7: _Profile(range(2, _MANY), 1, 1),  # RAID5
    1 << 8: _Profile(range(3, _MANY), 1, 2),  # RAID6
    1 << 9: _Profile(range(3, 4), 0),  # RAID1C3
    1 << 10: _Profile(range(4, 5), 0),  # RAID1C4
}


class Stripe(NamedTuple):
    """btrfs_stripe: a chunk's place on one device."""

    devid: int
    offset: int
    dev_uuid: bytes


class Chunk(NamedTuple):
    """A range of logical addresses, and where it is."""

    start: int
    length: int
    type: int
    stripes: tuple[Stripe, ...]
    width: int
    """Columns of data."""
    copies: int
    """Stripes for each column."""
    parity: int
    """Stripes' worth of parity: logical addresses are not told apart in these chunks."""

    @property
    def end(self) -> int:
        """One past the last logical address."""
        return self.start + self.length

    @property
    def stripe_size(self) -> int:
        """Bytes on each device."""
        return self.length // self.width

    def within(self, position: int, column: int) -> int:
        """How many of the chunk's first `position` bytes are in `column`."""
        if self.width == 1:
            return position
        row, rest = divmod(position, self.width * STRIPE_LEN)
        return row * STRIPE_LEN + min(max(rest - column * STRIPE_LEN, 0), STRIPE_LEN)


class _Placed(NamedTuple):
    """A stripe on this device."""

    offset: int
    chunk: Chunk
    column: int


class Mapping:
    """All chunks, as seen from one device; NotUnderstoodError where they overlap."""

    def __init__(self, chunks: Iterable[Chunk], superblock: Superblock, size: int) -> None:
        """`size` is what the file system uses of this device, in bytes."""
        self.chunks = sorted(chunks)
        self._starts = [chunk.start for chunk in self.chunks]
        self.logical = Extents.of((chunk.start, chunk.end) for chunk in self.chunks)
        if self.logical.total != sum(chunk.length for chunk in self.chunks):
            raise NotUnderstoodError("chunks overlap")
        self._placed: dict[int, list[_Placed]] = {}
        device = superblock.dev_item
        for chunk in self.chunks:
            for index, stripe in enumerate(chunk.stripes):
                if stripe.devid == device.devid:
                    if stripe.dev_uuid != device.uuid:
                        raise NotUnderstoodError("a chunk is on another device of the same number")
                    placed = _Placed(stripe.offset, chunk, index // chunk.copies)
                    self._placed.setdefault(chunk.start, []).append(placed)
            if len(self._placed.get(chunk.start, ())) > 1 and not chunk.type & _DUP:
                raise NotUnderstoodError("a chunk is on the device more than once")
        ranges = [(place.offset, place.offset + place.chunk.stripe_size) for place in self.placed()]
        self.stripes = Extents.of(ranges)
        if self.stripes.total != sum(end - start for start, end in ranges):
            raise NotUnderstoodError("chunks overlap on the device")
        if self.stripes and self.stripes.end > size:
            raise NotUnderstoodError("a chunk reaches past the device's end")

    def placed(self) -> Iterator[_Placed]:
        """The stripes on this device, in no order."""
        for places in self._placed.values():
            yield from places

    def copies(self, logical: int, size: int) -> list[int]:
        """Where this device has these bytes, in one piece; NotUnderstoodError if in no chunk."""
        index = bisect_right(self._starts, logical) - 1
        if index < 0 or logical + size > self.chunks[index].end:
            raise NotUnderstoodError(f"logical address {logical} is in no chunk")
        chunk = self.chunks[index]
        if chunk.parity:
            return []
        position = logical - chunk.start
        found = []
        for offset, _, column in self._placed.get(chunk.start, ()):
            start = chunk.within(position, column)
            if chunk.within(position + size, column) - start == size:
                found.append(offset + start)
        return found

    def physical(self, logical: Extents) -> Extents:
        """Where this device has the bytes at logical addresses; all of a stripe with parity."""
        builder = ExtentsBuilder()
        for offset, chunk, column in sorted(self.placed()):
            if chunk.parity:
                builder.add(offset, offset + chunk.stripe_size)
                continue
            base, within = chunk.start, chunk.within
            for start, end in logical.clip(base, chunk.end):
                builder.add(
                    offset + within(start - base, column), offset + within(end - base, column)
                )
        return builder.build()


def parse_chunk(start: int, data: bytes, superblock: Superblock) -> Chunk:
    """The chunk at a logical address; NotUnderstoodError unless all of `data` is one."""
    if len(data) < _CHUNK.size:
        raise NotUnderstoodError("a chunk item is cut short")
    length, _, stripe_len, kind, _, _, sector_size, count, sub_stripes = _CHUNK.unpack_from(data)
    sector = superblock.sectorsize
    profile = _PROFILES.get(kind & ~_TYPES)
    if profile is None:
        raise NotUnderstoodError(f"chunk type {kind:#x} is not known")
    data_stripes = count - profile.parity
    copies = profile.copies or max(count, 1)
    width = max(data_stripes // copies, 1)
    types = kind & _TYPES
    mixed = types == _DATA | _METADATA and superblock.incompat & Incompat.MIXED_GROUPS
    checks = (
        count in profile.stripes,
        len(data) == _CHUNK.size + count * _STRIPE.size,
        mixed or types in (_DATA, SYSTEM, _METADATA),
        profile.copies != 2 or sub_stripes == 2,
        stripe_len == STRIPE_LEN,
        sector_size == sector,
        length > 0 and start % sector == length % sector == 0,
        start + length < 1 << 63,
        length % (width * STRIPE_LEN) == 0 or width == 1,
    )
    if not all(checks):
        raise NotUnderstoodError(f"the chunk at logical address {start} is damaged")
    stripes = tuple(Stripe._make(found) for found in _STRIPE.iter_unpack(data[_CHUNK.size :]))
    if any(stripe.offset % sector or stripe.offset + length >= 1 << 63 for stripe in stripes):
        raise NotUnderstoodError(f"a stripe of the chunk at logical address {start} is damaged")
    return Chunk(start, length, kind, stripes, width, copies, profile.parity)


def parse_sys_chunk_array(superblock: Superblock) -> list[Chunk]:
    """The system chunks, which have to be known before any tree is read."""
    data, chunks, position = superblock.sys_chunk_array, [], 0
    while position < len(data):
        body = position + _KEY.size
        if body + _CHUNK.size > len(data):
            raise NotUnderstoodError("the superblock's system chunks are cut short")
        objectid, kind, start = _KEY.unpack_from(data, position)
        stripes = _CHUNK.unpack_from(data, body)[7]
        position = body + _CHUNK.size + stripes * _STRIPE.size
        chunk = parse_chunk(start, data[body:position], superblock)
        if (objectid, kind) != (CHUNK_OBJECTID, CHUNK_ITEM) or not chunk.type & SYSTEM:
            raise NotUnderstoodError("the superblock has a system chunk that is none")
        chunks.append(chunk)
    return chunks
