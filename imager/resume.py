"""What an interrupted capture left, and how much of it is still true.

The `.partial` is trusted in nothing: each of its frames is hashed, and the disk's chunk that it
should hold is read and hashed too. The first difference ends what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from imager.chunks import ChunkReader, ChunkRun, chunk_runs
from imager.errors import ImageError, UnsupportedImageError
from imager.extents import Extents
from imager.image.format import (
    MAX_SEGMENT,
    OPENING_SIZE,
    PART_HEADER,
    ChunkKind,
    Entry,
    IndexItem,
    RangeKind,
    Tag,
)
from imager.image.hashing import HashAlgorithm
from imager.image.head import Head
from imager.image.index import Segment, inherits_maps
from imager.image.opening import UNFINISHED, guard_opening
from imager.image.parents import ParentReference
from imager.image.reader import ImageReader, LostRange
from imager.image.records import OVERHEAD, encode_record
from imager.image.sink import FileSink
from imager.parent_image import ParentImage
from imager.pipeline import Progress, ordered_map


class CapturePlan(NamedTuple):
    """What the capture would write from the start."""

    head: Head
    used: Extents
    unused: Extents
    excluded: Extents
    parent: ParentImage | None


class Remains:
    """The beginning of an unfinished image that need not be written again."""

    def __init__(
        self,
        partial: ImageReader,
        plan: CapturePlan,
        reader: ChunkReader,
        threads: int,
        progress: Progress,
    ) -> None:
        """Take over `partial`, whose head begins the same capture as `plan`."""
        self._partial = partial
        self._plan = plan
        self._reader = reader
        self._threads = threads
        self._progress = progress
        self.head = partial.head
        self.uuid = partial.uuid
        self.part_starts = tuple(partial.file.starts)
        self.zero = 0
        """Disk bytes in chunks of the segments yielded so far that are all zero."""
        self.inherited_bytes = 0
        """Disk bytes in chunks of the segments yielded so far that are the parent's."""

    def segments(self) -> Iterator[Segment]:
        """The first segments that are intact, without gaps, and still what the disk holds.

        One at a time: all of them may be too many for the memory.
        """
        try:
            for segment in _kept(
                self._partial, self._plan, self._reader, self._threads, self._progress
            ):
                for start, end, entry in segment.placed(self.head.chunk_size):
                    if entry.kind == ChunkKind.ZERO:
                        self.zero += end - start
                    elif entry.kind == ChunkKind.PARENT:
                        self.inherited_bytes += end - start
                yield segment
        except UnsupportedImageError:
            raise
        except ImageError:
            return  # damaged from here on

    def inherited(self, start: int, end: int) -> Iterator[tuple[bytes, int]]:
        """The content hashes of the parent's chunks in a disk range that a kept segment refers to."""
        return iter(()) if self._plan.parent is None else self._plan.parent.hashes(start, end)

    def close(self) -> None:
        """Close what was left."""
        self._partial.file.close()


def find_remains(
    sink: FileSink,
    plan: CapturePlan,
    reader: ChunkReader,
    algorithm: HashAlgorithm,
    threads: int,
    progress: Progress,
) -> Remains | None:
    """What of the unfinished files behind `sink` is kept; None, and they are emptied, if nothing.

    Whatever is decided, the files then begin with a guard: a crash may have caught them complete
    but not yet renamed.
    """
    first = sink.partial_parts()[0]
    if first.stat().st_size > OPENING_SIZE:
        sink.guard(guard_opening(UNFINISHED))
        try:
            partial = ImageReader(first)
            if (
                partial.algorithm == algorithm
                and _same_capture(partial.head, plan.head)
                and _Cursor(partial).passes_head()
            ):
                return Remains(partial, plan, reader, threads, progress)
            partial.file.close()
        except UnsupportedImageError:
            raise
        except ImageError:
            pass  # not even its head is intact: begin anew
    sink.truncate(0)
    return None


_VOLATILE = ("created", "tool", "host", "note", "source", "parents")
"""Facts of a head that may differ between two runs of the same capture, or are compared apart."""
_IDENTITY = ("model", "serial", "wwn")


def _same_capture(old: Head, new: Head) -> bool:
    """Whether both heads begin the same image: same disk, layout, used bytes and options."""
    old_facts, new_facts = old.to_json(), new.to_json()
    for facts in (old_facts, new_facts):
        source = facts.get("source")
        if not isinstance(source, dict):
            return False
        facts["identity"] = [source.get(key) for key in _IDENTITY]
        for key in _VOLATILE:
            facts.pop(key, None)
    same_parents = [_lasting(parent) for parent in old.parents] == [
        _lasting(parent) for parent in new.parents
    ]
    return same_parents and old_facts == new_facts and old.incompatible == new.incompatible


def _lasting(parent: ParentReference) -> ParentReference:
    """A reference without what its image happens to be called."""
    return replace(parent, file="")


def _kept(
    partial: ImageReader, plan: CapturePlan, reader: ChunkReader, threads: int, progress: Progress
) -> Iterator[Segment]:
    """The first segments that are intact, lie without gaps, and still hold what the disk holds."""
    cursor = _Cursor(partial)
    if not cursor.passes_head():
        return

    def holds(placed: tuple[int, int, Entry]) -> bool:
        start, end, entry = placed
        if entry.kind != ChunkKind.PARENT:
            frame = partial.file.read(entry.offset, entry.stored_size)
            if partial.algorithm.frame_digest(frame) != entry.frame_hash:
                return False
        runs = chunk_runs(plan.used, start, end, partial.head.chunk_size)
        return all(_same_content(run, entry, reader, partial.algorithm) for run in runs)

    for segment, item in zip(partial.segments(), partial.items(), strict=False):
        if isinstance(segment, LostRange) or segment.map(RangeKind.UNREADABLE):
            return
        if not _same_maps(segment, plan) or not cursor.passes(segment, item):
            return
        if not all(ordered_map(holds, _chunks(segment, plan), threads)):
            return
        progress("resume", plan.used.clip(0, segment.end).total, plan.used.total)
        yield segment


def _same_maps(segment: Segment, plan: CapturePlan) -> bool:
    """Whether all is still in use that was, in the segment's own maps and in those it inherits."""
    inherited = Extents.of(
        (start, end)
        for start, end, entry in segment.placed(plan.head.chunk_size)
        if inherits_maps(entry)
    )
    if plan.parent and any(plan.parent.maps_differ(start, end, []) for start, end in inherited):
        return False
    return all(
        segment.map(kind) == extents.clip(segment.start, segment.end) - inherited
        for kind, extents in (
            (RangeKind.UNUSED, plan.unused),
            (RangeKind.EXCLUDED, plan.excluded),
        )
    )


def _chunks(segment: Segment, plan: CapturePlan) -> Iterator[tuple[int, int, Entry]]:
    """The segment's entries, runs of the parent's chunks taken apart; ImageError where it has none."""
    for start, end, entry in segment.placed(plan.head.chunk_size):
        if entry.kind != ChunkKind.PARENT:
            yield start, end, entry
        elif plan.parent is None:
            raise ImageError("there is no parent image")
        else:
            for content_hash, chunks in plan.parent.hashes(start, end):
                stop = min(start + chunks * plan.head.chunk_size, end)
                yield start, stop, entry._replace(chunks=chunks, content_hash=content_hash)
                start = stop


def _same_content(
    run: ChunkRun, entry: Entry, reader: ChunkReader, algorithm: HashAlgorithm
) -> bool:
    if not run.used and entry.kind == ChunkKind.PARENT:
        zeros = bytes(min(run.end - run.start, reader.chunk_size))
        return algorithm.digest(zeros) == entry.content_hash
    if not run.used:
        return entry.kind == ChunkKind.ZERO
    chunk, unreadable = reader.read(run)
    if unreadable:
        return False
    if entry.kind == ChunkKind.ZERO:
        return not any(chunk)
    return algorithm.digest(chunk) == entry.content_hash


class _Cursor:
    """Makes sure that what is kept lies in the file exactly as a writer would have put it."""

    def __init__(self, partial: ImageReader) -> None:
        self._partial = partial
        self._offset = OPENING_SIZE
        self._parts = [start for start in partial.file.starts if start]

    def passes_head(self) -> bool:
        """Whether the head's bytes are those that a writer makes of it."""
        head = self._partial.head.encode()
        record = encode_record(Tag.HEAD, self._partial.uuid, self._partial.algorithm, head)
        self._offset += len(record)
        return self._partial.file.read(OPENING_SIZE, len(record)) == record

    def passes(self, segment: Segment, item: IndexItem) -> bool:
        """Whether frames and record of the next segment follow each other without a gap."""
        for entry in segment.entries:
            if entry.kind == ChunkKind.PARENT:
                continue  # no frame
            self._pass_part()
            if entry.offset != self._offset:
                return False
            self._offset += entry.stored_size
        self._pass_part()
        if item.offset != self._offset:
            return False
        self._offset += item.size
        record = self._partial.read_record(item.offset, MAX_SEGMENT, Tag.SEGMENT)
        return record.payload == segment.encode()

    def _pass_part(self) -> None:
        if self._parts and self._parts[0] == self._offset:
            self._parts.pop(0)
            self._offset += PART_HEADER.size + OVERHEAD
