"""Brings what was read again, and the final maps, into an image that is written but for its end.

image so far ──┐
patches ───────┼──► chunks that changed: decode, patch, zero what is unused, compress (threads)
final maps ────┘    ──► regions with their new frames ──► the file, patched in place
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imager.chunk_coder import Encoded
from imager.chunks import ChunkRun
from imager.extents import Extents
from imager.image.codec import ChunkDecoder, ChunkEncoder
from imager.image.format import (
    MAX_SEGMENT_ENTRIES,
    MAX_SEGMENT_FRAMES,
    Base,
    ChunkKind,
    Entry,
    RangeKind,
    max_frame,
)
from imager.image.head import Head
from imager.image.index import Segment, decode_segment, inherits_maps
from imager.image.records import OVERHEAD
from imager.image.rewrite import Rewrite, fits
from imager.image.segments import SegmentBuilder
from imager.image.sink import FileSink
from imager.image.writer import ImageWriter
from imager.image_filler import ImageFiller
from imager.image_regions import RegionWriter, Work
from imager.live.patches import Patches
from imager.parent_image import ParentImage
from imager.pipeline import Progress, ordered_map

_HARDER = 9
"""The compression level of a chunk that would else not fit in its place; some 5 % smaller than 3."""
_MOST_ENTRIES = MAX_SEGMENT_ENTRIES // 4
"""A segment that is patched may have more entries than a new one before it is cut in two."""


@dataclass(frozen=True)
class DiskMaps:
    """Which bytes of a disk are in use; excluded ones are not."""

    used: Extents
    unused: Extents
    excluded: Extents


@dataclass
class Merged:
    """An image whose chunks are complete."""

    writer: ImageWriter
    """To write its end."""
    zero: int
    """Disk bytes in chunks that are all zero."""
    inherited: int
    """Disk bytes in chunks that are the parent's."""
    moved: int
    """Bytes of frames that had to be written to another place."""


class ImageMerger:
    """One merge: the filler's image becomes what the disk was at the instant of the freeze."""

    def __init__(
        self,
        filler: ImageFiller,
        sink: FileSink,
        patches: Patches,
        head: Head,
        before: Extents,
        after: DiskMaps,
    ) -> None:
        """`before` was in use when the filler has read, `after` and `head` are final."""
        self._filler = filler
        self._sink = sink
        self._patches = patches
        self._head = head
        self._after = after
        self._parent: ParentImage | None = filler.parent
        if self._parent is not None:
            self._parent.compare_maps(after.unused, after.excluded)
        freed, grown = before - after.used, after.used - before
        self._touched = freed | grown | (patches.covered & after.used)
        level = max(filler.coder.encoder.level, _HARDER)
        self._harder = ChunkEncoder(filler.algorithm, level, head.chunk_size)
        self._decoder = ChunkDecoder(filler.algorithm, head.chunk_size)
        self._rewrite = Rewrite(sink, head, filler.uuid, filler.algorithm, sink.spool_directory)

    def merge(self, progress: Progress) -> Merged:
        """Do it; ImageError or WriteFailedError where the file does not give what was written."""
        self._sink.settle()
        self._patches.rewind()
        total = self._touched.total
        region = self._region_writer()
        done = 0
        try:
            progress("merge", 0, total)
            for work, encoded in ordered_map(self._encode, self._work(), self._filler.threads):
                region.add(work, encoded)
                if work.region is not None:
                    start, end, payload = work.region
                    segment = decode_segment(payload, self._head)
                    used = start + sum(entry.stored_size for entry in segment.entries)
                    used += len(payload) + OVERHEAD
                    self._rewrite.add_region(start, end, payload, used, region.finish())
                done += self._touched.clip(work.start, work.end).total if work.touched else 0
                progress("merge", done, total)
            self._rewrite.apply()
            return self._finish()
        finally:
            self._rewrite.close()

    def _finish(self) -> Merged:
        filler = self._filler
        writer = ImageWriter(
            self._sink,
            self._head,
            filler.uuid,
            filler.algorithm,
            self._after.unused,
            self._after.excluded,
        )
        merged = Merged(writer, 0, 0, self._rewrite.moved)
        parent = self._parent

        def counted() -> Iterator[Segment]:
            for segment in self._rewrite.segments():
                for start, end, entry in segment.placed(self._head.chunk_size):
                    if entry.kind == ChunkKind.ZERO:
                        merged.zero += end - start
                    elif entry.kind == ChunkKind.PARENT:
                        merged.inherited += end - start
                yield segment

        if parent is None:
            writer.take_up((), counted())
        else:
            writer.take_up((), counted(), parent.hashes)
        self._sink.truncate(writer.size)
        return merged

    def _region_writer(self) -> RegionWriter:
        """For all regions, one after the other."""
        maps = {RangeKind.UNUSED: self._after.unused, RangeKind.EXCLUDED: self._after.excluded}
        most_bytes = MAX_SEGMENT_FRAMES - max_frame(self._head.chunk_size)
        builder = SegmentBuilder(self._filler.algorithm, maps, _MOST_ENTRIES, most_bytes)
        parent = self._parent
        differ = parent.maps_differ if parent else lambda start, end, unreadable: False
        return RegionWriter(self._rewrite, builder, self._filler.coder.encoder, self._head, differ)

    def _work(self) -> Iterator[Work]:
        """The whole disk in order."""
        for region in self._filler.writer.written_regions():
            payload = region[2]
            segment = decode_segment(payload, self._head)
            waiting: Work | None = None
            for start, end, entry in segment.placed(self._head.chunk_size):
                for work in self._of_entry(segment, start, end, entry):
                    if waiting is not None:
                        yield waiting
                    waiting = work
            if waiting is not None:
                yield waiting._replace(region=region)

    def _of_entry(self, segment: Segment, start: int, end: int, entry: Entry) -> Iterator[Work]:
        base = segment.bases[entry.reference] if entry.kind == ChunkKind.DELTA else None
        inherited = entry.kind == ChunkKind.PARENT
        if self._parent is None or not (inherited or self._touched.count(start, end)):
            yield from self._split(segment, start, end, entry, base, None)
            return
        for run in self._parent.runs(start, end):
            yield from self._split(segment, run.start, run.end, entry, base, run.content_hash)

    def _split(
        self,
        segment: Segment,
        start: int,
        end: int,
        entry: Entry,
        base: Base | None,
        parent_hash: bytes | None,
    ) -> Iterator[Work]:
        """[start, end) as untouched runs and single chunks that are touched."""
        chunk_size = self._head.chunk_size
        while start < end:
            touched = self._touched.next_start(start)
            first = end if touched is None else min(touched // chunk_size * chunk_size, end)
            if start < first:
                unreadable = self._unreadable(segment, start, first, entry)
                yield Work(start, first, entry, base, unreadable, parent_hash, False, [])
            if first == end:
                return
            stop = min(first + chunk_size, end)
            unreadable = self._unreadable(segment, first, stop, entry)
            patches = self._patches.within(first, stop)
            yield Work(first, stop, entry, base, unreadable, parent_hash, True, patches)
            start = stop

    def _unreadable(
        self, segment: Segment, start: int, end: int, entry: Entry
    ) -> list[tuple[int, int]]:
        if self._parent is not None and inherits_maps(entry):
            ranges = self._parent.unreadable(start, end)
        else:
            ranges = segment.map(RangeKind.UNREADABLE).clip(start, end)
        return list((ranges - self._patches.covered) & self._after.used) if ranges else []

    def _encode(self, work: Work) -> tuple[Work, Encoded | None]:
        """The new content of a chunk, in a thread; nothing for what stays."""
        if not work.touched:
            return work, None
        start, end = work.start, work.end
        chunk = bytearray(self._content(work))
        for offset, data in work.patches:
            chunk[offset - start : offset - start + len(data)] = data
        used = self._after.used.clip(start, end)
        for first, last in used.complement(start, end):
            chunk[first - start : last - start] = bytes(last - first)
        run = ChunkRun(start, end, used)
        encoded = self._filler.coder.encode(run, chunk, work.unreadable, work.parent_hash)
        # The patches are not needed any more, and many chunks wait for their turn.
        return work._replace(patches=[]), self._fitted(encoded, chunk, work.entry.stored_size)

    def _fitted(self, encoded: Encoded, chunk: bytearray, room: int) -> Encoded:
        """The chunk compressed once more, and harder, if its frame then fits where the old one was.

        Most changed chunks are hardly larger than they were: then no other frame has to move.
        """
        frame = encoded.frame
        if frame is None or encoded.base is not None or fits(len(frame), room):
            return encoded
        smaller = self._harder.encode(chunk)
        if not fits(len(smaller), room):
            return encoded
        digest = self._filler.algorithm.frame_digest(smaller)
        return encoded._replace(frame=smaller, frame_hash=digest)

    def _content(self, work: Work) -> bytes | memoryview:
        """What the image has of one chunk so far."""
        size = work.end - work.start
        entry, base, parent = work.entry, work.base, self._parent
        if entry.kind == ChunkKind.ZERO:
            return bytes(size)
        if entry.kind == ChunkKind.PARENT:
            if parent is None or work.parent_hash is None:
                raise ValueError("a chunk needs a parent image")
            return parent.read_chunk(work.start, work.parent_hash)
        frame = self._sink.read(entry.offset, entry.stored_size)
        if base is None or parent is None:
            content = self._decoder.decode(frame, entry, size)
        else:
            dictionary = bytes(parent.read_base(base))
            content = self._decoder.decode(frame, entry, size, lambda _: dictionary)
        return bytes(size) if content is None else content
