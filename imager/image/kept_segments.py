"""Segments of some images by disk offset; those last looked at are kept decoded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from imager.image.index import Segment
from imager.image.reader import ImageReader, LostRange

_KEPT_BYTES = 1 << 24
"""Encoded bytes of segments that are kept."""


class Found(NamedTuple):
    """A segment, and where its entries begin, its end last."""

    segment: Segment
    starts: list[int]

    @property
    def end(self) -> int:
        """One past the last disk byte."""
        return self.segment.end


class KeptSegments:
    """The segments last looked at; may be used from many threads."""

    def __init__(self, images: list[ImageReader]) -> None:
        """Of these images, which are named by their places."""
        self._images = images
        self._kept: OrderedDict[tuple[int, int], Found | LostRange] = OrderedDict()
        self._last: dict[int, int] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def segment(self, image: int, offset: int) -> Found | LostRange:
        """The segment of an image that covers a disk byte, or the range around it that is lost."""
        with self._lock:
            last = self._kept.get((image, self._last.get(image, -1)))
            if isinstance(last, Found) and last.starts[0] <= offset < last.end:
                return last
            place = self._images[image].locate(offset)
            if isinstance(place, LostRange):
                return self._named(image, place)
            self._last[image] = place
            found = self._kept.get((image, place))
            if found is None:
                found = self._kept[image, place] = self._load(image, place)
                self._bytes += self._images[image].items()[place].size
                while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                    (old, number), _ = self._kept.popitem(last=False)
                    self._bytes -= self._images[old].items()[number].size
            else:
                self._kept.move_to_end((image, place))
            return found

    def _load(self, image: int, place: int) -> Found | LostRange:
        segment = self._images[image].segment(place, self._images[image].items()[place])
        if isinstance(segment, LostRange):
            return self._named(image, segment)
        chunk_size = self._images[image].head.chunk_size
        starts = [start for start, _, _ in segment.placed(chunk_size)]
        return Found(segment, [*starts, segment.end])

    def _named(self, image: int, lost: LostRange) -> LostRange:
        name = self._images[image].file.path.name
        return LostRange(lost.start, lost.end, f"{name}: a segment and its copy are damaged")
