"""The disk that is read: opened read-only, and never written to by any path."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

from imager.disk.device import Device, open_device, open_direct, why
from imager.errors import ReadFailedError

_DIRECT_BUFFER = 1 << 20
"""Bytes that one read past the cache asks for at most, by each thread."""


class SourceDevice(Device):
    """A disk, partition or disk-image file to read from; a `Volume`."""

    def __init__(self, path: Path, sector_size: int | None = None) -> None:
        """Open `path`; a plain file has sectors of `sector_size` bytes, 512 unless told.

        Raises UsageError where `path` is neither a block device nor a plain file or has sectors of
        another size, and ReadFailedError where it cannot be opened.
        """
        # Not O_EXCL: a mounted disk can be read; whether it should be is for `safety` to say.
        try:
            fd = open_device(path, os.O_RDONLY)
        except OSError as error:
            raise ReadFailedError(f"{path} cannot be opened: {why(error)}") from error
        try:
            super().__init__(path, fd, sector_size)
            if self._is_block:
                # A disk's page cache does not see what was written through its partitions' caches.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            os.close(fd)
            raise ReadFailedError(f"{path} does not tell its size: {why(error)}") from error
        except BaseException:
            os.close(fd)
            raise
        self._direct_fd = open_direct(fd)
        self._past_cache = False
        self.streams = self._is_block and self._direct_fd >= 0
        """Whether `stream_into` waits for the device itself."""
        self._local = threading.local()

    def read_past_cache(self) -> None:
        """From now on read with O_DIRECT only; ReadFailedError where that is impossible.

        What is mounted is written through its own cache: the disk's cache knows nothing of it, and
        would go on giving what it once read.
        """
        if self._direct_fd < 0:
            raise ReadFailedError(f"{self.path} cannot be read past the page cache (O_DIRECT)")
        self._past_cache = True

    def stream_into(self, offset: int, view: memoryview) -> None:
        """As `readinto`, for content that is read once and then not again.

        Of a block device past the page cache, which takes as much of the processor as hashing does
        (measured, docs/decisions.md) and would lose what the machine needs tomorrow.
        """
        self._fill(self._read_some_past if self.streams else self._read_some, offset, view)

    def reread_sector(self, offset: int, view: memoryview) -> None:
        """As `readinto` for one sector, but past the page cache where that is possible.

        The cache reads whole pages, and gives nothing of a page with one bad sector.
        """
        self._fill(self._read_some_directly, offset, view)

    def close(self) -> None:
        """Give the descriptors back; harmless when done twice."""
        direct, self._direct_fd = self._direct_fd, -1
        if direct >= 0:
            os.close(direct)
        super().close()

    def _read_some(self, view: memoryview, offset: int) -> int:
        return (self._read_some_past if self._past_cache else super()._read_some)(view, offset)

    def _read_some_past(self, view: memoryview, offset: int) -> int:
        """Through a buffer that is aligned as O_DIRECT wants it."""
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(mmap.mmap(-1, _DIRECT_BUFFER))
        skipped = offset % self.sector_size
        size = -(-(skipped + view.nbytes) // self.sector_size) * self.sector_size
        count = os.preadv(self._direct_fd, [buffer[:size]], offset - skipped)
        useful = min(max(count - skipped, 0), view.nbytes)
        view[:useful] = buffer[skipped : skipped + useful]
        return useful

    def _read_some_directly(self, view: memoryview, offset: int) -> int:
        if self._direct_fd < 0:
            return self._read_some(view, offset)
        buffer = memoryview(mmap.mmap(-1, view.nbytes))  # aligned to a page
        try:
            count = os.preadv(self._direct_fd, [buffer], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return self._read_some(view, offset)  # a file system that wants larger blocks
        view[:count] = buffer[:count]
        return count

    def next_data(self, offset: int) -> int | None:
        """The first byte at or after `offset` that is not in a hole; None if a hole ends the file.

        Only sparse files know of holes: elsewhere it is `offset` itself.
        """
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            return None if error.errno == errno.ENXIO else offset
