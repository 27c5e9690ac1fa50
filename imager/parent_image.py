"""The parent of an image that is being captured: what it has at each place of the disk.

Before anything is written, all of its chain that says where something is gets proved: each reference
by its hash, and the whole by the content digest. Its frames are only decoded where a delta needs
one, and then proved as well.

Most images' deltas are against their parents. Every fourth one's are against the fourth image before
it, every sixteenth's against the sixteenth, and so on, counted from the full image:

    0 <- 1 <- 2 <- 3    4 <- 5 <- 6 <- 7    8 <- 9 ...
    0 <---------------- 4 <---------------- 8 <----...

So few deltas lie one upon the other however long the chain, and no chunk need be stored whole again
just because it changes every night.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from imager.errors import ImageError, ReadFailedError, RefusedError
from imager.extents import Extents
from imager.image.chain import Chain
from imager.image.format import DELTA_STRIDE, MAX_CHAIN, MAX_DELTA_DEPTH, Base, RangeKind
from imager.image.parents import ParentReference
from imager.image.reader import ImageReader, LostRange
from imager.pipeline import Progress
from imager.survey import require_sound, survey


class ParentRun(NamedTuple):
    """Consecutive chunks of the parent with one content: a single one, or zeros."""

    start: int
    """First disk byte."""
    end: int
    content_hash: bytes | None
    """Of one chunk; None where the parent is lost or not trusted."""


class ParentImage:
    """An image that another one is to refer to."""

    def __init__(self, path: Path, distrusted: Extents, progress: Progress) -> None:
        """Open and prove the image at `path`.

        `distrusted` are disk ranges that are not to be borrowed, such as a check found damaged.
        Raises ImageError, with what to do, where the image or one that it needs is missing, not
        complete or damaged elsewhere than there.
        """
        self._chain = Chain(path)
        try:
            self._chain.require_complete()
            if self._chain.image.expired:
                raise ImageError(f"{path} was given up by a prune: nothing may build upon it")
            if len(self._chain.images) >= MAX_CHAIN:
                raise RefusedError(
                    f"{path} needs {MAX_CHAIN - 1} others already: capture a full image"
                )
            self._distrusted = distrusted
            self.head = self._chain.head
            self.algorithm = self._chain.image.algorithm
            self._bases = [0]
            far = _reach(self._chain.length) - 1
            if far > 0 and not self._chain.images[far].expired:
                self._bases.append(far)
            self.references = tuple(_reference(self._chain.images[place]) for place in self._bases)
            self.reference = self.references[0]
            found = survey(self._chain, progress)
            require_sound(self._chain, found, distrusted)
            self._maps = found.maps
        except BaseException:
            self._chain.close()
            raise
        self._differing = Extents()

    def __enter__(self) -> ParentImage:
        return self

    def __exit__(self, *error: object) -> None:
        self._chain.close()

    def require_fit(self, image: Path | int | None, disk_size: int, sector_size: int) -> None:
        """RefusedError unless `image`, of a disk with this geometry, can refer to it and find it."""
        path = self._chain.image.file.path
        if (self.head.disk_size, self.head.sector_size) != (disk_size, sector_size):
            raise RefusedError(
                f"{path} is of a disk of {self.head.disk_size} bytes in sectors of "
                f"{self.head.sector_size}, this one has {disk_size} in sectors of {sector_size}: "
                "capture a full image"
            )
        folder = path.absolute().parent.resolve()
        if isinstance(image, Path) and image.absolute().parent.resolve() != folder:
            raise RefusedError(
                f"{image} would lie in another folder than its parent {path}, "
                "and the parent is looked for beside the image"
            )

    def compare_maps(self, unused: Extents, excluded: Extents) -> None:
        """Find out where the new image's maps are not the parent's."""
        self._differing = Extents()
        ours = {RangeKind.UNUSED: unused, RangeKind.EXCLUDED: excluded}
        for kind, extents in ours.items():
            theirs = self._maps[kind]
            self._differing |= (extents - theirs) | (theirs - extents)

    def maps_differ(self, start: int, end: int, unreadable: list[tuple[int, int]]) -> bool:
        """Whether the new image has other maps in [start, end), where `unreadable` was not read."""
        if self._differing.count(start, end):
            return True
        before = self._maps[RangeKind.UNREADABLE]
        return bool(before or unreadable) and before.clip(start, end) != Extents.of(unreadable)

    def unreadable(self, start: int, end: int) -> Extents:
        """What of [start, end) could not be read when the parent was captured."""
        return self._maps[RangeKind.UNREADABLE].clip(start, end)

    def runs(self, start: int, end: int) -> Iterator[ParentRun]:
        """What it has in this disk range, in order."""
        chunk_size = self.head.chunk_size
        for piece in self._chain.resolve(start, end):
            if isinstance(piece, LostRange):
                yield ParentRun(piece.start, piece.end, None)
                continue
            for low, high, entry in piece.segment.placed(chunk_size):
                trusted = not self._distrusted.count(low, high)
                yield ParentRun(low, high, entry.content_hash if trusted else None)

    def hashes(self, start: int, end: int) -> Iterator[tuple[bytes, int]]:
        """The content hashes in this disk range, each with how many chunks have it.

        Raises ImageError where the parent is lost or not trusted.
        """
        for run in self.runs(start, end):
            if run.content_hash is None:
                raise ImageError("a part of the parent image is lost")
            yield run.content_hash, -(-(run.end - run.start) // self.head.chunk_size)

    def bases(self, start: int, zero_hash: bytes) -> Iterator[tuple[Base, bytes | memoryview]]:
        """What the chunk at disk byte `start` can be a delta against, the best first.

        Not what is zeros, damaged, not trusted, or a delta upon too many others. The memory is this
        thread's, and valid until the next one is asked for.
        """
        for item in reversed(range(len(self._bases))):
            try:
                chunk = self._chain.find_chunk(start, self._bases[item])
                if chunk.depth >= MAX_DELTA_DEPTH or chunk.content_hash == zero_hash:
                    continue
                content = self._chain.read_chunk(chunk)
            except (ImageError, ReadFailedError):
                continue
            yield Base(item, chunk.size, start, chunk.content_hash), content

    def read_chunk(self, start: int, expected: bytes) -> bytes | memoryview:
        """The chunk at disk byte `start`; ImageError or ReadFailedError where it is damaged.

        The memory is this thread's, and valid until its next call.
        """
        return self._chain.read_chunk(self._chain.find_chunk(start, expected=expected))

    def read_base(self, base: Base) -> bytes | memoryview:
        """As `read_chunk`, for what a delta has been made against."""
        image = self._bases[base.parent]
        return self._chain.read_chunk(
            self._chain.find_chunk(base.offset, image, expected=base.content_hash)
        )

    def require_kept(self) -> None:
        """ImageError if an image that the new one's head names was given up or has gone by now.

        To be asked when that head can be seen: whatever is given up later is kept for its sake
        (see `store.prune`). Each is opened anew, for what another machine has written to it.
        """
        for place, reference in zip(self._bases, self.references, strict=True):
            try:
                with ImageReader(self._chain.images[place].file.path) as now:
                    kept = now.uuid == reference.uuid and not now.expired
            except (ImageError, ReadFailedError):
                kept = False
            if not kept:
                raise ImageError(f"{reference.describe()} was given up or moved meanwhile")

    def problem_now(self, files: tuple[Path, ...]) -> str:
        """Why the image in `files`, just written, would not find its parent; empty if it does.

        For a pipe, which has no files, so that no prune could know of it: why the parent itself is
        not what it was.
        """
        path = files[0] if files else self._chain.image.file.path
        try:
            with Chain(path) as chain:
                chain.require_complete()
                now = _reference(chain.images[1 if files else 0])
                if replace(now, file="") != replace(self.reference, file=""):
                    return f"{self.reference.describe()} is not the image that it was"
                if not files:
                    self.require_kept()
        except (ImageError, ReadFailedError) as error:
            return str(error)
        return ""


class ParentCursor:
    """Goes through the parent as the capture goes through the disk."""

    def __init__(self, parent: ParentImage, start: int) -> None:
        """Begin at disk byte `start`."""
        self._runs = parent.runs(start, parent.head.disk_size)
        self._run = ParentRun(start, start, None)

    def covering(self, start: int, end: int) -> Iterator[ParentRun]:
        """What the parent has in [start, end), not before the last range that was asked for."""
        while start < end:
            while self._run.end <= start:
                self._run = next(self._runs)
            stop = min(end, self._run.end)
            yield ParentRun(start, stop, self._run.content_hash)
            start = stop


def _reach(number: int) -> int:
    """How many images back the deltas of the image with this number, from the full one, reach."""
    reach = 1
    while number % (reach * DELTA_STRIDE) == 0:
        reach *= DELTA_STRIDE
    return reach


def _reference(image: ImageReader) -> ParentReference:
    """What stays the same of a complete image."""
    if image.footer is None:
        raise ImageError(f"{image.file.path} has no end")
    created = image.head.facts.get("created")
    try:
        date = datetime.datetime.fromisoformat(str(created)).isoformat()
    except ValueError:
        date = ""
    return ParentReference(
        image.uuid,
        image.footer.content_digest,
        date,
        image.file.path.name,
        image.head.disk_size,
        image.head.chunk_size,
    )
