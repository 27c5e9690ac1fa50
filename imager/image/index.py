"""Segments and the index: which frame holds which chunk, and which bytes the disk did not hold.

A segment covers a run of the disk without a gap: entries tile [start, end), maps lie inside it. The
index lists the segments of the whole disk, each with the place of its copy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from imager.errors import ImageError, UnsupportedImageError
from imager.extents import Extents
from imager.image.format import (
    ENTRY,
    INDEX_HEADER,
    INDEX_ITEM,
    MAP_HEADER,
    MAX_SEGMENT,
    MAX_SEGMENT_ENTRIES,
    MAX_ZERO_FRAME,
    MAX_ZERO_RUN,
    MIN_INDEX_RECORD,
    SEGMENT_HEADER,
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

    def encode(self) -> bytes:
        """The segment record's payload."""
        header = SegmentHeader(
            self.number, len(self.entries), self.start, self.end, len(self.maps), 0
        )
        parts = [SEGMENT_HEADER.pack(*header)]
        parts += [ENTRY.pack(*entry) for entry in self.entries]
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


def decode_segment(payload: bytes, head: Head) -> Segment:
    """Parse a segment record's payload, every number of it untrusted; ImageError if it is wrong.

    What is checked: entries tile the segment's disk range; runs are within the format's bounds;
    maps increase, lie inside and are whole sectors. Frame offsets are the reader's to check.
    """
    if not SEGMENT_HEADER.size <= len(payload) <= MAX_SEGMENT:
        raise ImageError("a segment has a wrong length")
    header = SegmentHeader(*SEGMENT_HEADER.unpack_from(payload))
    where = SEGMENT_HEADER.size
    if not 1 <= header.entries <= MAX_SEGMENT_ENTRIES or header.bases:
        raise ImageError("a segment's counts are wrong")
    if header.entries * ENTRY.size > len(payload) - where:
        raise ImageError("a segment is cut short")
    entries = []
    position = header.start
    _require(position % head.chunk_size == 0 and position <= header.end <= head.disk_size)
    for _ in range(header.entries):
        entry = Entry(*ENTRY.unpack_from(payload, where))
        where += ENTRY.size
        if entry.kind not in (ChunkKind.DATA, ChunkKind.ZERO):
            raise UnsupportedImageError(f"unknown kind {entry.kind} of stored chunk")
        limit = 1 if entry.kind == ChunkKind.DATA else MAX_ZERO_RUN // head.chunk_size
        _require(1 <= entry.chunks <= limit and position < header.end)
        frame = max_frame(head.chunk_size) if entry.kind == ChunkKind.DATA else MAX_ZERO_FRAME
        _require(0 < entry.stored_size <= frame)
        _require(not entry.flags and not entry.reserved and not entry.reference)
        position += entry.chunks * head.chunk_size
        # A shorter last chunk has another content hash than the rest of a run.
        _require(position <= head.disk_size or entry.chunks == 1)
        entries.append(entry)
    _require(
        position == header.end
        or (header.end == head.disk_size and header.end < position < header.end + head.chunk_size)
    )
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
        maps[RangeKind(item.kind)] = extents
    _require(where == len(payload))
    return Segment(header.number, header.start, header.end, entries, maps)


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


class Index(Collection[IndexItem]):
    """The segments of an image, in disk order; kept as stored, for there may be millions."""

    def __init__(self, table: bytes | bytearray | memoryview) -> None:
        """Wrap encoded items."""
        self._table = memoryview(table)

    def __len__(self) -> int:
        return len(self._table) // INDEX_ITEM.size

    def __iter__(self) -> Iterator[IndexItem]:
        return map(IndexItem._make, INDEX_ITEM.iter_unpack(self._table))

    def __contains__(self, item: object) -> bool:
        return any(item == each for each in self)


def decode_index(payload: bytes, head: Head) -> Index:
    """Parse the index record's payload; ImageError unless its segments tile the disk."""
    if len(payload) < INDEX_HEADER.size:
        raise ImageError("the index is cut short")
    header = IndexHeader(*INDEX_HEADER.unpack_from(payload))
    size = header.segments * INDEX_ITEM.size
    if header.item_size != INDEX_ITEM.size or size > len(payload) - INDEX_HEADER.size:
        raise ImageError("the index's counts are wrong")
    index = Index(memoryview(payload)[INDEX_HEADER.size : INDEX_HEADER.size + size])
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
