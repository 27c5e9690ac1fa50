"""Makes the new segments of an image that is patched, region by region."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from imager.chunk_coder import Encoded
from imager.image.codec import ChunkEncoder
from imager.image.format import Base, ChunkKind, Entry
from imager.image.head import Head
from imager.image.index import Segment
from imager.image.rewrite import Rewrite
from imager.image.segments import SegmentBuilder
from imager.zero_runs import ZeroRuns

MapsDiffer = Callable[[int, int, list[tuple[int, int]]], bool]
"""Whether the parent has other maps in a disk range, given what was not readable in it."""


class Work(NamedTuple):
    """What becomes of one chunk, or of several that stay as they are."""

    start: int
    end: int
    entry: Entry
    base: Base | None
    unreadable: list[tuple[int, int]]
    parent_hash: bytes | None
    """Of each chunk, in an image with a parent."""
    touched: bool
    """Whether the content changes; then it is one chunk."""
    patches: list[tuple[int, bytes]]
    region: tuple[int, int, bytes] | None = None
    """The region that ends behind it: where it lay, and its segment's payload."""


class RegionWriter:
    """Makes the new segments of one region after the other; a writer for its runs of zeros."""

    def __init__(
        self,
        rewrite: Rewrite,
        builder: SegmentBuilder,
        encoder: ChunkEncoder,
        head: Head,
        maps_differ: MapsDiffer,
    ) -> None:
        """Frames go to `rewrite`; `maps_differ` says whether the parent's maps are other ones."""
        self._rewrite = rewrite
        self._builder = builder
        self._chunk_size = head.chunk_size
        self._disk_size = head.disk_size
        self._maps_differ = maps_differ
        self._zeros = ZeroRuns(self, encoder, head.chunk_size)
        self._segments: list[Segment] = []
        self._noted: list[tuple[int, int]] = []
        self.count_ranges = builder.count_ranges

    def add(self, work: Work, encoded: Encoded | None) -> None:
        """The next chunks, as they were or as they are now."""
        kind = work.entry.kind
        if encoded is None and kind == ChunkKind.PARENT:
            self._add_parents(work, work.parent_hash or b"")
        elif encoded is None and kind == ChunkKind.ZERO:
            self._add_old_zeros(work)
        elif encoded is None:
            self._zeros.flush()
            self.add_unreadable(work.unreadable)
            self._add(work.entry, work.end - work.start, work.base)
        elif encoded.unchanged:
            self._add_parents(work, encoded.content_hash)
        elif encoded.frame is None:
            self._zeros.add(work.start, work.end, work.unreadable)
        else:
            self._zeros.flush()
            self.add_unreadable(work.unreadable)
            kind = ChunkKind.DATA if encoded.base is None else ChunkKind.DELTA
            self._add_new(
                encoded.frame,
                (kind, 1, encoded.content_hash, encoded.frame_hash),
                work.end - work.start,
                encoded.base,
            )

    def finish(self) -> list[Segment]:
        """The region's segments; the next region begins."""
        self._zeros.flush()
        if not self._builder.empty:
            self._segments.append(self._builder.build())
        segments, self._segments = self._segments, []
        return segments

    def add_unreadable(self, ranges: Iterable[tuple[int, int]]) -> None:
        """As `ImageWriter.add_unreadable`."""
        self._noted += ranges

    def add_zeros(self, chunks: int, frame: bytes, content_hash: bytes, frame_hash: bytes) -> None:
        """As `ImageWriter.add_zeros`."""
        size = chunks * self._chunk_size
        left = self._disk_size - self._builder.position
        self._add_new(
            frame, (ChunkKind.ZERO, chunks, content_hash, frame_hash), min(size, left), None
        )

    def _add_old_zeros(self, work: Work) -> None:
        """A run that stays keeps its frame; of one that is cut a part needs another."""
        if self._chunks(work.end - work.start) == work.entry.chunks:
            self._zeros.flush()
            self.add_unreadable(work.unreadable)
            self._add(work.entry, work.end - work.start, None)
        else:
            self._zeros.add(work.start, work.end, work.unreadable)

    def _add_parents(self, work: Work, content_hash: bytes) -> None:
        self._zeros.flush()
        own = self._maps_differ(work.start, work.end, work.unreadable)
        if own:
            self.add_unreadable(work.unreadable)
        self._make_room()
        size = work.end - work.start
        self._builder.add_parents(0, content_hash, self._chunks(size), size, own)

    def _add_new(
        self,
        frame: bytes,
        described: tuple[ChunkKind, int, bytes, bytes],
        size: int,
        base: Base | None,
    ) -> None:
        kind, chunks, content_hash, frame_hash = described
        offset = self._rewrite.add_frame(frame)
        entry = Entry(offset, len(frame), chunks, kind, 0, 0, 0, content_hash, frame_hash)
        self._add(entry, size, base)

    def _add(self, entry: Entry, size: int, base: Base | None) -> None:
        self._builder.end_run()
        self._make_room()
        self._builder.add(entry._replace(bases=0, reference=0), size, base)

    def _make_room(self) -> None:
        if self._builder.is_full():
            self._segments.append(self._builder.build())
        self._builder.add_unreadable(self._noted)
        self._noted = []

    def _chunks(self, size: int) -> int:
        return -(-size // self._chunk_size)
