"""An image and its ancestors, read as if it held everything itself.

    image    | own | parent's ........ | own | parent's (own maps) ... |
    parent   | own ... | parent's | own ............................... |
    its parent ...

Going down from the image, each range of the disk ends in an entry of some image of the chain. This
takes no memory for each chunk: what is kept is the segments last looked at, so that going through
the disk in order decodes each but once.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from imager.errors import ImageError, ImagerError
from imager.image.ancestors import find_image
from imager.image.codec import ChunkDecoder
from imager.image.format import (
    INDEX_ITEM,
    MAX_CHAIN,
    MAX_DELTA_DEPTH_READ,
    MAX_INDEX,
    ChunkKind,
    Entry,
)
from imager.image.index import Segment, inherits_maps, shorter
from imager.image.kept_segments import Found, KeptSegments
from imager.image.parents import ParentReference
from imager.image.piece import BaseReader, Piece, no_base
from imager.image.reader import ImageReader, LostRange


class StoredChunk(NamedTuple):
    """Where a chunk is found: its own entry, and, if that is a delta, the ones below it."""

    size: int
    layers: tuple[tuple[Piece, Entry], ...]
    """The chunk's own entry first; the last one is no delta."""

    @property
    def content_hash(self) -> bytes:
        """Of the chunk."""
        return self.layers[0][1].content_hash

    @property
    def depth(self) -> int:
        """How many deltas lie one upon the other."""
        return len(self.layers) - 1


class Chain:
    """An open image with all images that it needs."""

    def __init__(self, path: Path, elsewhere: Sequence[Path] = ()) -> None:
        """Open the image; errors as of `ImageReader`. That a parent is missing is kept in `broken`.

        An ancestor is looked for beside the image that refers to it, and then in the folders
        `elsewhere`.
        """
        self._elsewhere = tuple(elsewhere)
        self.images = [ImageReader(path)]
        """The image itself, its parent, and so on to the full one; then, rarely, images that only deltas
        need, with theirs. Each refers only to images behind it."""
        self.broken = ""
        """Why an image of the chain is missing; what it has is lost."""
        self.length = 1
        """Images down to the full one."""
        self._references: list[list[int | None]] = []
        try:
            self._find_ancestors()
        except BaseException:
            self.close()
            raise
        self.image = self.images[0]
        self.head = self.image.head
        self._decoder = ChunkDecoder(self.image.algorithm, self.head.chunk_size)
        self._kept = KeptSegments(self.images)

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all images."""
        for image in self.images:
            image.file.close()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of all images."""
        return tuple(path for image in self.images for path in image.file.paths)

    def require_complete(self) -> None:
        """ImageError with what to do, unless the image and all that it needs are there."""
        self.image.require_complete()
        if self.broken:
            raise ImageError(f"{self.image.file.path}: {self.broken}")

    def pieces(self) -> Iterator[Piece | LostRange]:
        """All of the disk in order; what is damaged in the image is added to its problems."""
        for segment in self.image.segments():
            if isinstance(segment, LostRange):
                yield segment
            else:
                yield from self.expand(segment)

    def expand(self, segment: Segment) -> Iterator[Piece | LostRange]:
        """What a segment of the image itself covers, after proof of what it refers to."""
        if not self.head.incremental:
            yield Piece(segment, self.image.read_frames)
            return
        position = segment.start
        for start, end, entry in segment.placed(self.head.chunk_size):
            if entry.kind == ChunkKind.PARENT and not self._proves(start, end, entry):
                yield from self.resolve(position, start)
                yield LostRange(start, end, "the parent has other chunks than the image refers to")
                position = end
        yield from self.resolve(position, segment.end)

    def resolve(self, start: int, end: int, image: int | None = 0) -> Iterator[Piece | LostRange]:
        """[start, end) of the disk as an image of the chain has it, in order.

        Both are multiples of the chunk size, or the disk's end.
        """
        waiting = [_Range(start, end, image, None)] if start < end else []
        while waiting:
            start, end, image, maps = waiting.pop()
            if image is None:
                yield LostRange(start, end, self.broken)
                continue
            found = self._kept.segment(image, start)
            if found.end < end:
                waiting.append(_Range(found.end, end, image, maps))
                end = found.end
            if isinstance(found, LostRange):
                yield LostRange(start, end, found.reason)
                continue
            first = bisect.bisect_right(found.starts, start) - 1
            entries = found.segment.entries
            if entries[first].kind == ChunkKind.PARENT:
                stop = min(end, found.starts[first + 1])
                if stop < end:
                    waiting.append(_Range(stop, end, image, maps))
                if maps is None and not inherits_maps(entries[first]):
                    maps = found.segment
                waiting.append(_Range(start, stop, self._references[image][0], maps))
                continue
            last = first
            while found.starts[last] < end and entries[last].kind != ChunkKind.PARENT:
                last += 1
                if last == len(entries):
                    break
            stop = min(end, found.starts[last])
            if stop < end:
                waiting.append(_Range(stop, end, image, maps))
            yield self._piece(image, found, first, last, _Range(start, stop, image, maps))

    def needs(self) -> Iterator[tuple[int, Entry]]:
        """Every frame that the image needs, with the image of the chain that has it.

        Those of the bases of deltas, too; one that several need comes several times. What is lost
        is left out.
        """
        for piece in self.pieces():
            if isinstance(piece, LostRange):
                continue
            for start, _, entry in piece.segment.placed(self.head.chunk_size):
                if entry.kind != ChunkKind.DELTA:
                    yield piece.image, entry
                    continue
                with contextlib.suppress(ImageError):
                    for below, layer in self.find_chunk(start).layers:
                        yield below.image, layer

    def find_chunk(
        self, start: int, image: int | None = 0, expected: bytes | None = None
    ) -> StoredChunk:
        """The chunk at disk byte `start` as an image of the chain has it.

        Raises ImageError where it, or the base of a delta, is lost or not the one that is named;
        also if it has another content hash than `expected`.
        """
        size = min(self.head.chunk_size, self.head.disk_size - start)
        layers: list[tuple[Piece, Entry]] = []
        while True:
            piece = next(self.resolve(start, start + size, image))
            if isinstance(piece, LostRange):
                raise ImageError(piece.reason or "a segment is lost")
            entry = piece.segment.entries[0]
            if expected is not None and entry.content_hash != expected:
                raise ImageError("a delta's base is not the chunk that it names")
            layers.append((piece, entry))
            if entry.kind != ChunkKind.DELTA:
                return StoredChunk(size, tuple(layers))
            if len(layers) > MAX_DELTA_DEPTH_READ:
                raise ImageError("too many deltas lie one upon the other")
            base = piece.segment.bases[entry.reference]
            image, expected = self._references[piece.image][base.parent], base.content_hash

    def read_chunk(self, chunk: StoredChunk) -> bytes | memoryview:
        """Its content, proved by its hash.

        The memory is this thread's, and valid until its next call. Raises ImageError or
        ReadFailedError where a frame is damaged.
        """
        content: bytes | memoryview = b""
        for piece, entry in reversed(chunk.layers):
            (frame,) = piece.read_frames([entry])
            if isinstance(frame, ImagerError):
                raise frame
            decoded = self._decoder.decode(frame, entry, chunk.size, _given(content))
            content = bytes(chunk.size) if decoded is None else decoded
        return content

    def _find_ancestors(self) -> None:
        """Open all images that are referred to, parents first."""
        size = 0
        last: ImageReader | None = self.images[0]
        while last is not None and last.head.incremental:
            last = self._find(last, last.head.parents[0])
        self.length = len(self.images)
        place = 0
        while place < len(self.images):
            image = self.images[place]
            size += len(image.items()) * INDEX_ITEM.size
            if size > MAX_INDEX:
                raise ImageError("the images that are needed have huge indexes")
            self._references.append([self._place(place, each) for each in image.head.parents])
            place += 1

    def _place(self, image: int, reference: ParentReference) -> int | None:
        """Where an image is that one refers to: behind that one, so that nothing goes in circles."""
        for place in range(image + 1, len(self.images)):
            if _is(self.images[place], reference):
                return place
        if self.broken or self._find(self.images[image], reference) is None:
            return None
        return len(self.images) - 1

    def _find(self, child: ImageReader, reference: ParentReference) -> ImageReader | None:
        """Open one more image; None, and the chain is broken, if it is not there."""
        try:
            if len(self.images) >= MAX_CHAIN:
                raise ImageError(f"the image needs more than {MAX_CHAIN - 1} others")
            if any(image.uuid == reference.uuid for image in self.images):
                raise ImageError("the parents of the image form a loop")
            found = find_image(child, reference, self._elsewhere)
        except ImageError as error:
            self.broken = str(error)
            return None
        self.images.append(found)
        return found

    def _proves(self, start: int, end: int, run: Entry) -> bool:
        """Whether the parent's chunks are those that an entry refers to.

        Where some are lost nobody can tell, and each that is there is as good as its own hash.
        """
        hasher = self.image.algorithm.new()
        for piece in self.resolve(start, end, self._references[0][0]):
            if isinstance(piece, LostRange):
                return True
            for entry in piece.segment.entries:
                hasher.update(entry.content_hash * entry.chunks)
        return hasher.digest() == run.content_hash

    def _piece(self, image: int, found: Found, first: int, last: int, clip: _Range) -> Piece:
        """Entries `first` to `last` of a segment, cut to a range: only runs of zeros can be cut."""
        chunk_size = self.head.chunk_size
        segment = found.segment
        entries = list(segment.entries[first:last])
        cut = entries[-1]
        if found.starts[last] > clip.end:
            begin = max(found.starts[last - 1], clip.start)
            entries[-1] = shorter(cut, -(-(clip.end - begin) // chunk_size))
        if found.starts[first] < clip.start:
            stop = min(found.starts[first + 1], clip.end)
            entries[0] = shorter(entries[0], -(-(stop - clip.start) // chunk_size))
        maps = (clip.maps or segment).clipped_maps(clip.start, clip.end)
        reader = self.images[image]
        bases = segment.bases
        return Piece(
            Segment(segment.number, clip.start, clip.end, entries, maps, bases),
            reader.read_frames,
            functools.partial(self._read_base, image, segment) if bases else no_base,
            image,
        )

    def _read_base(self, image: int, segment: Segment, entry: Entry) -> bytes | memoryview:
        """The dictionary of a delta in a segment of an image of the chain."""
        base = segment.bases[entry.reference]
        place = self._references[image][base.parent]
        return self.read_chunk(self.find_chunk(base.offset, place, base.content_hash))


class _Range(NamedTuple):
    """A range of the disk that is to be looked up in an image of the chain."""

    start: int
    end: int
    image: int | None
    """None: a parent that is missing."""
    maps: Segment | None
    """Whose maps count, if a segment further up has said so."""


def _is(image: ImageReader, reference: ParentReference) -> bool:
    """Whether an image is the one that is meant."""
    footer = image.footer
    return (
        image.uuid == reference.uuid
        and footer is not None
        and footer.content_digest == reference.content_digest
    )


def _given(base: bytes | memoryview) -> BaseReader:
    return lambda entry: base
