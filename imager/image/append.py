"""A file that grows at its end, written past the page cache where the file system can.

A capture writes more than memory holds, once, and never reads it again: going through the page
cache would cost a copy of every byte and push out what other programs keep there. So what is
appended gathers in a buffer, and a thread writes it with O_DIRECT while the next one fills. Where
the file system knows no O_DIRECT (tmpfs, some network and FUSE ones) the same writes go through the
cache, and the disk is asked to take them as they come, so that the last sync is short.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

BUFFER = 1 << 23
"""Bytes that go to the disk at a time; there are two such buffers."""
WRITE_BACK = 1 << 26
"""Bytes through the page cache after which the disk is asked to take them."""
_ALIGNMENT = 4096
"""What O_DIRECT may ask of offsets, lengths and memory (bytes): no disk has larger sectors."""


class AppendFile:
    """One open file; every method raises OSError where the disk fails, also for earlier writes."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`, open for reading and writing, and append at its end."""
        self.fd = fd
        self.size = os.lseek(fd, 0, os.SEEK_END)
        """Bytes, those still in memory included."""
        self._buffers: list[memoryview] = []
        self._start = 0  # where in the file the buffer's first byte belongs
        self._writer: ThreadPoolExecutor | None = None
        self._under_way: Future[None] | None = None
        self._failure: OSError | None = None
        self._write_back = _WriteBack()
        self._direct = False

    def append(self, data: bytes) -> None:
        """Add `data` at the end; it is on its way to the disk, not there."""
        if self._writer is None:
            self._begin()
        view = memoryview(data)
        while view:
            filled = self.size - self._start
            part = view[: BUFFER - filled]
            self._buffers[0][filled : filled + len(part)] = part
            self.size += len(part)
            view = view[len(part) :]
            if self.size - self._start == BUFFER:
                self._hand_over()

    def settle(self) -> None:
        """Write what is still in memory, and let go of the memory."""
        if self._writer is None:
            return
        self._wait()
        # The end is no multiple of a sector.
        self._go_through_cache()
        write_all(self.fd, self._buffers[0][: self.size - self._start], self._start)
        self._write_back.finish()
        self._let_go()

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes, and append there from now on."""
        self.settle()
        os.ftruncate(self.fd, size)
        self.size = size

    def overwrite(self, offset: int, data: bytes) -> None:
        """Exchange bytes that are there already, and sync."""
        self.settle()
        write_all(self.fd, memoryview(data), offset)
        os.fsync(self.fd)

    def patch(self, offset: int, data: bytes | memoryview) -> None:
        """Exchange bytes, or go on behind the end, without sync."""
        self.settle()
        write_all(self.fd, memoryview(data), offset)
        self.size = max(self.size, offset + len(data))
        self._write_back.wrote(self.fd, len(data))

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes that were written before."""
        self.settle()
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = os.preadv(self.fd, [view], offset)
            if count == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            view, offset = view[count:], offset + count
        return bytes(data)

    def sync(self) -> None:
        """Have everything on the disk."""
        self.settle()
        os.fsync(self.fd)

    def close(self) -> None:
        """Write what can be written, and close."""
        with contextlib.suppress(OSError):
            self.settle()
        self._let_go()
        os.close(self.fd)

    def _begin(self) -> None:
        """The buffers, the first of them with the file's last, incomplete sector."""
        self._buffers = [memoryview(mmap.mmap(-1, BUFFER)) for _ in range(2)]
        self._start = self.size - self.size % _ALIGNMENT
        begun = os.pread(self.fd, self.size - self._start, self._start)
        if len(begun) != self.size - self._start:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._buffers[0][: len(begun)] = begun
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="image-writer")
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            self._direct = True

    def _hand_over(self) -> None:
        """Give the full buffer to the thread, take the one that it has written."""
        if self._writer is None:
            raise ValueError("nothing was begun")
        self._wait()
        self._under_way = self._writer.submit(self._write, self._buffers[0], self._start)
        self._start += BUFFER
        self._buffers.reverse()

    def _wait(self) -> None:
        """Until the thread has nothing to do; after a failure nothing is written behind it."""
        if self._failure is not None:
            raise self._failure
        under_way, self._under_way = self._under_way, None
        try:
            if under_way is not None:
                under_way.result()
        except OSError as error:
            self._failure = error
            raise

    def _write(self, buffer: memoryview, offset: int) -> None:
        if self._direct:
            try:
                write_all(self.fd, buffer, offset)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:  # it cannot, though it said that it could
                    raise
            self._go_through_cache()
        write_all(self.fd, buffer, offset)
        self._write_back.wrote(self.fd, len(buffer))

    def _go_through_cache(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            self._direct = False

    def _let_go(self) -> None:
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None
        self._under_way = None
        self._buffers = []
        self._write_back.close()


class _WriteBack:
    """Has written data go from the page cache to the disk while more is made."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._under_way: Future[None] | None = None
        self._waiting = 0

    def wrote(self, fd: int, size: int) -> None:
        """Note `size` bytes written to `fd`; OSError where earlier ones did not reach the disk."""
        self._waiting += size
        if self._waiting >= WRITE_BACK and (self._under_way is None or self._under_way.done()):
            self.finish()
            self._waiting = 0
            self._executor = self._executor or ThreadPoolExecutor(1, "write-back")
            self._under_way = self._executor.submit(os.fdatasync, fd)

    def finish(self) -> None:
        """Wait for what is under way; OSError where it did not reach the disk."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Wait, whatever comes of it."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at byte `offset` of a file; OSError where that fails."""
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
