"""The kernel's calls on block devices and files that Python has no name for.

Each constant names the header that defines it. All functions take an open descriptor, measure in
bytes and raise OSError.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import NamedTuple

# linux/fs.h
_BLKROGET = 0x125E
_BLKRRPART = 0x125F
_BLKFLSBUF = 0x1261
_BLKSSZGET = 0x1268
_BLKGETSIZE64 = 0x80081272
_BLKDISCARD = 0x1277
_BLKPBSZGET = 0x127B
_BLKZEROOUT = 0x127F

# linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_FALLOC_FL_ZERO_RANGE = 0x10

# linux/loop.h: the first three fields of struct loop_info64, which is 232 bytes long
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64 = struct.Struct("=QQQ208x")

_INT = struct.Struct("=i")
_U64 = struct.Struct("=Q")
_RANGE = struct.Struct("=QQ")

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class LoopInfo(NamedTuple):
    """What a loop device is made of, as the kernel's struct loop_info64 calls it."""

    lo_device: int
    lo_inode: int
    lo_rdevice: int


def size(fd: int) -> int:
    """The size of a block device."""
    return int(_U64.unpack(fcntl.ioctl(fd, _BLKGETSIZE64, bytes(_U64.size)))[0])


def logical_sector_size(fd: int) -> int:
    """The unit in which a block device is addressed."""
    return int(_INT.unpack(fcntl.ioctl(fd, _BLKSSZGET, bytes(_INT.size)))[0])


def physical_sector_size(fd: int) -> int:
    """The unit in which a block device writes without reading first."""
    return int(_INT.unpack(fcntl.ioctl(fd, _BLKPBSZGET, bytes(_INT.size)))[0])


def is_read_only(fd: int) -> bool:
    """Whether a block device is write-protected (opening it for writing may still succeed)."""
    return bool(_INT.unpack(fcntl.ioctl(fd, _BLKROGET, bytes(_INT.size)))[0])


def zero_out(fd: int, offset: int, length: int) -> None:
    """Make a range of whole sectors of a block device read as zeros."""
    fcntl.ioctl(fd, _BLKZEROOUT, _RANGE.pack(offset, length))


def discard(fd: int, offset: int, length: int) -> None:
    """Tell a block device that a range of whole sectors is unused: it may then hold anything."""
    fcntl.ioctl(fd, _BLKDISCARD, _RANGE.pack(offset, length))


def flush_buffers(fd: int) -> None:
    """Write back and forget the page cache of a block device (CAP_SYS_ADMIN)."""
    fcntl.ioctl(fd, _BLKFLSBUF, 0)


def reread_partitions(fd: int) -> None:
    """Make the kernel read the partition table of a whole disk anew."""
    fcntl.ioctl(fd, _BLKRRPART, 0)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give back a range of a file, which then reads as zeros; its size stays."""
    _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range of a file read as zeros, with its space allocated; its size stays."""
    _fallocate(fd, _FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE, offset, length)


def sync_file_system(fd: int) -> None:
    """Write back all of the file system that a file or folder is on."""
    if _LIBC.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def loop_info(fd: int) -> LoopInfo:
    """What a loop device is attached to; OSError ENXIO where it is to nothing."""
    answer = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size))
    return LoopInfo(*_LOOP_INFO64.unpack(answer))


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _LIBC.fallocate64(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
