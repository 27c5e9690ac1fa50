"""Patches an unfinished image: regions of it get other frames, and what follows moves if it must.

A *region* is a segment with its frames and the free space behind. Its new content is known first,
then all places are fixed, and then the file is changed from its end to its beginning:

    before   | head | frames SEGM free | frames SEGM free | frames SEGM free |
    after    | head | frames SEGM  free| more frames  SEGM | frames SEGM free|

Nothing ever moves to the front, so going backwards overwrites nothing that is still needed. Where
the free space behind a region suffices nothing moves at all; else those behind it move, until their
own free space has taken it up.
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
        self._sizes = array("Q")
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
        size = 0
        for segment, payload in zip(segments, payloads, strict=True):
            self._plans.write(len(payload).to_bytes(4, "little") + payload)
            size += sum(entry.stored_size for entry in segment.entries) + len(payload) + OVERHEAD
        self._places.append(self._plans.tell())
        self._before.append(start)
        self._ends_before.append(end)
        self._used_before.append(used)
        self._sizes.append(size)
        entries = list(_placed(segments[0], start))
        stays = len(segments) == 1 and replace(segments[0], entries=entries).encode() == before
        frames = zip(segments[0].entries, entries, strict=True)
        self._changed.append(
            not stays or any(a.stored_size and a.offset != b.offset for a, b in frames)
        )

    def apply(self) -> None:
        """Change the image; WriteFailedError where that is impossible, and it is then of no use."""
        position = OPENING_SIZE + len(self._head_record)
        for before, size in zip(self._before, self._sizes, strict=True):
            start = _fitting(position, before)
            self._starts.append(start)
            position = start + size
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
            for segment in self._plan(number):
                entries = list(_placed(segment, start))
                yield replace(segment, entries=entries)
                start += sum(entry.stored_size for entry in entries)
                start += len(segment.encode()) + OVERHEAD

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
        start = self._starts[number]
        end = start + self._sizes[number]
        if start != self._before[number] or self._changed[number]:
            segments = self._plan(number)
            kept = self._kept(segments, start)
            output = _Output(self._image, start)
            for segment in segments:
                entries = list(_placed(segment, output.position))
                for old, entry in zip(segment.entries, entries, strict=True):
                    if not entry.stored_size:
                        continue
                    if old.offset & NEW:
                        self._frames.seek(old.offset ^ NEW)
                        output.write(self._frames.read(old.stored_size))
                    elif old.offset == entry.offset:
                        output.skip(old.stored_size)
                    else:
                        output.write(kept.pop(old.offset))
                        self.moved += old.stored_size
                payload = replace(segment, entries=entries).encode()
                output.write(encode_record(Tag.SEGMENT, self._uuid, self._algorithm, payload))
        elif (end, following) == (self._used_before[number], self._ends_before[number]):
            return
        else:
            output = _Output(self._image, end)
        self._write_free(output, following)
        output.flush()

    def _kept(self, segments: list[Segment], start: int) -> dict[int, bytes]:
        """The frames that stay, but at another place: read before anything is overwritten."""
        kept: dict[int, bytes] = {}
        for segment in segments:
            for old, entry in zip(segment.entries, _placed(segment, start), strict=True):
                if entry.stored_size and not old.offset & NEW and old.offset != entry.offset:
                    kept[old.offset] = self._image.read(old.offset, old.stored_size)
                start += entry.stored_size
            start += len(segment.encode()) + OVERHEAD
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


def _placed(segment: Segment, start: int) -> Iterator[Entry]:
    """The entries with the places of their frames, the first at `start`."""
    for entry in segment.entries:
        yield entry._replace(offset=start)
        start += entry.stored_size
