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
import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imager.errors import ImageError, ImagerError
from imager.image.ancestors import find_parent
from imager.image.codec import ChunkDecoder
from imager.image.format import (
    INDEX_ITEM,
    MAX_CHAIN,
    MAX_DELTA_DEPTH_READ,
    MAX_INDEX,
    ChunkKind,
    Entry,
)
from imager.image.index import Segment, inherits_maps
from imager.image.piece import BaseReader, Piece, no_base
from imager.image.reader import ImageReader, LostRange

_KEPT_BYTES = 1 << 24
"""Encoded bytes of segments that are kept."""


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

    def __init__(self, path: Path) -> None:
        """Open the image; errors as of `ImageReader`. That a parent is missing is kept in `broken`."""
        self.images = [ImageReader(path)]
        self.broken = ""
        """Why an image of the chain is missing; what it has is lost."""
        try:
            self._find_ancestors()
        except BaseException:
            self.close()
            raise
        self.image = self.images[0]
        self.head = self.image.head
        self._decoder = ChunkDecoder(self.image.algorithm, self.head.chunk_size)
        self._kept = _KeptSegments(self.images)

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

    def resolve(self, start: int, end: int, image: int = 0) -> Iterator[Piece | LostRange]:
        """[start, end) of the disk as an image of the chain has it, in order.

        Both are multiples of the chunk size, or the disk's end.
        """
        waiting = [_Range(start, end, image, None)] if start < end else []
        while waiting:
            start, end, image, maps = waiting.pop()
            if image == len(self.images):
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
                waiting.append(_Range(start, stop, image + 1, maps))
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

    def find_chunk(self, start: int, image: int = 0, expected: bytes | None = None) -> StoredChunk:
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
            image, expected = piece.image + 1, base.content_hash

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
        seen = {self.images[0].uuid}
        size = 0
        while self.images[-1].head.incremental:
            try:
                parent = find_parent(self.images[-1])
                self.images.append(parent)
                size += len(parent.items()) * INDEX_ITEM.size
                if parent.uuid in seen:
                    raise ImageError("the parents of the image form a loop")
                if len(self.images) > MAX_CHAIN or size > MAX_INDEX:
                    raise ImageError(
                        f"the image needs more than {MAX_CHAIN - 1} others, or huge ones"
                    )
            except ImageError as error:
                self.broken = str(error)
                return
            seen.add(parent.uuid)

    def _proves(self, start: int, end: int, run: Entry) -> bool:
        """Whether the parent's chunks are those that an entry refers to.

        Where some are lost nobody can tell, and each that is there is as good as its own hash.
        """
        hasher = self.image.algorithm.new()
        for piece in self.resolve(start, end, 1):
            if isinstance(piece, LostRange):
                return True
            for entry in piece.segment.entries:
                hasher.update(entry.content_hash * entry.chunks)
        return hasher.digest() == run.content_hash

    def _piece(self, image: int, found: _Found, first: int, last: int, clip: _Range) -> Piece:
        """Entries `first` to `last` of a segment, cut to a range: only runs of zeros can be cut."""
        chunk_size = self.head.chunk_size
        segment = found.segment
        entries = list(segment.entries[first:last])
        cut = entries[-1]
        if found.starts[last] > clip.end:
            begin = max(found.starts[last - 1], clip.start)
            entries[-1] = _shorter(cut, -(-(clip.end - begin) // chunk_size))
        if found.starts[first] < clip.start:
            stop = min(found.starts[first + 1], clip.end)
            entries[0] = _shorter(entries[0], -(-(stop - clip.start) // chunk_size))
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
        return self.read_chunk(self.find_chunk(base.offset, image + 1, base.content_hash))


class _Range(NamedTuple):
    """A range of the disk that is to be looked up in an image of the chain."""

    start: int
    end: int
    image: int
    maps: Segment | None
    """Whose maps count, if a segment further up has said so."""


class _Found(NamedTuple):
    """A segment, and where its entries begin, its end last."""

    segment: Segment
    starts: list[int]

    @property
    def end(self) -> int:
        return self.segment.end


class _KeptSegments:
    """The segments last looked at; may be used from many threads."""

    def __init__(self, images: list[ImageReader]) -> None:
        self._images = images
        self._kept: OrderedDict[tuple[int, int], _Found | LostRange] = OrderedDict()
        self._last: dict[int, int] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def segment(self, image: int, offset: int) -> _Found | LostRange:
        """The segment of an image that covers a disk byte, or the range around it that is lost."""
        with self._lock:
            last = self._kept.get((image, self._last.get(image, -1)))
            if isinstance(last, _Found) and last.starts[0] <= offset < last.end:
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

    def _load(self, image: int, place: int) -> _Found | LostRange:
        segment = self._images[image].segment(place)
        if isinstance(segment, LostRange):
            return self._named(image, segment)
        chunk_size = self._images[image].head.chunk_size
        starts = [start for start, _, _ in segment.placed(chunk_size)]
        return _Found(segment, [*starts, segment.end])

    def _named(self, image: int, lost: LostRange) -> LostRange:
        name = self._images[image].file.path.name
        return LostRange(lost.start, lost.end, f"{name}: a segment and its copy are damaged")


def _given(base: bytes | memoryview) -> BaseReader:
    return lambda entry: base


def _shorter(run: Entry, chunks: int) -> Entry:
    """A part of a run of zeros; its frame is as long as the whole run, and so of no use."""
    return run._replace(chunks=chunks, stored_size=0, frame_hash=b"")
