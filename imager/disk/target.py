"""The disk that is written: held exclusively, written exactly, and read back past the cache."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from imager.disk import abi
from imager.disk.device import Device, open_device, open_direct, why
from imager.disk.partitions import reread
from imager.disk.safety import summary, usage
from imager.disk.sysfs import BlockTree
from imager.errors import RefusedError, UsageError, WriteFailedError

_PIECE = 256 << 20
"""Bytes for one call of the kernel that zeroes or discards, so that it can be interrupted."""
_ZEROS = bytes(1 << 20)
_DIRECT_ALIGNMENT = 4096
"""Multiple of every logical sector size, as open(2) asks of O_DIRECT."""
_DIRECT_BUFFER = 1 << 20
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY)


class DeviceWriteError(WriteFailedError):
    """Writing failed; with write-back caching it is not always known where."""

    def __init__(self, message: str, offset: int | None, gone: bool) -> None:
        """The byte where it failed, or None; and whether the whole device has vanished."""
        super().__init__(message)
        self.offset = offset
        self.gone = gone


class TargetDevice(Device):
    """A disk, partition or disk-image file to write to; reading it is a `Volume`'s too."""

    def __init__(self, path: Path, size: int | None = None, sector_size: int | None = None) -> None:
        """Open a block device or plain file; with `size`, make a sparse file where there is none.

        Raises UsageError where `path` is neither or has sectors of another size, RefusedError where
        it is in use or read-only, WriteFailedError where it cannot be opened.
        """
        self._created = size is not None and not os.path.lexists(path)
        fd = _create(path, size) if size is not None and self._created else _open(path)
        try:
            super().__init__(path, fd, sector_size)
            if self._is_block and abi.is_read_only(fd):
                raise RefusedError(f"{path} is read-only: remove its write protection first")
            self._discard_unit, self._discard_shift = self._discard_geometry()
        except OSError as error:
            os.close(fd)
            raise WriteFailedError(f"{path} does not tell its size: {why(error)}") from error
        except BaseException:
            os.close(fd)
            raise
        self._zeroing: tuple[Callable[[int, int, int], None], ...] = (
            (abi.zero_out,) if self._is_block else (abi.punch_hole, abi.zero_range)
        )
        self._local = threading.local()
        self._direct_fd = open_direct(self._fd)
        self.reads_directly = self._direct_fd >= 0
        """Whether `read_direct` bypasses the page cache; where the file system knows no O_DIRECT,
        the cache is dropped first instead, which proves less."""

    def write(self, offset: int, view: memoryview | bytes) -> None:
        """Write all of `view` at `offset`; DeviceWriteError (a WriteFailedError) otherwise.

        Success means that the kernel has the data: only `sync` proves that the disk took it.
        """
        self._check_write(offset, len(view))
        view = memoryview(view)
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._fd, view[done:], offset + done)
            except OSError as error:
                raise self._write_error("cannot be written", error, offset + done) from error

    def zero(self, offset: int, size: int) -> None:
        """Make a range read as zeros, by the quickest way that guarantees it."""
        self._check_write(offset, size)
        end = offset + size
        first = min(-(-offset // self.sector_size) * self.sector_size, end)
        last = max(end // self.sector_size * self.sector_size, first)
        self._write_zeros(offset, first)
        for start in range(first, last, _PIECE):
            self._zero_piece(start, min(start + _PIECE, last))
        self._write_zeros(last, end)

    def discard(self, offset: int, size: int) -> bool:
        """Tell the device that a range is unused; afterwards it may hold anything.

        Returns whether the device took it; it is a hint, of which failures lose nothing.
        """
        self._check_write(offset, size)
        unit, shift = self._discard_unit, self._discard_shift
        if not unit:
            return False
        first = -(-(offset - shift) // unit) * unit + shift
        last = (offset + size - shift) // unit * unit + shift
        call = abi.discard if self._is_block else abi.punch_hole
        step = max(_PIECE // unit, 1) * unit
        try:
            for start in range(first, last, step):
                call(self._fd, start, min(step, last - start))
        except OSError:
            return False
        return first < last

    def sync(self) -> None:
        """Return once all that was written is on the disk; DeviceWriteError if it cannot be."""
        try:
            os.fsync(self._fd)
            if self._created:
                _sync_directory(self.path.parent)
        except OSError as error:
            raise self._write_error("did not take all that was written", error) from error
        if self._is_block:
            try:
                abi.flush_buffers(self._fd)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM):
                    raise self._write_error("cannot be flushed", error) from error

    def drop_cache(self) -> None:
        """Forget what the page cache holds of it, as far as that is on the disk."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_direct(self, offset: int, view: memoryview) -> None:
        """Fill `view` with what the disk holds, not the cache (see `reads_directly`).

        DeviceReadError as for `readinto`. Threads may call it, each has a buffer of its own.
        """
        if not self.reads_directly:
            os.posix_fadvise(self._fd, offset, view.nbytes, os.POSIX_FADV_DONTNEED)
        self._fill(self._read_some_directly, offset, view)

    def reread_partition_table(self) -> bool:
        """Make the kernel use the partition table now on the disk, once it is synced.

        Returns False where it still uses the old one: a partition is in use.
        """
        return not self._is_block or reread(self._fd, self.path)

    def close(self) -> None:
        """Give the disk back; WriteFailedError where the file system reports a lost write now."""
        direct, self._direct_fd = self._direct_fd, -1
        if direct >= 0:
            os.close(direct)
        try:
            super().close()
        except OSError as error:
            message = f"{self.path} did not take all that was written: {why(error)}"
            raise DeviceWriteError(message, None, gone=False) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except WriteFailedError:
            if error is None:
                raise

    def _zero_piece(self, start: int, end: int) -> None:
        for call in self._zeroing:
            try:
                return call(self._fd, start, end - start)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise self._write_error("cannot be zeroed", error, start) from error
                self._zeroing = tuple(other for other in self._zeroing if other is not call)
        self._write_zeros(start, end)

    def _write_zeros(self, start: int, end: int) -> None:
        for offset in range(start, end, len(_ZEROS)):
            self.write(offset, _ZEROS[: end - offset])

    def _read_some_directly(self, view: memoryview, offset: int) -> int:
        if not self.reads_directly:
            return self._read_some(view, offset)
        buffer = self._direct_buffer()
        start = offset // _DIRECT_ALIGNMENT * _DIRECT_ALIGNMENT
        end = -(-(offset + view.nbytes) // _DIRECT_ALIGNMENT) * _DIRECT_ALIGNMENT
        try:
            got = os.preadv(self._direct_fd, [buffer[: end - start]], start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.reads_directly = False
            return self._read_some(view, offset)
        count = max(min(got - (offset - start), view.nbytes), 0)
        view[:count] = buffer[offset - start : offset - start + count]
        return count

    def _direct_buffer(self) -> memoryview:
        """This thread's page-aligned buffer."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(mmap.mmap(-1, _DIRECT_BUFFER))
        buffer: memoryview = self._local.buffer
        return buffer

    def _discard_geometry(self) -> tuple[int, int]:
        """The unit in which the device discards and where the first one starts; 0 for never."""
        status = os.fstat(self._fd)
        if not self._is_block:
            return status.st_blksize, 0
        tree = BlockTree()
        name = tree.name_of_number(status.st_rdev) or ""
        base = tree.parent(name) or name
        if not tree.number(base, "queue/discard_max_bytes"):
            return 0, 0
        unit = max(tree.number(base, "queue/discard_granularity") or 0, self.sector_size)
        return unit, (tree.number(name, "discard_alignment") or 0) % unit

    def _check_write(self, offset: int, size: int) -> None:
        if not self._holds(offset, size):
            message = f"{self.path}: bytes {offset} to {offset + size} lie outside its {self.size}"
            raise DeviceWriteError(message, offset, gone=False)

    def _write_error(
        self, what: str, error: OSError, offset: int | None = None
    ) -> DeviceWriteError:
        gone = self._is_gone(error)
        reason = "the device is gone" if gone else why(error)
        where = "" if offset is None else f" at byte {offset} (LBA {offset // self.sector_size})"
        return DeviceWriteError(f"{self.path} {what}{where}: {reason}", offset, gone)


def _open(path: Path) -> int:
    try:
        # For a block device O_EXCL means that nothing else (mount, swap, LVM, RAID) may hold it;
        # for a plain file Linux ignores it.
        return open_device(path, os.O_RDWR | os.O_EXCL)
    except OSError as error:
        if error.errno == errno.EBUSY:
            uses = summary(usage(path)) or "another program holds it"
            raise RefusedError(f"{path} is in use: {uses}; unmount or stop that first") from error
        if error.errno == errno.EROFS:
            raise RefusedError(f"{path} is read-only") from error
        raise WriteFailedError(f"{path} cannot be opened for writing: {why(error)}") from error


def _create(path: Path, size: int) -> int:
    if Path("/dev") in path.absolute().parents and Path("/dev/shm") not in path.absolute().parents:
        raise UsageError(f"{path}: there is no such device")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise WriteFailedError(f"{path} cannot be made: {why(error)}") from error
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        path.unlink()
        raise WriteFailedError(f"{path} cannot be made that large: {why(error)}") from error
    return fd


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
