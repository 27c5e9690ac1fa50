"""An image's bytes for reading: one file, or parts read as if joined.

Each part but the first says where it begins in the joined image, so that one that is missing or has
changed its length moves no other: its bytes are a hole, which reads as an error.
"""

from __future__ import annotations

import bisect
import os
from pathlib import Path
from typing import NamedTuple

from imager.errors import ImageError, ReadFailedError
from imager.image.format import PART_HEADER, PartHeader, Tag
from imager.image.records import OVERHEAD, decode_record
from imager.image.sink import MAX_PARTS, PART_NAME, partial_path

PART_RECORD_SIZE = PART_HEADER.size + OVERHEAD


class Part(NamedTuple):
    """One file of an image, and where its bytes belong."""

    path: Path
    number: int
    fd: int
    start: int
    """In the joined image, bytes."""
    end: int


class ImageFile:
    """Random access to the bytes of an image, whether split or not; safe to use from threads."""

    def __init__(self, path: Path) -> None:
        """Open the image called `path`, or the split image that `path` is the base name or a part of.

        Raises ImageError where there is none.
        """
        self.path, names = _find_parts(path)
        self.paths = tuple(name.path for name in names)
        self.unfinished_by_name = any(name.path.name.endswith(".partial") for name in names)
        """Whether a capture was interrupted, if the image's end is missing."""
        self.problems: list[str] = []
        """What is wrong with the parts: one is missing, or is not what its name says."""
        self._fds: list[int] = []
        try:
            self._fds += (os.open(name.path, os.O_RDONLY | os.O_CLOEXEC) for name in names)
            self.parts = self._place(names)
        except OSError as error:
            self.close()
            raise ImageError(f"{path}: {error.strerror}") from None
        self.starts = [part.start for part in self.parts]
        """Where each part begins in the joined image, bytes."""
        self.size = self.parts[-1].end

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all parts."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset` bytes.

        Raises ImageError where the image does not have them, ReadFailedError where the medium fails.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ImageError(f"{self.path} is cut short")
        place = bisect.bisect_right(self.starts, offset) - 1
        pieces = []
        while size > 0:
            part = self.parts[place] if place >= 0 else None
            if part is None or offset >= part.end:
                place += 1
                if place == len(self.parts) or offset != self.starts[place]:
                    raise ImageError(f"{self.path}: the part with byte {offset} is missing")
                continue
            try:
                wanted = min(size, part.end - offset)
                piece = os.pread(part.fd, wanted, offset - part.start)
            except OSError as error:
                raise ReadFailedError(
                    f"{part.path}: {error.strerror} at byte {offset - part.start}"
                ) from None
            if not piece:
                raise ImageError(f"{part.path} has become shorter")
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _place(self, names: list[_Name]) -> list[Part]:
        """Put each part where it says that it belongs; one that does not say goes behind the last.

        A part that reaches into the next one is cut there.
        """
        parts: list[Part] = []
        for name, fd in zip(names, self._fds, strict=True):
            size = os.lseek(fd, 0, os.SEEK_END)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            header = _part_header(fd) if name.number > 1 else None
            if header is not None and header.number != name.number:
                self.problems.append(f"{name.path.name} holds part {header.number}")
            if header is not None:
                start, number = header.offset, header.number
            else:
                start = max((part.end for part in parts if part.number < name.number), default=0)
                number = name.number
            parts.append(Part(name.path, number, fd, start, start + size))
        parts.sort(key=lambda part: (part.start, part.number))
        placed: list[Part] = []
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            end = part.end if following is None else min(part.end, following.start)
            if end < part.end:
                self.problems.append(f"{part.path.name} is too long, or not in its place")
            if end > part.start or (following is None and not placed):
                placed.append(part._replace(end=end))
        numbers = [part.number for part in placed]
        missing = sorted(set(range(1, max(numbers) + 1)) - set(numbers))
        self.problems += (f"part {number} is missing" for number in missing)
        return placed


class _Name(NamedTuple):
    """A file found, and what its name says: number 0 for an image that is not split."""

    path: Path
    number: int
    last: bool


def _part_header(fd: int) -> PartHeader | None:
    """What a part says of itself; None where that is damaged."""
    try:
        data = os.pread(fd, PART_RECORD_SIZE, 0)
        payload = decode_record(data, Tag.PART).payload
    except (OSError, ImageError):
        return None
    if len(payload) != PART_HEADER.size:
        return None
    header = PartHeader(*PART_HEADER.unpack(payload))
    sensible = 1 < header.number <= MAX_PARTS and header.offset < 1 << 63
    return header if sensible else None


def _find_parts(path: Path) -> tuple[Path, list[_Name]]:
    """The image's own name, and its files in order of their numbers."""
    match = PART_NAME.fullmatch(path.name)
    if match is None and path.is_file():
        return path, [_Name(path, 0, False)]
    base = path.with_name(match["image"]) if match else path
    found: dict[int, _Name] = {}
    for file in sorted(base.parent.iterdir()) if base.parent.is_dir() else ():
        match = PART_NAME.fullmatch(file.name)
        if match is None or match["image"] != base.name or not file.is_file():
            continue
        name = _Name(file, int(match["number"]), match["last"] is not None)
        # The finished one counts, if a crash or a person left both.
        if name.number not in found or not match["partial"]:
            found[name.number] = name
    names = [found[number] for number in sorted(found) if number > 0]
    last = next((place for place, name in enumerate(names) if name.last), len(names) - 1)
    if names:
        return base, names[: last + 1]
    if path.is_file():
        return path, [_Name(path, 0, False)]
    if path.exists():
        raise ImageError(f"{path} is not a file")
    if partial_path(path).is_file():
        raise ImageError(
            f"{path} does not exist, only the unfinished {partial_path(path).name}: "
            "finish it with imager capture --resume"
        )
    raise ImageError(f"{path} does not exist")
