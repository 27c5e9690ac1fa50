"""The kernel's calls that hold a file system still, and those that say where a file lies.

Each constant names the header that defines it. All functions raise OSError.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

# linux/fs.h
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_FS_IOC_FIEMAP = 0xC020660B

# linux/fiemap.h
_FIEMAP = struct.Struct("=QQIIII")
"""fm_start, fm_length, fm_flags, fm_mapped_extents, fm_extent_count, fm_reserved"""
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
"""fe_logical, fe_physical, fe_length, fe_flags"""
_FIEMAP_FLAG_SYNC = 1
_FIEMAP_EXTENT_LAST = 1
_FIEMAP_NOT_PLAIN = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200
"""unknown, delayed allocation, encoded, encrypted, not aligned, inline: no disk address as such"""
_BATCH = 256

# sys/mman.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4

# malloc.h
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE = 1 << 23
"""Bytes; above what is allocated for each chunk."""
_ARENAS = 2
"""Heaps that all threads share."""

_LIBC = ctypes.CDLL(None, use_errno=True)


class FileExtent(NamedTuple):
    """A run of a file, in bytes: where it is in the file and on the file system's device."""

    logical: int
    physical: int
    length: int


def freeze(fd: int) -> None:
    """Write everything out and hold the file system of `fd` still; every write to it then waits.

    EBUSY: it is frozen already. EOPNOTSUPP: this kind cannot be.
    """
    fcntl.ioctl(fd, _FIFREEZE, 0)


def thaw(fd: int) -> None:
    """Let a frozen file system go on; EINVAL where it was not frozen any more."""
    fcntl.ioctl(fd, _FITHAW, 0)


def syncfs(fd: int) -> None:
    """Write out what the file system of `fd` has in memory."""
    _check(_LIBC.syncfs(fd))


def lock_memory() -> None:
    """Keep what this process has in memory, and what it will touch, from being paged out."""
    _check(_LIBC.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT))


def unlock_memory() -> None:
    """The inverse of `lock_memory`."""
    _check(_LIBC.munlockall())


def keep_little_memory() -> None:
    """Have the C library give back what is free; for the whole process, before its threads begin.

    It keeps blocks of up to 32 MiB for later once it has seen one, and a heap for each thread
    (mallopt(3)): the maps of a fragmented disk and a dozen threads would take twice what they need.
    """
    _LIBC.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    _LIBC.mallopt(_M_ARENA_MAX, _ARENAS)


def file_extents(fd: int) -> Iterator[FileExtent]:
    """Where a file lies on the device of its file system; ValueError where it has no place there."""
    position = 0
    while True:
        room = bytearray(_FIEMAP.size + _BATCH * _FIEMAP_EXTENT.size)
        _FIEMAP.pack_into(
            room, 0, position, (1 << 64) - 1 - position, _FIEMAP_FLAG_SYNC, 0, _BATCH, 0
        )
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, room)
        count = _FIEMAP.unpack_from(room)[3]
        if count == 0:
            return
        for number in range(count):
            logical, physical, length, flags = _FIEMAP_EXTENT.unpack_from(
                room, _FIEMAP.size + number * _FIEMAP_EXTENT.size
            )
            if flags & _FIEMAP_NOT_PLAIN:
                raise ValueError("a file's extents have no plain place on the disk")
            yield FileExtent(logical, physical, length)
            if flags & _FIEMAP_EXTENT_LAST:
                return
            position = logical + length


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
