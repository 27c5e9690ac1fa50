"""The mounted file systems that lie on a disk, each once, with a descriptor open on it.

Those of all mount namespaces count, and those on LVM, encryption or RAID above the disk, and those
in files on it that are mounted through loop devices. One file system has one superblock, however
often it is mounted: bind mounts and btrfs subvolumes show the same device number in mountinfo.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from imager.disk.mounts import Mount
from imager.disk.system import System
from imager.errors import RefusedError


class Superblock(NamedTuple):
    """A mounted file system that may change."""

    fd: int
    device: int
    """Its device number in mountinfo."""
    place: str
    """Where it is mounted, for a person."""
    own: frozenset[str]
    """The devices that it calls its own, by the kernel's names."""
    devices: frozenset[str]
    """All that it lies on, from its own devices down to the disk."""
    wave: int = 0
    """Those of one wave can be frozen at the same time; the lowest comes first."""

    def is_above(self, other: Superblock) -> bool:
        """Whether it writes through the other one: it lies in a file of it."""
        return bool(self.devices & other.own) and not self.own & other.own


class Superblocks:
    """The writable ones on a disk, those that are to be frozen first before the others.

    What lies in a file of another comes before it: else its last writes could not reach the disk.
    """

    def __init__(self, source: Path) -> None:
        """Open one descriptor on each; RefusedError where one cannot be reached."""
        self._stack = ExitStack()
        self._source = source
        try:
            self.all = _in_waves(list(self._open()))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def changed(self) -> str | None:
        """The place of a file system that was mounted for writing since; None if there is none.

        One that was unmounted meanwhile is at rest, and no matter.
        """
        known = {one.device for one in self.all}
        for device, mounts, _, _ in _on_disk(System(), self._source):
            if device not in known:
                return mounts[0].place
        return None

    def _open(self) -> Iterator[Superblock]:
        for device, mounts, own, devices in _on_disk(System(), self._source):
            fd = _first_reachable(mounts)
            if fd is None:
                raise RefusedError(
                    f"{mounts[0].place} lies on {self._source} and cannot be held still, because "
                    "its mount point is hidden below another: unmount what covers it"
                )
            self._stack.callback(os.close, fd)
            yield Superblock(fd, device, mounts[0].place, own, devices)


def _in_waves(found: list[Superblock]) -> list[Superblock]:
    """Each with its wave, which is later than those of all that are above it."""
    waves = [0] * len(found)
    for _ in found:  # as often as the deepest stack is high
        for position, lower in enumerate(found):
            above = [waves[n] + 1 for n, upper in enumerate(found) if upper.is_above(lower)]
            waves[position] = max(above, default=0)
    placed = [one._replace(wave=wave) for one, wave in zip(found, waves, strict=True)]
    return sorted(placed, key=lambda one: one.wave)


def _on_disk(
    system: System, source: Path
) -> list[tuple[int, list[Mount], frozenset[str], frozenset[str]]]:
    """Device number, mounts, own and all devices of each writable file system on the disk."""
    name = system.name_of_path(source)
    below = system.storage(name) if name else frozenset()
    found: dict[int, tuple[list[Mount], frozenset[str], frozenset[str]]] = {}
    for mount in system.mounts:
        if not mount.writable or mount.fs_type == "overlay":
            continue  # an overlay writes through the file systems that it shows
        if mount.device in found:
            found[mount.device][0].append(mount)
            continue
        own = system.mount_devices(mount)
        devices = system.layers(own, True)
        if system.any_overlap(devices, below):
            found[mount.device] = ([mount], own, devices)
    return [(device, *rest) for device, rest in found.items()]


def _first_reachable(mounts: list[Mount]) -> int | None:
    """A descriptor on the file system through one of its mounts."""
    for mount in mounts:
        root = Path("/") if mount.process is None else Path(f"/proc/{mount.process}/root")
        path = root / mount.mount_point.lstrip("/")
        try:
            if not stat.S_IFMT(path.stat().st_mode) & (stat.S_IFDIR | stat.S_IFREG):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        if _mount_id(fd) == mount.mount_id:
            return fd
        os.close(fd)  # something else was mounted over it
    return None


def _mount_id(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    return -1
