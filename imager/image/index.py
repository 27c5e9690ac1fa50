"""Segments and the index: which frame holds which chunk, and which bytes the disk did not hold.

A segment covers a run of the disk without a gap: entries tile [start, end), maps lie inside it. The
index lists the segments of the whole disk, each with the place of its copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from imager.errors import ImageError, UnsupportedImageError
from imager.extents import Extents
from imager.image.format import (
    BASE,
    ENTRY,
    INDEX_HEADER,
    INDEX_ITEM,
    MAP_HEADER,
    MAX_SEGMENT,
    MAX_SEGMENT_ENTRIES,
    MAX_ZERO_FRAME,
    MAX_ZERO_RUN,
    MIN_INDEX_RECORD,
    OWN_MAPS,
    SEGMENT_HEADER,
    Base,
    ChunkKind,
    Entry,
    IndexHeader,
    IndexItem,
    MapHeader,
    RangeKind,
    SegmentHeader,
    max_frame,
)
from imager.image.head import Head


@dataclass(frozen=True)
class Segment:
    """Entries of consecutive chunks, and the maps of the disk range that they cover."""

    number: int
    start: int
    """First disk byte."""
    end: int
    """One past the last disk byte."""
    entries: Sequence[Entry]
    maps: Mapping[RangeKind, Extents] = field(default_factory=dict)
    bases: Sequence[Base] = ()
    """What the deltas among the entries refer to."""

    def encode(self) -> bytes:
        """The segment record's payload."""
        header = SegmentHeader(
            self.number,
            len(self.entries),
            self.start,
            self.end,
            len(self.maps),
            len(self.bases),
        )
        parts = [SEGMENT_HEADER.pack(*header)]
        parts += [ENTRY.pack(*entry) for entry in self.entries]
        parts += [BASE.pack(*base) for base in self.bases]
        for kind, extents in self.maps.items():
            parts += [MAP_HEADER.pack(kind, len(extents)), extents.to_bytes()]
        return b"".join(parts)

    def placed(self, chunk_size: int) -> Iterator[tuple[int, int, Entry]]:
        """Each entry with the disk range [start, end) that it covers."""
        start = self.start
        for entry in self.entries:
            end = min(start + entry.chunks * chunk_size, self.end)
            yield start, end, entry
            start = end

    def map(self, kind: RangeKind) -> Extents:
        """The ranges of this kind, in disk bytes."""
        return self.maps.get(kind, Extents())

    def clipped(self, start: int, end: int, chunk_size: int) -> Segment:
        """What it says of [start, end), whose ends are those of chunks; for images without a parent."""
        if (start, end) == (self.start, self.end):
            return self
        entries = []
        for low, high, entry in self.placed(chunk_size):
            first, last = max(low, start), min(high, end)
            if (first, last) == (low, high):
                entries.append(entry)
            elif first < last:
                entries.append(shorter(entry, -(-(last - first) // chunk_size)))
        maps = self.clipped_maps(start, end)
        return Segment(self.number, start, end, entries, maps, self.bases)

    def clipped_maps(self, start: int, end: int) -> dict[RangeKind, Extents]:
        """The maps of [start, end), without those that are empty there."""
        clipped = {kind: extents.clip(start, end) for kind, extents in self.maps.items()}
        return {kind: extents for kind, extents in clipped.items() if extents}


def shorter(run: Entry, chunks: int) -> Entry:
    """A part of a run of zeros; its frame is as long as the whole run, and so of no use."""
    return run._replace(chunks=chunks, stored_size=0, frame_hash=b"")


def inherits_maps(entry: Entry) -> bool:
    """Whether the maps that count in an entry's range are the parent's."""
    return entry.kind == ChunkKind.PARENT and not entry.flags & OWN_MAPS


def decode_segment(payload: bytes, head: Head) -> Segment:
    """Parse a segment record's payload, every number of it untrusted; ImageError if it is wrong.

    What is checked: entries tile the segment's disk range; runs are within the format's bounds;
    each delta has its base; maps increase, lie inside and are whole sectors. Frame offsets are the
    reader's to check.
    """
    if not SEGMENT_HEADER.size <= len(payload) <= MAX_SEGMENT:
        raise ImageError("a segment has a wrong length")
    header = SegmentHeader(*SEGMENT_HEADER.unpack_from(payload))
    where = SEGMENT_HEADER.size
    if not 1 <= header.entries <= MAX_SEGMENT_ENTRIES or header.bases > header.entries:
        raise ImageError("a segment's counts are wrong")
    if header.entries * ENTRY.size + header.bases * BASE.size > len(payload) - where:
        raise ImageError("a segment is cut short")
    entries = []
    inherited = []
    deltas = 0
    position = header.start
    _require(position % head.chunk_size == 0 and position <= header.end <= head.disk_size)
    for _ in range(header.entries):
        entry = Entry(*ENTRY.unpack_from(payload, where))
        where += ENTRY.size
        _require(position < header.end)
        if entry.kind in (ChunkKind.DATA, ChunkKind.ZERO):
            _check_own(entry, head)
        elif head.incremental and entry.kind == ChunkKind.PARENT:
            _check_inherited(entry, header, position, head)
        elif head.incremental and entry.kind == ChunkKind.DELTA:
            _check_delta(entry, deltas, head)
            deltas += 1
        else:
            raise UnsupportedImageError(f"unknown kind {entry.kind} of stored chunk")
        start, position = position, position + entry.chunks * head.chunk_size
        if inherits_maps(entry):
            inherited.append((start, position))
        # A shorter last chunk has another content hash than the rest of a run of zeros.
        _require(position <= head.disk_size or entry.chunks == 1 or entry.kind == ChunkKind.PARENT)
        entries.append(entry)
    _require(
        position == header.end
        or (header.end == head.disk_size and header.end < position < header.end + head.chunk_size)
    )
    _require(deltas == header.bases)
    bases = []
    for start, entry in _deltas(header.start, entries, head.chunk_size):
        base = Base(*BASE.unpack_from(payload, where + entry.reference * BASE.size))
        length = min(head.chunk_size, header.end - start)
        _require((base.length, base.offset) == (length, start))
        _require(base.parent < len(head.parents))
        bases.append(base)
    where += header.bases * BASE.size
    maps: dict[RangeKind, Extents] = {}
    for _ in range(header.maps):
        _require(where + MAP_HEADER.size <= len(payload))
        item = MapHeader(*MAP_HEADER.unpack_from(payload, where))
        where += MAP_HEADER.size
        _require(item.ranges * 16 <= len(payload) - where)
        extents = _ranges(payload[where : where + item.ranges * 16], header, head)
        where += item.ranges * 16
        if item.kind not in RangeKind.__members__.values():
            raise UnsupportedImageError(f"unknown kind {item.kind} of range")
        _require(RangeKind(item.kind) not in maps)
        _require(not any(extents.count(start, end) for start, end in inherited))
        maps[RangeKind(item.kind)] = extents
    _require(where == len(payload))
    return Segment(header.number, header.start, header.end, entries, maps, bases)


def _check_own(entry: Entry, head: Head) -> None:
    """A chunk of data, or a run of zeros."""
    data = entry.kind == ChunkKind.DATA
    _require(1 <= entry.chunks <= (1 if data else MAX_ZERO_RUN // head.chunk_size))
    _require(0 < entry.stored_size <= (max_frame(head.chunk_size) if data else MAX_ZERO_FRAME))
    _require(not entry.flags and not entry.bases and not entry.reference)


def _check_inherited(entry: Entry, header: SegmentHeader, position: int, head: Head) -> None:
    """A run of the parent's chunks."""
    _require(1 <= entry.chunks <= -(-(header.end - position) // head.chunk_size))
    _require(not entry.stored_size and not any(entry.frame_hash))
    _require(not entry.flags & ~OWN_MAPS and not entry.bases and not entry.reference)


def _check_delta(entry: Entry, number: int, head: Head) -> None:
    """A chunk coded against the base with this number in its segment."""
    _require(entry.chunks == 1 and 0 < entry.stored_size <= max_frame(head.chunk_size))
    _require(not entry.flags and entry.bases == 1 and entry.reference == number)


def _deltas(start: int, entries: Sequence[Entry], chunk_size: int) -> Iterator[tuple[int, Entry]]:
    """The deltas among entries that begin at `start`, each with its own beginning."""
    for entry in entries:
        if entry.kind == ChunkKind.DELTA:
            yield start, entry
        start += entry.chunks * chunk_size


def _ranges(data: bytes, header: SegmentHeader, head: Head) -> Extents:
    try:
        extents = Extents.from_bytes(data)
    except ValueError:
        raise ImageError("a segment's map is not in order") from None
    _require(not extents or (header.start <= extents.start and extents.end <= header.end))
    _require(
        all(
            start % head.sector_size == 0 and (end % head.sector_size == 0 or end == head.disk_size)
            for start, end in extents
        )
    )
    return extents


def encode_index(items: bytes | bytearray, overhead: int) -> bytes:
    """The index record's payload of encoded items.

    With `overhead` bytes more it fills at least a sector of 4 KiB.
    """
    header = INDEX_HEADER.pack(len(items) // INDEX_ITEM.size, INDEX_ITEM.size)
    return b"".join((header, items)).ljust(MIN_INDEX_RECORD - overhead, b"\0")


class Index(Sequence[IndexItem]):
    """The segments of an image, in disk order; kept as stored, for there may be millions."""

    def __init__(self, table: bytes | bytearray | memoryview) -> None:
        """Wrap encoded items."""
        self._table = memoryview(table)

    def __len__(self) -> int:
        return len(self._table) // INDEX_ITEM.size

    def __iter__(self) -> Iterator[IndexItem]:
        return map(IndexItem._make, INDEX_ITEM.iter_unpack(self._table))

    @overload
    def __getitem__(self, place: int) -> IndexItem: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[IndexItem]: ...

    def __getitem__(self, place: int | slice) -> IndexItem | Sequence[IndexItem]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return IndexItem(*INDEX_ITEM.unpack_from(self._table, place % len(self) * INDEX_ITEM.size))


def decode_items(payload: bytes) -> Index:
    """Parse the index record's payload; ImageError where its counts are wrong."""
    if len(payload) < INDEX_HEADER.size:
        raise ImageError("the index is cut short")
    header = IndexHeader(*INDEX_HEADER.unpack_from(payload))
    size = header.segments * INDEX_ITEM.size
    if header.item_size != INDEX_ITEM.size or size > len(payload) - INDEX_HEADER.size:
        raise ImageError("the index's counts are wrong")
    return Index(memoryview(payload)[INDEX_HEADER.size : INDEX_HEADER.size + size])


def decode_index(payload: bytes, head: Head) -> Index:
    """Parse the index record's payload; ImageError unless its segments tile the disk."""
    index = decode_items(payload)
    position = 0
    for item in index:
        if item.start != position or item.end <= position:
            raise ImageError("the index's segments do not follow each other")
        position = item.end
    if position != head.disk_size:
        raise ImageError("the index does not cover the whole disk")
    return index


def _require(condition: bool) -> None:
    if not condition:
        raise ImageError("a segment makes no sense")
