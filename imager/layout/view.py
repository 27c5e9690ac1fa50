"""A volume that lies on a disk, perhaps inside others: how to read it, and where its bytes are.

    partition ──► LUKS ──► LVM volume       a view reads through all of them, and `place` leads back
      disk  ◄── place ◄── place             from bytes of the innermost one to those of the disk

Above the first encryption a view's bytes are not the disk's; `place` then names the ciphertext.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from imager.errors import ReadFailedError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems import Volume
from imager.layout.slice import Slice


@runtime_checkable
class Remembering(Protocol):
    """A disk that remembers what is read of it, until that is written."""

    def remember(self, volume: Volume, place: Callable[[Extents], Extents]) -> Volume:
        """Do so for `volume`, too: its bytes lie on the disk where `place` says."""


@dataclass(frozen=True)
class View:
    """A volume, and how it lies on the disk."""

    volume: Volume
    place: Callable[[Extents], Extents]
    """Bytes of the volume to the bytes of the disk that hold them, as far as they are on it."""
    start: int | None = None
    """Where on the disk it lies in one piece and in clear (bytes), else None."""
    device: str | None = None
    """The kernel's name of the block device that shows the same bytes, if there is one."""

    @property
    def whole(self) -> Extents:
        """All bytes of the disk that hold it."""
        return self.place(Extents.span(0, self.volume.size))

    def part(self, start: int, size: int, device: str | None = None) -> View:
        """The `size` bytes at `start` of this volume; ValueError where it has not as many."""
        return View(
            Slice(self.volume, start, size),
            lambda extents: self.place(extents.shift(start) if start else extents),
            None if self.start is None else self.start + start,
            device,
        )


@dataclass(frozen=True)
class Stripe:
    """Where one of a segment's stripes begins: in a volume, or in one that is not on this disk."""

    view: View | None
    offset: int


@dataclass(frozen=True)
class Segment:
    """`size` bytes at `start` of a mapped volume, dealt out to stripes in pieces of `chunk` bytes.

    With one stripe `chunk` has no meaning.
    """

    start: int
    size: int
    chunk: int
    stripes: tuple[Stripe, ...]

    def reach(self, offset: int, stripe: int) -> int:
        """How many of the segment's first `offset` bytes lie in a stripe.

        It grows with `offset`: what is contiguous in the volume is so in each of its stripes.
        """
        if len(self.stripes) == 1:
            return offset
        row, within = divmod(offset, self.chunk * len(self.stripes))
        return row * self.chunk + min(max(within - stripe * self.chunk, 0), self.chunk)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of the segment; ReadFailedError."""
        pieces = []
        while size > 0:
            number, length = 0, size
            if len(self.stripes) > 1:
                number = offset // self.chunk % len(self.stripes)
                length = min(size, self.chunk - offset % self.chunk)
            stripe = self.stripes[number]
            if stripe.view is None:
                raise ReadFailedError("part of the volume is on another disk")
            at = stripe.offset + self.reach(offset, number)
            pieces.append(stripe.view.volume.read(at, length))
            offset += length
            size -= length
        return b"".join(pieces)


class Mapped:
    """A `Volume` made of segments of others, which follow each other without a gap."""

    def __init__(self, segments: Sequence[Segment], sector_size: int) -> None:
        self._segments = segments
        self._starts = [segment.start for segment in segments]
        self.size = segments[-1].start + segments[-1].size
        self.sector_size = sector_size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`; ReadFailedError where some are on no disk we have."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ReadFailedError(f"read of {size} bytes at {offset} is outside the volume")
        pieces = []
        position = max(bisect_right(self._starts, offset) - 1, 0)
        while size > 0:
            segment = self._segments[position]
            within = offset - segment.start
            length = min(size, segment.size - within)
            pieces.append(segment.read(within, length))
            offset += length
            size -= length
            position += 1
        return b"".join(pieces)


def mapped(segments: Sequence[Segment], sector_size: int, device: str | None = None) -> View:
    """The view of a volume that is made of `segments`, of which there is one at least."""

    def place(extents: Extents) -> Extents:
        return Extents.union(_place(segment, extents) for segment in segments)

    first = segments[0]
    only = first.stripes[0] if len(segments) == 1 == len(first.stripes) else None
    start = None
    if only is not None and only.view is not None and only.view.start is not None:
        start = only.view.start + only.offset
    return View(Mapped(segments, sector_size), place, start, device)


def _place(segment: Segment, extents: Extents) -> Extents:
    """The disk bytes of those bytes of a mapped volume that lie in one segment."""
    inside = extents.clip(segment.start, segment.start + segment.size)
    if len(segment.stripes) == 1:  # spelt out: millions of ranges come this way
        view, distance = segment.stripes[0].view, segment.stripes[0].offset - segment.start
        return view.place(inside.shift(distance) if distance else inside) if view else Extents()
    found = []
    for number, stripe in enumerate(segment.stripes):
        if stripe.view is not None:
            builder = ExtentsBuilder()
            for start, end in inside:
                builder.add(
                    stripe.offset + segment.reach(start - segment.start, number),
                    stripe.offset + segment.reach(end - segment.start, number),
                )
            found.append(stripe.view.place(builder.build()))
    return Extents.union(found)
