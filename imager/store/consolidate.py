"""A compact copy of an expired image: for file systems in which no hole can be punched.

The copy has the same identifier, content digest and segments; only the frames that somebody needs
are copied, and an empty skippable frame stands for each of the others. It gets a name of its own, so
that at each moment one of the two is whole: the other one goes when the copy has been read back.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from imager.errors import ImagerError
from imager.extents import Extents
from imager.image.format import OPENING_SIZE, SKIPPABLE_TEXT, Entry
from imager.image.frames import skippable
from imager.image.index import Segment
from imager.image.reader import Completeness, ImageReader
from imager.image.sink import MAX_PART, FileSink
from imager.image.writer import ImageWriter
from imager.store import actions
from imager.store.catalog import ImageFiles, find_images
from imager.store.names import copy_name

_STUB = skippable(SKIPPABLE_TEXT, b"")
_LEAST = 1 << 20
"""Bytes for which no copy is made."""
_SPARE = 1 << 26
"""Bytes of the file system that a copy leaves free."""


def is_worthwhile(size: int, unneeded: int, free: int) -> bool:
    """Whether a copy gives back at least half of what it has to write, and there is room for it.

    `size` and `unneeded` are the image's bytes, and those of them that nobody needs.
    """
    rest = size - unneeded
    return unneeded >= _LEAST and 2 * unneeded >= rest and free >= rest + _SPARE


def consolidate(files: ImageFiles, needed: Extents) -> ImageFiles | None:
    """Replace an expired image by a copy without the frames that hold none of `needed`.

    Returns the copy's files; None, and all is as it was, where the image is damaged. Raises what
    reading and writing raise; then, too, the image is as it was.
    """
    taken = {each.path for each in find_images(files.path.parent)}
    target = files.path.with_name(copy_name(files.path.name))
    while target in taken:
        target = files.path.with_name(copy_name(target.name))
    try:
        with ImageReader(files.opened_as) as image:
            if not _copy(image, target, needed):
                return None
        (copy,) = (each for each in find_images(target.parent) if each.path == target)
        if not _is_true_copy(files, copy, needed):
            _remove(target)
            return None
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(target)
        raise
    copy = actions.expire(copy)
    actions.delete(files)
    return copy


class _ExpiredSink(FileSink):
    """Gives the image the opening of one that was given up before it gets a name."""

    def __init__(self, image: Path, split: int | None, opening: bytes) -> None:
        super().__init__(image, split)
        self._expired_opening = opening

    def finish(self, opening: bytes) -> tuple[Path, ...]:
        """As `FileSink.finish`, with another opening."""
        return super().finish(self._expired_opening)


def _copy(image: ImageReader, target: Path, needed: Extents) -> bool:
    """Write the copy; whether all of the image's structure is there to be copied."""
    if image.footer is None or image.manifest is None:
        return False
    if image.head.revised:
        return False  # of some segments a part counts, which cannot be copied as it is

    def frame_of(start: int, end: int, entry: Entry) -> bytes:
        if needed.count(start, end):
            return image.file.read(entry.offset, entry.stored_size)
        return _STUB

    opening = image.file.read(0, OPENING_SIZE)
    sink = _ExpiredSink(target, MAX_PART if image.head.split else None, opening)
    try:
        writer = ImageWriter(sink, image.head, image.uuid, image.algorithm, Extents(), Extents())
        try:
            writer.begin()
            for segment in image.segments():
                if not isinstance(segment, Segment):
                    return False
                writer.copy_segment(segment, frame_of)
            writer.finish(image.manifest.facts, image.footer.content_digest)
        finally:
            writer.close()
    finally:
        sink.close()
    return True


def _is_true_copy(old: ImageFiles, new: ImageFiles, needed: Extents) -> bool:
    """Read the copy back: whether it has the same structure and each needed frame intact."""
    with ImageReader(old.opened_as) as image, ImageReader(new.opened_as) as copy:
        if copy.completeness is not Completeness.COMPLETE or not copy.expired:
            return False
        for before, after in zip(image.segments(), copy.segments(), strict=True):
            if not isinstance(before, Segment) or not isinstance(after, Segment):
                return False
            if _meaning(before) != _meaning(after):
                return False
            for start, end, entry in after.placed(copy.head.chunk_size):
                if entry.stored_size and needed.count(start, end):
                    (frame,) = copy.read_frames([entry])
                    if isinstance(frame, ImagerError):
                        return False
                    if copy.algorithm.frame_digest(frame) != entry.frame_hash:
                        return False
    return True


def _meaning(segment: Segment) -> tuple[object, ...]:
    """What a segment says, apart from where its frames lie."""
    entries = [entry._replace(offset=0, stored_size=0) for entry in segment.entries]
    return segment.start, segment.end, entries, dict(segment.maps), list(segment.bases)


def _remove(target: Path) -> None:
    for files in find_images(target.parent):
        if files.path == target:
            actions.delete(files)
