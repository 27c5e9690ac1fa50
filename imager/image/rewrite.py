"""Patches an unfinished image: regions of it get other frames, and what follows moves if it must.

A *region* is a segment with its frames and the free space behind. Its new content is known first,
then all places are fixed, and then the file is changed from its end to its beginning:

    before   | head | frames SEGM free | frames SEGM free | frames SEGM free |
    after    | head | frames SEGM  free| more frames  SEGM | frames SEGM free|

Nothing ever moves to the front, so going backwards overwrites nothing that is still needed. A frame
that fits where the old one was leaves all others in their places, with free space between. Else what
follows moves, in the region and, where its free space does not suffice, in those behind it, until
theirs has taken it up.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from imager.image.format import OPENING_SIZE, Entry, Tag
from imager.image.free import free_records
from imager.image.hashing import HashAlgorithm
from imager.image.head import Head
from imager.image.index import Segment, decode_segment
from imager.image.records import OVERHEAD, encode_record

NEW = 1 << 63
"""Added to an entry's offset where its frame lies among the new ones, not in the image yet."""
_MEMORY = 1 << 23
_WRITE = 1 << 22
"""Bytes that are written at a time."""


class Patchable(Protocol):
    """An unfinished image that can be changed."""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes that were written before."""

    def patch(self, offset: int, data: bytes | memoryview) -> None:
        """Exchange bytes, or go on behind the end."""


class Rewrite:
    """Gathers the new content of all regions, in order, and then makes it so."""

    def __init__(
        self,
        image: Patchable,
        head: Head,
        uuid: bytes,
        algorithm: HashAlgorithm,
        directory: str | None,
    ) -> None:
        """`head` is the new one; new frames wait in a temporary file in `directory`."""
        self._image = image
        self._head = head
        self._uuid = uuid
        self._algorithm = algorithm
        self._head_record = encode_record(Tag.HEAD, uuid, algorithm, head.encode())
        self._frames = tempfile.SpooledTemporaryFile(_MEMORY, dir=directory)
        self._frames_size = 0
        self._plans = tempfile.SpooledTemporaryFile(_MEMORY, dir=directory)
        self._places = array("Q", (0,))  # of each region's plan, and where the last one ends
        self._before = array("Q")
        self._ends_before = array("Q")
        self._used_before = array("Q")
        self._ends = array("Q")
        self._changed = bytearray()
        self._starts = array("Q")
        self.moved = 0
        """Bytes of frames that were written to another place than before."""

    def close(self) -> None:
        """Drop the temporary files."""
        self._frames.close()
        self._plans.close()

    def add_frame(self, frame: bytes) -> int:
        """Keep a new frame; returns what its entry has for an offset."""
        self._frames.seek(self._frames_size)
        self._frames.write(frame)
        offset = self._frames_size | NEW
        self._frames_size += len(frame)
        return offset

    def add_region(
        self, start: int, end: int, before: bytes, used: int, segments: Sequence[Segment]
    ) -> None:
        """The next region, which lay at [start, end) of the image and had the payload `before`.

        `used` is where its free space began. The entries of its new `segments` have for an offset
        where their frame lies in the image, or what `add_frame` gave.
        """
        payloads = [segment.encode() for segment in segments]
        for payload in payloads:
            self._plans.write(len(payload).to_bytes(4, "little") + payload)
        self._places.append(self._plans.tell())
        self._before.append(start)
        self._ends_before.append(end)
        self._used_before.append(used)
        placed, _ = _placed(segments, start)
        stays = [segment.encode() for segment in placed] == [before]
        frames = zip(segments[0].entries, placed[0].entries, strict=True)
        self._changed.append(
            not stays or any(a.stored_size and a.offset != b.offset for a, b in frames)
        )

    def apply(self) -> None:
        """Change the image; WriteFailedError where that is impossible, and it is then of no use."""
        position = OPENING_SIZE + len(self._head_record)
        for number, before in enumerate(self._before):
            start = _fitting(position, before)
            self._starts.append(start)
            position = self._used_before[number]
            if self._changed[number] or start != before:
                _, position = _placed(self._plan(number), start)
            self._ends.append(position)
        following = position
        for number in range(len(self._starts) - 1, -1, -1):
            self._write_region(number, following)
            following = self._starts[number]
        head = _Output(self._image, OPENING_SIZE)
        head.write(self._head_record)
        self._write_free(head, following)
        head.flush()

    def segments(self) -> Iterator[Segment]:
        """All segments as they are in the image now."""
        for number, start in enumerate(self._starts):
            placed, _ = _placed(self._plan(number), start)
            yield from placed

    def _plan(self, number: int) -> list[Segment]:
        start, end = self._places[number : number + 2]
        self._plans.seek(start)
        segments = []
        while start < end:
            size = int.from_bytes(self._plans.read(4), "little")
            segments.append(decode_segment(self._plans.read(size), self._head))
            start += 4 + size
        return segments

    def _write_region(self, number: int, following: int) -> None:
        """Put one region where it belongs, and free space up to what follows."""
        start, end = self._starts[number], self._ends[number]
        if start != self._before[number] or self._changed[number]:
            segments = self._plan(number)
            placed, _ = _placed(segments, start)
            kept = self._kept(segments, placed)
            output = _Output(self._image, start)
            for segment, after in zip(segments, placed, strict=True):
                for old, entry in zip(segment.entries, after.entries, strict=True):
                    if not entry.stored_size:
                        continue
                    self._write_free(output, entry.offset)
                    if old.offset & NEW:
                        self._frames.seek(old.offset ^ NEW)
                        output.write(self._frames.read(old.stored_size))
                    elif old.offset == entry.offset:
                        output.skip(old.stored_size)
                    else:
                        output.write(kept.pop(old.offset))
                        self.moved += old.stored_size
                output.write(
                    encode_record(Tag.SEGMENT, self._uuid, self._algorithm, after.encode())
                )
        elif (end, following) == (self._used_before[number], self._ends_before[number]):
            return
        else:
            output = _Output(self._image, end)
        self._write_free(output, following)
        output.flush()

    def _kept(self, segments: list[Segment], placed: list[Segment]) -> dict[int, bytes]:
        """The frames that stay, but at another place: read before anything is overwritten."""
        kept: dict[int, bytes] = {}
        for segment, after in zip(segments, placed, strict=True):
            for old, entry in zip(segment.entries, after.entries, strict=True):
                if entry.stored_size and not old.offset & NEW and old.offset != entry.offset:
                    kept[old.offset] = self._image.read(old.offset, old.stored_size)
        return kept

    def _write_free(self, output: _Output, end: int) -> None:
        for record in free_records(end - output.position, self._uuid, self._algorithm):
            output.write(record)


class _Output:
    """Writes one place of the image after the other, in large pieces."""

    def __init__(self, image: Patchable, position: int) -> None:
        self._image = image
        self.position = position
        self._waiting = bytearray()

    def write(self, data: bytes) -> None:
        self._waiting += data
        self.position += len(data)
        if len(self._waiting) >= _WRITE:
            self.flush()

    def skip(self, size: int) -> None:
        """Leave what is there."""
        self.flush()
        self.position += size

    def flush(self) -> None:
        if self._waiting:
            self._image.patch(self.position - len(self._waiting), bytes(self._waiting))
            self._waiting.clear()


def _fitting(position: int, before: int) -> int:
    """Where a region may begin, not before `position` nor where it was: free space has 64 bytes."""
    if before == position or before - position >= OVERHEAD:
        return before
    return position if position > before else position + OVERHEAD


def _placed(segments: Sequence[Segment], position: int) -> tuple[list[Segment], int]:
    """A region's segments, the first frame at `position`, with the places of all frames; its end.

    A frame stays where it is if what comes before it allows that.
    """
    placed = []
    for segment in segments:
        entries: list[Entry] = []
        for entry in segment.entries:
            if entry.stored_size and entries and not entry.offset & NEW:
                position = _fitting(position, entry.offset)
            entries.append(entry._replace(offset=position))
            position += entry.stored_size
        placed.append(replace(segment, entries=entries))
        position += len(placed[-1].encode()) + OVERHEAD
    return placed, position


def fits(size: int, room: int) -> bool:
    """Whether a frame can take the place of one of `room` bytes while all others stay."""
    return size == room or size + OVERHEAD <= room
