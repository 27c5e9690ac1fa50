"""Where a restore gets its image from: a file, or a pipe that gives everything once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from imager.errors import ImagerError
from imager.image.format import Entry
from imager.image.index import Segment
from imager.image.reader import ImageReader, LostRange
from imager.image.stream import ImageStream

FrameReader = Callable[[Sequence[Entry]], list[memoryview | ImagerError]]
"""Gives the stored frames of some entries, or for each the reason why it cannot be had."""


class FileOrigin(AbstractContextManager["FileOrigin"]):
    """An image file as a restore sees it: it can be read as often as need be."""

    def __init__(self, path: Path) -> None:
        """Open the image; errors as of `ImageReader`."""
        self.path = path
        self._reader = ImageReader(path)
        self.head = self._reader.head
        self.algorithm = self._reader.algorithm
        self.files = self._reader.file.paths

    def require_complete(self) -> None:
        """ImageError unless the image has its end."""
        self._reader.require_complete()

    def close(self) -> None:
        """Close the image."""
        self._reader.file.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def segments(self) -> Iterator[tuple[Segment | LostRange, FrameReader]]:
        """Segments in disk order, each with the way to its frames."""
        for segment in self._reader.segments():
            yield segment, self._reader.read_frames

    def segments_again(self) -> Iterator[Segment]:
        """The intact segments once more."""
        for segment in self._reader.segments():
            if isinstance(segment, Segment):
                yield segment


class StreamOrigin(AbstractContextManager["StreamOrigin"]):
    """An image from a pipe as a restore sees it: frames come once."""

    path = None
    files = (Path("/proc/self/fd/0"),)
    """Where the image may lie, for whoever must not overwrite it."""

    def __init__(self, fd: int) -> None:
        """Read the head from `fd`; errors as of `ImageStream`."""
        self._stream = ImageStream(fd)
        self.head = self._stream.head
        self.algorithm = self._stream.algorithm
        self.segments_again = self._stream.segments_again
        self.close = self._stream.close

    def __exit__(self, *error: object) -> None:
        self.close()

    def require_complete(self) -> None:
        """Only its end will tell."""

    def segments(self) -> Iterator[tuple[Segment | LostRange, FrameReader]]:
        """Segments in disk order, each with the way to its frames."""
        for streamed in self._stream.segments():
            yield streamed.segment, streamed.read_frames


Origin = FileOrigin | StreamOrigin
