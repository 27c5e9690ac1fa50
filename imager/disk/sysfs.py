"""The block devices that the kernel shows in sysfs, and how they stand on each other.

A device is named as the kernel names it ("sda1", "dm-0"). Whatever vanishes while it is looked at
is as if it had not been there: nothing here raises OSError.
(linux/Documentation/ABI/stable/sysfs-block)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from imager.disk import abi

_SYSFS_SECTOR = 512
"""`size` and `start` count these, whatever the disk's own sector size is."""


@dataclass(frozen=True)
class Loop:
    """A loop device that is attached to something."""

    name: str
    file: str
    """The path of what it is attached to, as it was seen by whoever attached it."""
    inode: tuple[int, int] | None
    """(device number, inode number) of that file."""
    device: int
    """The device number of that block device; 0 where it is a regular file."""


@dataclass(frozen=True)
class BlockTree:
    """All block devices below one sysfs."""

    root: Path = Path("/sys")

    def name_of_number(self, number: int) -> str | None:
        """The block device with this device number (st_rdev, or st_dev of what is on it)."""
        link = self.root / f"dev/block/{os.major(number)}:{os.minor(number)}"
        try:
            return os.path.basename(os.readlink(link))
        except OSError:
            return None

    def directory(self, name: str) -> Path:
        """Where sysfs describes a disk or partition."""
        return self.root / "class/block" / name

    def attribute(self, name: str, attribute: str) -> str | None:
        """One line of sysfs without surrounding space; None where there is none."""
        try:
            text = (self.directory(name) / attribute).read_text("utf-8", "replace")
        except OSError:
            return None
        return text.strip()

    def number(self, name: str, attribute: str) -> int | None:
        """An attribute that is a number, or None."""
        text = self.attribute(name, attribute) or ""
        return int(text) if text.isascii() and text.isdecimal() else None

    def size(self, name: str) -> int:
        """Bytes; 0 where there is no medium."""
        return (self.number(name, "size") or 0) * _SYSFS_SECTOR

    def start(self, name: str) -> int:
        """Bytes between the start of the disk and that of this partition of it."""
        return (self.number(name, "start") or 0) * _SYSFS_SECTOR

    def node(self, name: str) -> Path:
        """The device's node in /dev."""
        for line in (self.attribute(name, "uevent") or "").splitlines():
            key, _, value = line.partition("=")
            if key == "DEVNAME":
                return Path("/dev") / value
        return Path("/dev") / name.replace("!", "/")

    def disks(self) -> list[str]:
        """All block devices that are not partitions."""
        return self._list(self.root / "block")

    def parent(self, name: str) -> str | None:
        """The disk that a partition is on; None for anything else."""
        directory = self.directory(name)
        if not (directory / "partition").exists():
            return None
        return os.path.basename(os.path.dirname(os.path.realpath(directory)))

    def partitions(self, name: str) -> list[str]:
        """The partitions of a disk, by their number."""
        directory = self.directory(name)
        found = [
            entry for entry in self._list(directory) if (directory / entry / "partition").exists()
        ]
        return sorted(found, key=lambda entry: self.number(entry, "partition") or 0)

    def slaves(self, name: str) -> list[str]:
        """The devices that this one (dm, md, bcache) is made of."""
        return self._list(self.directory(name) / "slaves")

    def holders(self, name: str) -> list[str]:
        """The devices (dm, md, bcache) that this one is a part of."""
        return self._list(self.directory(name) / "holders")

    def btrfs_members(self, name: str) -> list[str]:
        """All devices of the mounted btrfs that this one is a device of."""
        btrfs = self.root / "fs/btrfs"
        for entry in self._list(btrfs):
            members = self._list(btrfs / entry / "devices")
            if name in members:
                return members
        return []

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """The attached loop devices, looked up once."""
        found = (self._loop(name) for name in self.disks() if name.startswith("loop"))
        return tuple(loop for loop in found if loop)

    def _loop(self, name: str) -> Loop | None:
        file = self.attribute(name, "loop/backing_file")
        if not file:
            return None
        # The kernel knows the file where its path is of another namespace, was deleted or replaced,
        # but tells only those who may open the loop device.
        try:
            fd = os.open(self.node(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return self._loop_by_path(name, file)
        try:
            info = abi.loop_info(fd)
        except OSError:
            return self._loop_by_path(name, file)
        finally:
            os.close(fd)
        return Loop(name, file, (info.lo_device, info.lo_inode), info.lo_rdevice)

    @staticmethod
    def _loop_by_path(name: str, file: str) -> Loop:
        try:
            status = os.stat(file)
        except OSError:
            return Loop(name, file, None, 0)
        return Loop(name, file, (status.st_dev, status.st_ino), status.st_rdev)

    @staticmethod
    def _list(directory: Path) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except OSError:
            return []
