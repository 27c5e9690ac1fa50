"""Where a restore gets its image from: files, or a pipe that gives everything once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from imager.image.chain import Chain
from imager.image.index import Segment
from imager.image.piece import Piece
from imager.image.reader import LostRange
from imager.image.stream import ImageStream


class FileOrigin(AbstractContextManager["FileOrigin"]):
    """An image file, and those that it needs, as a restore sees them: read as often as need be."""

    def __init__(self, path: Path, parents: Sequence[Path] = ()) -> None:
        """Open the image; errors as of `ImageReader`. `parents` are folders as of `Chain`."""
        self.path = path
        self.parents = tuple(parents)
        self._chain = Chain(path, parents)
        self.head = self._chain.head
        self.algorithm = self._chain.image.algorithm
        self.files = self._chain.files
        self.require_complete = self._chain.require_complete
        self.close = self._chain.close
        self.pieces = self._chain.pieces

    def __exit__(self, *error: object) -> None:
        self.close()

    def segments_again(self) -> Iterator[Segment]:
        """The intact segments once more."""
        for piece in self._chain.pieces():
            if isinstance(piece, Piece):
                yield piece.segment


class StreamOrigin(AbstractContextManager["StreamOrigin"]):
    """An image from a pipe as a restore sees it: frames come once."""

    path = None
    parents = ()
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

    def pieces(self) -> Iterator[Piece | LostRange]:
        """Segments in disk order, each with the way to its frames."""
        for streamed in self._stream.segments():
            yield Piece(streamed.segment, streamed.read_frames)


Origin = FileOrigin | StreamOrigin
