"""Gathers the entries of a segment while an image is written, and says when it is full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from imager.extents import Extents, ExtentsBuilder
from imager.image.format import (
    MAX_PARENT_RUN,
    OWN_MAPS,
    SEGMENT_BYTES,
    SEGMENT_ENTRIES,
    SEGMENT_RANGES,
    Base,
    ChunkKind,
    Entry,
    RangeKind,
)
from imager.image.hashing import FRAME_HASH_SIZE, HashAlgorithm, Hasher
from imager.image.index import Segment


@dataclass
class _Run:
    """A run of the parent's chunks that the next chunk may lengthen."""

    offset: int
    hasher: Hasher
    own_maps: bool
    chunks: int = 0


@dataclass
class _Contents:
    entries: list[Entry] = field(default_factory=list)
    bases: list[Base] = field(default_factory=list)
    own: list[tuple[int, int]] = field(default_factory=list)
    """Disk ranges whose maps are not the parent's."""
    unreadable: ExtentsBuilder = field(default_factory=ExtentsBuilder)
    unreadable_count: int = 0
    stored: int = 0
    """Bytes of frames."""


class SegmentBuilder:
    """The segment under way; chunks come in disk order."""

    def __init__(
        self,
        algorithm: HashAlgorithm,
        maps: Mapping[RangeKind, Extents],
        most_entries: int = SEGMENT_ENTRIES,
        most_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """`maps` are those of the whole disk; the limits say when a segment is full."""
        self._algorithm = algorithm
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._maps = maps
        self._contents = _Contents()
        self._run: _Run | None = None
        self._number = 0
        self._start = 0
        self.position = 0
        """The first disk byte that no chunk added so far covers."""

    @property
    def empty(self) -> bool:
        """Whether nothing was added since the last segment."""
        return self.position == self._start

    def count_ranges(self, start: int, end: int) -> int:
        """How many ranges the segment would have to list for [start, end) of the disk, at least."""
        return sum(extents.count(start, end) for extents in self._maps.values())

    def is_full(self) -> bool:
        """Whether the segment should be closed before anything else is added."""
        contents = self._contents
        ranges = sum(self.count_ranges(*own) for own in contents.own) + contents.unreadable_count
        return (
            len(contents.entries) >= self._most_entries
            or contents.stored >= self._most_bytes
            or ranges >= SEGMENT_RANGES
        )

    def add(self, entry: Entry, size: int, base: Base | None = None) -> None:
        """Append an entry of the image's own, which covers `size` bytes of the disk."""
        self.end_run()
        if base is not None:
            entry = entry._replace(bases=1, reference=len(self._contents.bases))
            self._contents.bases.append(base)
        self._contents.entries.append(entry)
        self._contents.stored += entry.stored_size
        self._pass(size, True)

    def add_parents(
        self, offset: int, content_hash: bytes, chunks: int, size: int, own_maps: bool
    ) -> None:
        """Append chunks that are the parent's, `size` bytes of the disk, all with one content hash.

        `offset` says where a frame would begin. With `own_maps` the parent's maps are not theirs.
        """
        run = self._run
        if run is None or run.own_maps != own_maps or run.chunks + chunks > MAX_PARENT_RUN:
            self.end_run()
            run = self._run = _Run(offset, self._algorithm.new(), own_maps)
        run.hasher.update(content_hash * chunks)
        run.chunks += chunks
        self._pass(size, own_maps)

    def move(self, position: int) -> None:
        """Go on at another place of the disk; only between two segments."""
        if not self.empty:
            raise ValueError("a segment is under way")
        self._start = self.position = position

    def remap(self, maps: Mapping[RangeKind, Extents]) -> None:
        """Take other maps of the whole disk from now on; only between two segments."""
        if not self.empty:
            raise ValueError("a segment is under way")
        self._maps = maps

    def end_run(self) -> None:
        """Let no further chunk of the parent's join those before."""
        run, self._run = self._run, None
        if run is not None:
            entry = Entry(
                run.offset,
                0,
                run.chunks,
                ChunkKind.PARENT,
                OWN_MAPS if run.own_maps else 0,
                0,
                0,
                run.hasher.digest(),
                bytes(FRAME_HASH_SIZE),
            )
            self._contents.entries.append(entry)

    def add_unreadable(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Note ranges of the next chunk that the device did not give, in order."""
        for start, end in ranges:
            self._contents.unreadable.add(start, end)
            self._contents.unreadable_count += 1

    def build(self) -> Segment:
        """The segment; the next one begins."""
        self.end_run()
        contents, self._contents = self._contents, _Contents()
        own = Extents.of(contents.own)
        maps = {
            kind: extents.clip(self._start, self.position) & own
            for kind, extents in self._maps.items()
        }
        maps[RangeKind.UNREADABLE] = contents.unreadable.build()
        segment = Segment(
            self._number,
            self._start,
            self.position,
            tuple(contents.entries),
            {kind: maps[kind] for kind in RangeKind if maps.get(kind)},
            tuple(contents.bases),
        )
        self.skip(segment)
        return segment

    def skip(self, segment: Segment) -> None:
        """Go on behind a segment that is written already."""
        self._number = segment.number + 1
        self._start = self.position = segment.end

    def _pass(self, size: int, own: bool) -> None:
        start, self.position = self.position, self.position + size
        owned = self._contents.own
        if own and owned and owned[-1][1] == start:
            owned[-1] = (owned[-1][0], self.position)
        elif own:
            owned.append((start, self.position))
