"""Where an image's bytes go: a file, the parts of a split one, or a pipe.

Crash safety: everything is written under names ending in `.partial`, and the first sector is a guard
that plain `zstd` refuses. At the end the data is synced, then the opening is exchanged (one sector),
synced, and only then the names change: the parts in order, the last one last. So a name without
`.partial` is never an unfinished image, and a split image is complete exactly if its last part,
whose name ends in `.last`, is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from pathlib import Path
from typing import Protocol

from imager.errors import RefusedError, UsageError, WriteFailedError
from imager.image.append import AppendFile
from imager.image.format import OPENING_SIZE

MAX_PARTS = 9999
MIN_PART = 1 << 26
"""A part must hold any single frame; the largest we write are far below this (bytes)."""
MAX_PART = (1 << 32) - 1
"""FAT32's largest file (bytes)."""


PART_NAME = re.compile(
    r"(?P<image>.+)\.(?P<number>\d{4})(?P<last>\.last|\.expired)?(?P<partial>\.partial)?"
)
"""What a part may be called, finished or not; an expired image's last part is renamed."""


def part_path(image: Path, number: int, last: bool) -> Path:
    """The name of a part: image.0001, image.0002, ... image.0007.last."""
    return image.with_name(f"{image.name}.{number:04}{'.last' if last else ''}")


def partial_path(path: Path) -> Path:
    """What a file is called until it is complete."""
    return path.with_name(path.name + ".partial")


class Sink(Protocol):
    """Takes an image's bytes in order."""

    @property
    def seekable(self) -> bool:
        """Whether the opening can be exchanged at the end."""

    @property
    def spool_directory(self) -> str | None:
        """Where a temporary file of some MiB may lie; None for the system's choice."""

    def needs_part(self, size: int) -> bool:
        """Whether a new part must begin before a frame of `size` bytes."""

    def begin_part(self) -> None:
        """Begin a new part."""

    def write(self, data: bytes) -> None:
        """Append; WriteFailedError where that is impossible."""

    def settle(self) -> None:
        """Let others see what was written so far."""

    def finish(self, opening: bytes) -> tuple[Path, ...]:
        """Make everything durable with this opening and give it its final name; returns the files."""

    def close(self) -> None:
        """Let go of the output as it is."""


class FileSink:
    """Writes NAME.partial, or its parts, and renames at the end."""

    seekable = True

    def __init__(self, image: Path, split: int | None = None, resume: bool = False) -> None:
        """Create the output, or with `resume` take up what an interrupted capture left.

        Raises RefusedError where the image exists, another process writes it, or remains of an
        interrupted one are in the way; UsageError for a `split` size (bytes) that cannot be, or
        a name that would be taken for a part's.
        """
        if split is not None and not MIN_PART <= split <= MAX_PART:
            raise UsageError(f"a part must have between {MIN_PART} and {MAX_PART} bytes")
        if PART_NAME.fullmatch(image.name) or image.name.endswith(".partial"):
            raise UsageError(
                f"{image}: parts and unfinished images have names like this, choose another"
            )
        self._image = image
        self._split = split
        self._files: list[AppendFile] = []
        _refuse_existing(image)
        try:
            if resume:
                self._reopen()
            else:
                self._create()
        except OSError as error:
            self.close()
            raise _write_error(image, error) from None
        except RefusedError:
            self.close()
            raise

    @property
    def spool_directory(self) -> str | None:
        """The image's own folder: it has room for an image."""
        return str(self._image.absolute().parent)

    def partial_parts(self) -> tuple[Path, ...]:
        """The unfinished files, in order."""
        return tuple(self._partial(number) for number in range(1, len(self._files) + 1))

    def needs_part(self, size: int) -> bool:
        """Whether a frame of `size` bytes would make the part too large."""
        return self._split is not None and self._files[-1].size + size > self._split

    def begin_part(self) -> None:
        """Begin a new part; WriteFailedError where it cannot be created."""
        if len(self._files) >= MAX_PARTS:
            raise WriteFailedError(f"more than {MAX_PARTS} parts: use a larger --split")
        try:
            self._files[-1].settle()
            self._create()
        except OSError as error:
            raise _write_error(self._partial(len(self._files) + 1), error) from None

    def write(self, data: bytes) -> None:
        """Append to the last part."""
        try:
            self._files[-1].append(data)
        except OSError as error:
            raise _write_error(self._partial(len(self._files)), error) from None

    def settle(self) -> None:
        """Write what is still in memory; WriteFailedError where that is impossible."""
        try:
            self._files[-1].settle()
        except OSError as error:
            raise _write_error(self._image, error) from None

    def guard(self, opening: bytes) -> None:
        """Exchange the opening at once, durably."""
        self._exchange(opening)

    def patch(self, offset: int, data: bytes | memoryview) -> None:
        """Exchange bytes of an image that is not split, or go on behind its end."""
        try:
            self._files[0].patch(offset, data)
        except OSError as error:
            raise _write_error(self._image, error) from None

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of an image that is not split; WriteFailedError where they cannot be had again."""
        try:
            return self._files[0].read(offset, size)
        except OSError as error:
            raise _write_error(self._image, error) from None

    def discard(self) -> None:
        """Delete what was written, for nobody can go on with it."""
        for number in range(1, len(self._files) + 1):
            with contextlib.suppress(OSError):
                self._partial(number).unlink()
        self.close()

    def truncate(self, size: int) -> None:
        """Cut the output, all parts together, to `size` bytes; parts wholly behind it vanish."""
        try:
            for number in range(len(self._files), 0, -1):
                start = sum(file.size for file in self._files[: number - 1])
                if number == 1 or start < size:
                    self._files[-1].truncate(size - start)
                    return
                self._files.pop().close()
                self._partial(number).unlink()
        except OSError as error:
            raise _write_error(self._image, error) from None

    def finish(self, opening: bytes) -> tuple[Path, ...]:
        """Sync, exchange the opening, sync, rename; the last part's new name makes it complete."""
        try:
            for file in self._files:
                file.sync()
            self._exchange(opening)
            _refuse_existing(self._image)
            final = []
            for number in range(1, len(self._files) + 1):
                path = self._final(number, number == len(self._files))
                if path.exists():
                    raise RefusedError(f"{path} has appeared meanwhile: it is not overwritten")
                # The last name must not become durable before the others.
                if number > 1 and number == len(self._files):
                    sync_directory(self._image.parent)
                self._partial(number).rename(path)
                final.append(path)
            sync_directory(self._image.parent)
        except OSError as error:
            raise _write_error(self._image, error) from None
        self.close()
        return tuple(final)

    def close(self) -> None:
        """Close the files; what is unfinished stays as `.partial`."""
        for file in self._files:
            file.close()
        self._files = []

    def _final(self, number: int, last: bool) -> Path:
        return self._image if self._split is None else part_path(self._image, number, last)

    def _partial(self, number: int) -> Path:
        return partial_path(self._final(number, False))

    def _create(self) -> None:
        path = self._partial(len(self._files) + 1)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                busy = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    _lock(busy, path)
                finally:
                    os.close(busy)
            raise RefusedError(
                f"{path} is left from an interrupted capture: add --resume to go on with it, "
                "or delete it"
            ) from None
        self._files.append(AppendFile(fd))
        _lock(fd, path)

    def _reopen(self) -> None:
        """Open the unfinished parts; ones that a crash caught renamed get their old names back."""
        number = 1
        while True:
            path = self._partial(number)
            if (
                self._split is not None
                and not path.exists()
                and self._final(number, False).exists()
            ):
                self._final(number, False).rename(path)
            if not path.exists() or (self._split is None and number > 1):
                break
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._files.append(AppendFile(fd))
            _lock(fd, path)
            number += 1
        if not self._files:
            self._create()

    def _exchange(self, opening: bytes) -> None:
        if len(opening) != OPENING_SIZE:
            raise ValueError("an opening has 512 bytes")
        try:
            self._files[0].overwrite(0, opening)
        except OSError as error:
            raise _write_error(self._image, error) from None


class PipeSink:
    """Writes to a file descriptor that cannot seek."""

    seekable = False
    spool_directory = None

    def __init__(self, fd: int) -> None:
        """Write to `fd`, which stays open."""
        self._fd = fd

    def needs_part(self, size: int) -> bool:
        """Never: a pipe is not split."""
        return False

    def begin_part(self) -> None:
        """Not for pipes."""
        raise UsageError("a pipe cannot be split")

    def write(self, data: bytes) -> None:
        """Write all of it; WriteFailedError where the reader has gone."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise _write_error(Path("standard output"), error) from None

    def settle(self) -> None:
        """Nothing waits in memory."""

    def finish(self, opening: bytes) -> tuple[Path, ...]:
        """Nothing is left to do: the opening was right from the start."""
        return ()

    def close(self) -> None:
        """The descriptor is the caller's."""


def _refuse_existing(image: Path) -> None:
    for path in (image, part_path(image, 1, False), part_path(image, 1, True)):
        if path.exists() and not (path != image and partial_path(path).exists()):
            if path == part_path(image, 1, False) and not _is_complete(image):
                continue
            raise RefusedError(f"{path} exists: an image is never overwritten")


def _is_complete(image: Path) -> bool:
    return any(image.parent.glob(f"{_escape(image.name)}.[0-9][0-9][0-9][0-9].last"))


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _lock(fd: int, path: Path) -> None:
    """Only saves wasted work: on some network file systems locks do nothing."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RefusedError(f"{path} is being written by another capture") from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENOLCK):
            raise


def sync_directory(directory: Path) -> None:
    """Make the names in a folder durable; OSError where that fails."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(fd)


def _write_error(path: Path, error: OSError) -> WriteFailedError:
    if error.errno == errno.ENOSPC:
        return WriteFailedError(f"{path}: the disk is full; what was written stays as .partial")
    return WriteFailedError(f"{path}: {error.strerror or error}")
