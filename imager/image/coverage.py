"""Accounts for every byte of an image: no gap, no overlap, and the seek table says the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from imager.errors import ImageError, ReadFailedError
from imager.image.files import PART_RECORD_SIZE, Part
from imager.image.format import (
    FOOTER_RECORD_SIZE,
    GUARDED,
    INCOMPATIBLE_FREE,
    MAX_FREE_RECORD,
    OPENING_SIZE,
    PART_HEADER,
    SEEK_ENTRY,
    SEEK_FOOTER,
    SEEKABLE_MAGIC,
    SEPARATOR_SIZE,
    SKIPPABLE,
    SKIPPABLE_SEEK_TABLE,
    Footer,
    PartHeader,
    Tag,
)
from imager.image.frames import guard_frame
from imager.image.index import Segment
from imager.image.opening import is_guarded
from imager.image.reader import ImageReader
from imager.image.records import OVERHEAD

_PIECE = (1 << 20) // SEEK_ENTRY.size * SEEK_ENTRY.size


class Coverage:
    """Follows an image from its first byte to its last, segment by segment.

    What does not fit is added to the image's problems, the first of each kind only: after it,
    everything behind would not fit either.
    """

    def __init__(self, image: ImageReader) -> None:
        """For an image without its end there is nothing to compare with."""
        self._image = image
        self._footer = image.footer
        self._following = self._footer is not None
        self._position = 0
        self._gap_allowed = False
        self._parts = iter(image.file.parts[1:])
        self._next_part = next(self._parts, None)
        self._items = iter(image.written_items()) if self._following else iter(())
        self._seek_entries = self._seek_table(self._footer) if self._footer else None

    def begin(self) -> None:
        """Opening and head."""
        if self._footer is None:
            return
        guarded = bool(self._image.head.incompatible & GUARDED)
        try:
            found = is_guarded(self._image.file.read(0, OPENING_SIZE))
            if found != guarded and not self._image.expired:
                self._image.problems.add("the opening says something else than the head")
        except (ImageError, ReadFailedError) as error:
            self._image.problems.add(f"opening: {error}")
        guard = len(guard_frame()) if guarded else 0
        if guard:
            self._expect(0, guard, 0)
        self._expect(guard, OPENING_SIZE - guard, 0)
        self._expect(self._footer.head_offset, self._footer.head_size, 0)

    def segment(self, segment: Segment) -> None:
        """The frames of the next segment in the file, and its record."""
        for start, end, entry in segment.placed(self._image.head.chunk_size):
            if entry.stored_size:  # the parent's chunks have no frame
                self._expect(entry.offset, entry.stored_size, end - start)
        for item in self._items:
            if (item.start, item.end) == (segment.start, segment.end):
                if item.offset:
                    self._expect(item.offset, item.size, 0)
                else:
                    self.lose()
                return

    def lose(self) -> None:
        """The next segment is lost: what lies at its place stays unexplained."""
        self._gap_allowed = True

    def finish(self) -> None:
        """Separator, copies, manifest, both footers, index and seek table."""
        footer = self._footer
        if footer is None:
            return
        self._pass_separator()
        for item in self._image.written_items():
            if item.copy_offset:
                self._expect(item.copy_offset, item.size, 0)
            else:
                self.lose()
        self._expect(footer.manifest_offset, footer.manifest_size, 0)
        self._expect(footer.index_offset - FOOTER_RECORD_SIZE, FOOTER_RECORD_SIZE, 0)
        self._expect(footer.index_offset, footer.index_size, 0)
        self._expect(footer.seek_table_offset - FOOTER_RECORD_SIZE, FOOTER_RECORD_SIZE, 0)
        if self._position != footer.seek_table_offset or (
            self._position + footer.seek_table_size != footer.image_size
        ):
            self._stop("the seek table is not where the footer says")
        try:
            if self._seek_entries and next(self._seek_entries, None) is not None:
                self._stop("the seek table lists frames that are not there")
        except (ImageError, ReadFailedError) as error:
            self._stop(str(error))

    def _expect(self, offset: int, size: int, decoded: int) -> None:
        """The next frame must begin at `offset`, and the seek table must say so."""
        if not self._following:
            return
        self._pass_part()
        if self._gap_allowed and offset > self._position:
            self._pass_gap(offset)
        self._gap_allowed = False
        if offset > self._position and self._image.head.incompatible & INCOMPATIBLE_FREE:
            self._pass_free(offset)
        if offset != self._position:
            self._stop(f"frames overlap or leave a gap at byte {self._position}")
        self._compare(size, decoded)
        self._position += size

    def _compare(self, size: int, decoded: int) -> None:
        """The seek table's next entry must be this."""
        if self._seek_entries is None:
            return
        try:
            if next(self._seek_entries, None) != (size, decoded):
                raise ImageError(f"the seek table and the index differ at byte {self._position}")
        except (ImageError, ReadFailedError) as error:
            self._image.problems.add(str(error))
            self._lose_seek_table()

    def _pass_free(self, offset: int) -> None:
        """Free space up to `offset`: records of zeros, which nothing else names."""
        while self._following and self._position < offset:
            try:
                size = self._free_record()
                if self._position + size > offset:
                    raise ImageError("it reaches too far")
            except (ImageError, ReadFailedError) as error:
                self._image.problems.add(f"free space at byte {self._position}: {error}")
                self._pass_gap(offset)
                return
            self._compare(size, 0)
            self._position += size

    def _free_record(self) -> int:
        """The size of the free space here; ImageError where there is none, or it is damaged."""
        record = self._image.read_record(self._position, MAX_FREE_RECORD, Tag.FREE)
        if any(record.payload):
            raise ImageError("it holds something")
        return len(record.payload) + OVERHEAD

    def _lose_seek_table(self) -> None:
        self._seek_entries = None

    def _pass_gap(self, offset: int) -> None:
        """Go on at `offset`; only the seek table knows which frames are before it."""
        position, self._position = self._position, offset
        try:
            while self._seek_entries and position < offset:
                position += next(self._seek_entries)[0]
        except (ImageError, ReadFailedError, StopIteration):
            self._lose_seek_table()
        if position != offset:
            self._lose_seek_table()
        while self._next_part is not None and self._next_part.start < offset:
            self._check_part(self._next_part)
            self._next_part = next(self._parts, None)
        self._pass_part()

    def _pass_part(self) -> None:
        """A part of a split image begins with a record of its own."""
        part = self._next_part
        if part is None or part.start != self._position:
            return
        self._next_part = next(self._parts, None)
        self._check_part(part)
        self._compare(PART_RECORD_SIZE, 0)
        self._position += PART_RECORD_SIZE

    def _check_part(self, part: Part) -> None:
        try:
            record = self._image.read_record(part.start, PART_HEADER.size, Tag.PART)
            if record.payload != PART_HEADER.pack(*PartHeader(part.number, 0, part.start)):
                raise ImageError("it belongs to another place")
        except (ImageError, ReadFailedError) as error:
            self._image.problems.add(f"part {part.number}: {error}")

    def _pass_separator(self) -> None:
        """Zeros between the segments and their copies, in a record whose place nobody names."""
        if not self._following or self._gap_allowed:
            return
        self._pass_part()
        with contextlib.suppress(ImageError, ReadFailedError):  # what is not free is the separator
            while self._image.head.incompatible & INCOMPATIBLE_FREE:
                size = self._free_record()
                self._compare(size, 0)
                self._position += size
        try:
            record = self._image.read_record(self._position, SEPARATOR_SIZE, Tag.SEPARATOR)
            if record.payload != bytes(SEPARATOR_SIZE):
                raise ImageError("it does not hold zeros")
        except (ImageError, ReadFailedError) as error:
            self._image.problems.add(f"separator: {error}")
        self._expect(self._position, SEPARATOR_SIZE + OVERHEAD, 0)

    def _stop(self, message: str) -> None:
        if self._following:
            self._image.problems.add(message)
        self._following = False

    def _seek_table(self, footer: Footer) -> Iterator[tuple[int, int]]:
        """The seek table's entries, (stored, decoded) bytes each.

        Read piece by piece, since they may be a hundred million. Raises ImageError or
        ReadFailedError at the latest behind the last one where the table is damaged.
        """
        read = self._image.file.read
        overhead = SKIPPABLE.size + SEEK_FOOTER.size
        frames, rest = divmod(footer.seek_table_size - overhead, SEEK_ENTRY.size)
        if frames < 0 or rest:
            raise ImageError("the footer gives the seek table a wrong size")
        offset = footer.seek_table_offset
        start = read(offset, SKIPPABLE.size)
        end = read(offset + footer.seek_table_size - SEEK_FOOTER.size, SEEK_FOOTER.size)
        if SKIPPABLE.unpack(start) != (
            SKIPPABLE_SEEK_TABLE,
            footer.seek_table_size - SKIPPABLE.size,
        ) or SEEK_FOOTER.unpack(end) != (frames, 0, SEEKABLE_MAGIC):
            raise ImageError("the seek table makes no sense")
        hasher = self._image.algorithm.new()
        hasher.update(start)
        offset += SKIPPABLE.size
        last = offset + frames * SEEK_ENTRY.size
        while offset < last:
            piece = read(offset, min(_PIECE, last - offset))
            hasher.update(piece)
            yield from SEEK_ENTRY.iter_unpack(piece)
            offset += len(piece)
        hasher.update(end)
        if hasher.digest() != footer.seek_table_hash:
            raise ImageError("the seek table is damaged")
