"""What reading and writing share: an open disk, its geometry, and errors that say where.

A device may be shared by threads: nothing here depends on a file position.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from imager.disk import abi
from imager.disk.identity import FILE_SECTOR_SIZE, Identity, identify
from imager.errors import ReadFailedError, UsageError

_SECTOR_SIZES = (512, 1024, 2048, 4096)
_VANISHED = (errno.ENODEV, errno.ENXIO)


class DeviceReadError(ReadFailedError):
    """Part of a read failed; what lies before `offset` in the request has been read."""

    def __init__(self, message: str, offset: int, size: int, gone: bool) -> None:
        """The range in bytes that is missing, and whether the whole device has vanished."""
        super().__init__(message)
        self.offset = offset
        self.size = size
        self.gone = gone
        """The device has vanished: to try the rest sector by sector is pointless."""


class Device:
    """An open block device or disk-image file; a `Volume` for whoever reads metadata from it."""

    def __init__(self, path: Path, fd: int, sector_size: int | None) -> None:
        """Take over `fd`; UsageError where its sector size is not `sector_size`, or is unknown.

        A plain file cannot tell its sector size: there it is as given, else 512.
        """
        self.path = path
        self._fd = fd
        self._is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.sector_size = self.physical_sector_size = sector_size or FILE_SECTOR_SIZE
        if self._is_block:
            self.sector_size = abi.logical_sector_size(fd)
            self.physical_sector_size = abi.physical_sector_size(fd)
        if self.sector_size != (sector_size or self.sector_size):
            raise UsageError(f"{path} has sectors of {self.sector_size} bytes, not {sector_size}")
        if self.sector_size not in _SECTOR_SIZES:
            raise UsageError(f"{path}: sectors of {self.sector_size} bytes are not supported")
        self.size = os.lseek(fd, 0, os.SEEK_END)

    @cached_property
    def identity(self) -> Identity:
        """Which device this is."""
        return identify(self.path)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset` bytes; DeviceReadError (a ReadFailedError) otherwise."""
        self._check_read(offset, size)
        data = bytearray(size)
        self.readinto(offset, memoryview(data))
        return bytes(data)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill `view` (of bytes, contiguous) from `offset`; DeviceReadError if it cannot be filled.

        The error tells the range that is missing; what lies before it is in `view`.
        """
        self._fill(self._read_some, offset, view)

    def close(self) -> None:
        """Give the descriptor back; harmless when done twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_some(self, view: memoryview, offset: int) -> int:
        return os.preadv(self._fd, [view], offset)

    def _fill(
        self, read_some: Callable[[memoryview, int], int], offset: int, view: memoryview
    ) -> None:
        """Call `read_some`, which may fill only a part, until `view` is full."""
        size = view.nbytes
        self._check_read(offset, size)
        done = 0
        while done < size:
            try:
                count = read_some(view[done:], offset + done)
            except OSError as error:
                raise self._read_error(offset + done, size - done, error) from error
            if count == 0:
                raise self._read_error(offset + done, size - done)
            done += count

    def _check_read(self, offset: int, size: int) -> None:
        if not self._holds(offset, size):
            message = f"{self.path}: bytes {offset} to {offset + size} lie outside its {self.size}"
            raise DeviceReadError(message, offset, size, gone=False)

    def _holds(self, offset: int, size: int) -> bool:
        return 0 <= offset <= offset + size <= self.size

    def _read_error(self, offset: int, size: int, error: OSError | None = None) -> DeviceReadError:
        gone = self._is_gone(error)
        reason = "the device is gone" if gone else "it ends there" if error is None else why(error)
        where = f"cannot read {size} bytes at byte {offset} (LBA {offset // self.sector_size})"
        return DeviceReadError(f"{self.path}: {where}: {reason}", offset, size, gone)

    def _is_gone(self, error: OSError | None) -> bool:
        """Whether a block device was unplugged: its sectors then fail as if they were bad."""
        if error is not None and error.errno in _VANISHED:
            return True
        if not self._is_block:
            return False
        number = os.fstat(self._fd).st_rdev
        try:
            present = abi.size(self._fd) > 0
        except OSError:
            return True
        entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        return not (present and entry.exists())


def open_device(path: Path, flags: int) -> int:
    """A descriptor of a block device or plain file, closed in programs that we start.

    Raises UsageError where `path` is neither, OSError where it cannot be opened.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            raise UsageError(f"{path} is neither a block device nor a plain file")
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such device or file") from error


def open_direct(fd: int) -> int:
    """The same file once more, for reading past the page cache; -1 where that is impossible."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def why(error: OSError) -> str:
    """The reason of a failed call in the kernel's words, with what to do where that is known."""
    reason = (error.strerror or str(error)).lower()
    denied = isinstance(error, PermissionError) and os.geteuid() != 0
    return f"{reason}; run as root" if denied else reason
