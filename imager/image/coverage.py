"""Accounts for every byte of an image: no gap, no overlap, and the seek table says the same."""

from __future__ import annotations

from collections.abc import Iterator

from imager.errors import ImageError, ReadFailedError
from imager.image.format import (
    FOOTER_RECORD_SIZE,
    OPENING_SIZE,
    PART_HEADER,
    SEEK_ENTRY,
    SEEK_FOOTER,
    SEEKABLE_MAGIC,
    SKIPPABLE,
    SKIPPABLE_SEEK_TABLE,
    PartHeader,
    Tag,
)
from imager.image.frames import guard_frame
from imager.image.index import Segment
from imager.image.opening import is_guarded
from imager.image.reader import ImageReader, Problem
from imager.image.records import OVERHEAD


class Coverage:
    """Follows an image from its first byte to its last, segment by segment.

    What does not fit is added to the image's problems, the first of each kind only: after it,
    everything behind would not fit either.
    """

    def __init__(self, image: ImageReader) -> None:
        """For an image without its end there is nothing to compare with."""
        self._image = image
        self._following = image.footer is not None
        self._position = 0
        self._gap_allowed = False
        self._parts = image.file.starts[1:]
        self._items = iter(image.items())
        self._seek_entries = self._seek_table()

    def begin(self) -> None:
        """Opening and head."""
        if self._image.footer is None:
            return
        opening = self._image.file.read(0, OPENING_SIZE)
        guard = len(guard_frame()) if is_guarded(opening) else 0
        if guard:
            self._expect(0, guard, 0)
        self._expect(guard, OPENING_SIZE - guard, 0)
        self._expect(self._image.footer.head_offset, self._image.footer.head_size, 0)

    def segment(self, segment: Segment) -> None:
        """The frames of the next segment, and its record."""
        if not self._following:
            return
        for start, end, entry in segment.placed(self._image.head.chunk_size):
            self._expect(entry.offset, entry.stored_size, end - start)
        for item in self._items:
            if item.start == segment.start:
                if item.offset:
                    self._expect(item.offset, item.size, 0)
                else:
                    self.lose()
                return

    def lose(self) -> None:
        """The next segment is lost: what lies at its place stays unexplained."""
        self._gap_allowed = True

    def finish(self) -> None:
        """Copies, manifest, both footers, index and seek table."""
        footer = self._image.footer
        if footer is None or not self._following:
            return
        for item in self._image.items():
            if item.copy_offset:
                self._expect(item.copy_offset, item.size, 0)
            else:
                self.lose()
        self._expect(footer.manifest_offset, footer.manifest_size, 0)
        self._expect(footer.index_offset - FOOTER_RECORD_SIZE, FOOTER_RECORD_SIZE, 0)
        self._expect(footer.index_offset, footer.index_size, 0)
        self._expect(footer.seek_table_offset - FOOTER_RECORD_SIZE, FOOTER_RECORD_SIZE, 0)
        if self._following and (
            self._position != footer.seek_table_offset
            or self._position + footer.seek_table_size != self._image.file.size
        ):
            self._stop("the seek table is not where the footer says")
        if self._following and next(self._seek_entries, None) is not None:
            self._stop("the seek table lists frames that are not there")

    def _expect(self, offset: int, size: int, decoded: int) -> None:
        """The next frame must begin at `offset`, and the seek table must say so."""
        if not self._following:
            return
        self._pass_part()
        if self._gap_allowed and offset > self._position:
            while self._position < offset and (entry := next(self._seek_entries, None)):
                self._position += entry[0]
            self._parts = [start for start in self._parts if start >= offset]
            self._pass_part()
        self._gap_allowed = False
        if offset != self._position:
            self._stop(f"frames overlap or leave a gap at byte {self._position}")
        elif next(self._seek_entries, None) != (size, decoded):
            self._stop(f"the seek table and the index differ at byte {self._position}")
        self._position += size

    def _pass_part(self) -> None:
        """A part of a split image begins with a record of its own."""
        if not self._parts or self._parts[0] != self._position:
            return
        self._parts.pop(0)
        size = PART_HEADER.size + OVERHEAD
        try:
            record = self._image.read_record(self._position, PART_HEADER.size, Tag.PART)
            number = len(self._image.file.starts) - len(self._parts)
            if PartHeader(*PART_HEADER.unpack(record.payload)).number != number:
                raise ImageError("the parts are not in order")
        except (ImageError, ReadFailedError) as error:
            self._image.problems.append(Problem(f"part: {error}"))
        next(self._seek_entries, None)
        self._position += size

    def _stop(self, message: str) -> None:
        self._image.problems.append(Problem(message))
        self._following = False

    def _seek_table(self) -> Iterator[tuple[int, int]]:
        """The seek table's entries, (stored, decoded) bytes each, if it is intact."""
        footer = self._image.footer
        if footer is None:
            return iter(())
        overhead = SKIPPABLE.size + SEEK_FOOTER.size
        try:
            if not overhead <= footer.seek_table_size <= self._image.file.size:
                raise ImageError("the footer gives the seek table a wrong size")
            table = self._image.file.read(footer.seek_table_offset, footer.seek_table_size)
            if self._image.algorithm.digest(table) != footer.seek_table_hash:
                raise ImageError("the seek table is damaged")
            magic, size = SKIPPABLE.unpack_from(table)
            frames, descriptor, end = SEEK_FOOTER.unpack_from(table, len(table) - SEEK_FOOTER.size)
            if (magic, size, descriptor, end) != (
                SKIPPABLE_SEEK_TABLE,
                len(table) - SKIPPABLE.size,
                0,
                SEEKABLE_MAGIC,
            ) or frames * SEEK_ENTRY.size != len(table) - overhead:
                raise ImageError("the seek table makes no sense")
        except (ImageError, ReadFailedError) as error:
            self._stop(str(error))
            return iter(())
        return _entries(memoryview(table)[SKIPPABLE.size : -SEEK_FOOTER.size])


def _entries(table: memoryview) -> Iterator[tuple[int, int]]:
    yield from SEEK_ENTRY.iter_unpack(table)
