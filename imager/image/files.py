"""An image's bytes for reading: one file, or parts read as if joined."""

from __future__ import annotations

import bisect
import os
from pathlib import Path
from types import TracebackType

from imager.errors import ImageError, ReadFailedError
from imager.image.sink import MAX_PARTS, PART_NAME, part_path, partial_path


class ImageFile:
    """Random access to the bytes of an image, whether split or not; safe to use from threads."""

    def __init__(self, path: Path) -> None:
        """Open the image called `path`, or the split image that `path` is the base name or a part of.

        Raises ImageError where there is none.
        """
        self.path, paths, self.ends_named_complete = _find_parts(path)
        self.paths = tuple(paths)
        self._fds: list[int] = []
        self.starts: list[int] = []
        """Where each part begins in the joined image, bytes."""
        size = 0
        try:
            for part in paths:
                fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
                self._fds.append(fd)
                self.starts.append(size)
                size += os.lseek(fd, 0, os.SEEK_END)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            self.close()
            raise ImageError(f"{path}: {error.strerror}") from None
        self.size = size

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all parts."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset` bytes.

        Raises ImageError where the image ends before, ReadFailedError where the medium fails.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ImageError(f"{self.path} is cut short")
        part = bisect.bisect_right(self.starts, offset) - 1
        pieces = []
        while size > 0:
            try:
                piece = os.pread(self._fds[part], size, offset - self.starts[part])
            except OSError as error:
                raise ReadFailedError(
                    f"{self.paths[part]}: {error.strerror} at byte {offset - self.starts[part]}"
                ) from None
            if not piece:
                if part + 1 >= len(self.starts) or offset != self.starts[part + 1]:
                    raise ImageError(f"{self.path} is cut short")
                part += 1
                continue
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _find_parts(path: Path) -> tuple[Path, list[Path], bool]:
    """The image's own name, its files in order, and whether their names say that it is complete."""
    match = PART_NAME.fullmatch(path.name)
    base = path.with_name(match["image"]) if match else path
    parts: list[Path] = []
    for number in range(1, MAX_PARTS + 1):
        last = part_path(base, number, True)
        if last.is_file():
            return base, [*parts, last], True
        part = part_path(base, number, False)
        found = next((name for name in (part, partial_path(part)) if name.is_file()), None)
        if found is None:
            break
        parts.append(found)
    if parts:
        return base, parts, False
    if path.is_file():
        return path, [path], not path.name.endswith(".partial")
    if path.exists():
        raise ImageError(f"{path} is not a file")
    if partial_path(path).is_file():
        raise ImageError(
            f"{path} does not exist, only the unfinished {partial_path(path).name}: "
            "finish it with imager capture --resume"
        )
    raise ImageError(f"{path} does not exist")
