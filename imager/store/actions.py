"""The steps by which a prune changes a store, each safe to be the last before a crash.

    rename to .expired  ->  guard, sync  ->  (grace)  ->  punch holes, or delete

The new name says at once that the image was given up, and is undone by renaming it back. The guard
makes plain `zstd` refuse it and records since when it is given up, before anything is removed.
"""

from __future__ import annotations

import datetime
import errno
import os
from pathlib import Path

from imager.disk import abi
from imager.image.format import OPENING_SIZE
from imager.image.opening import expired_opening, expired_since
from imager.image.sink import PART_NAME, sync_directory
from imager.store.catalog import ImageFiles, State
from imager.store.names import EXPIRED_SUFFIX

_CANNOT_PUNCH = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


def expire(image: ImageFiles) -> ImageFiles:
    """Give a complete image its expired name; one rename, also where it is in parts."""
    last = image.files[-1]
    if PART_NAME.fullmatch(last.name):
        expired = last.with_suffix(EXPIRED_SUFFIX)
    else:
        expired = last.with_name(last.name + EXPIRED_SUFFIX)
    last.rename(expired)
    sync_directory(expired.parent)
    return ImageFiles(image.path, State.EXPIRED, (*image.files[:-1], expired))


def take_back(image: ImageFiles, opening: bytes) -> ImageFiles:
    """Undo `guard` and `expire`: the image gets its opening back, and then its name."""
    _overwrite_opening(image.files[0], opening)
    last = image.files[-1]
    part = PART_NAME.fullmatch(last.name)
    restored = last.with_suffix(".last" if part is not None else "")
    last.rename(restored)
    sync_directory(restored.parent)
    return ImageFiles(image.path, State.COMPLETE, (*image.files[:-1], restored))


def guard(image: ImageFiles, now: datetime.datetime) -> None:
    """Make plain `zstd` refuse an expired image, and record since when it is given up."""
    _overwrite_opening(image.files[0], expired_opening(now))


def _overwrite_opening(file: Path, opening: bytes) -> None:
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, opening, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def guarded_since(image: ImageFiles) -> datetime.datetime | None:
    """When an image was guarded; None if it was not."""
    with image.files[0].open("rb") as file:
        return expired_since(file.read(OPENING_SIZE))


def punch(file: Path, start: int, end: int) -> bool:
    """Give back the whole blocks in a range of a file; whether the file system can do that."""
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        block = os.fstat(fd).st_blksize
        first, last = -(-start // block) * block, end // block * block
        if first < last:
            abi.punch_hole(fd, first, last - first)
        return True
    except OSError as error:
        if error.errno not in _CANNOT_PUNCH:
            raise
        return False
    finally:
        os.close(fd)


def delete(image: ImageFiles) -> None:
    """Delete an image that was given up or never finished, its head last."""
    for file in reversed(image.files):
        file.unlink(missing_ok=True)
        sync_directory(file.parent)
