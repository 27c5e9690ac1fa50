"""What a restore, a check or an export gets of an image: frames of consecutive chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from imager.errors import ImageError, ImagerError
from imager.image.format import Entry
from imager.image.index import Segment

FrameReader = Callable[[Sequence[Entry]], list[memoryview | ImagerError]]
"""Gives the stored frames of some entries, or for each the reason why it cannot be had."""
BaseReader = Callable[[Entry], bytes | memoryview]
"""Gives the dictionary of a delta; ImageError or ReadFailedError where it is lost."""


def no_base(entry: Entry) -> bytes:
    """The dictionaries of an image that has no deltas."""
    raise ImageError("a chunk needs a parent image")


class Piece(NamedTuple):
    """A part of the disk whose chunks are all stored in one image: entries and maps, none inherited."""

    segment: Segment
    """Of a run of zeros that goes on outside, `stored_size` is 0: its frame is of no use here."""
    read_frames: FrameReader
    read_base: BaseReader = no_base
    image: int = 0
    """Which one of a chain: 0 is the image itself, 1 its parent, ..."""
