"""Making the kernel use the partition table that is on a disk now."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from imager.disk import abi, programs
from imager.disk.sysfs import BlockTree

_ATTEMPTS = 10
_PAUSE = 0.1
"""Seconds; udev opens a new partition for a moment to look at it, and that blocks a reread."""


def reread(fd: int, path: Path) -> bool:
    """Whether the kernel has read the table of the whole disk `fd`, whose node is `path`, anew.

    A partition has no table to reread: nothing is done. Raises MissingToolError without partx.
    """
    tree = BlockTree()
    name = tree.name_of_number(os.fstat(fd).st_rdev)
    if name is None:
        return False
    if tree.parent(name):
        return True
    for attempt in range(_ATTEMPTS):
        try:
            abi.reread_partitions(fd)
            return True
        except OSError as error:
            if error.errno != errno.EBUSY or attempt + 1 == _ATTEMPTS:
                break
            time.sleep(_PAUSE)
    # A loop device without partition scan says EINVAL; partx tells it of each partition itself,
    # and can change those that are not in use where the kernel would refuse all. It fails where
    # there is no table (any more); then there must be no partitions either.
    if programs.run("partx", "util-linux", "--update", str(path)).returncode == 0:
        return True
    if tree.partitions(name):
        programs.run("partx", "util-linux", "--delete", str(path))
    return not tree.partitions(name)
