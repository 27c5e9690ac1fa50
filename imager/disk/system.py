"""What lies on what at this moment: from a file or mount down to the disks that carry it.

A *claim* is a device that a mount, a swap area or an array occupies. It *overlaps* another device
where one of them is the other, or the disk that the other is a partition of:

    / (ext4)  ->  dm-0  ->  sda2          claims of / : {dm-0, sda2}
                                          overlap     : dm-0, sda2, sda       not: sda1
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from imager.disk.mounts import Mount, all_mounts, init_mounts, mount_of, swap_areas
from imager.disk.sysfs import BlockTree, Loop

_SYSTEM_MOUNTS = frozenset(("/", "/usr", "/boot", "/boot/efi", "/efi", "/cdrom"))
_LIVE_MOUNTS = ("/run/live/", "/lib/live/mount/", "/run/archiso/", "/run/initramfs/live")
_OVERLAY_DIRECTORIES = ("upperdir=", "lowerdir=", "lowerdir+=")


@dataclass(frozen=True)
class System:
    """One look at the mounts and swap areas, read once, and the block devices below them."""

    tree: BlockTree = field(default_factory=BlockTree)
    proc: Path = Path("/proc")

    @cached_property
    def mounts(self) -> tuple[Mount, ...]:
        """All mounts of all namespaces that can be seen, our own first."""
        return all_mounts(self.proc)

    @cached_property
    def claims(self) -> tuple[tuple[Mount, frozenset[str]], ...]:
        """Each mount that is on block devices, with its claims.

        Not those of the file behind a loop device: that lies on a mount which is listed too.
        """
        found = ((mount, self.layers(self.mount_devices(mount), False)) for mount in self.mounts)
        return tuple((mount, names) for mount, names in found if names)

    @cached_property
    def swaps(self) -> tuple[Path, ...]:
        """The partitions and files that are swapped on."""
        return swap_areas(self.proc)

    @cached_property
    def _system_claims(self) -> dict[str, str]:
        """What the running system needs: device to mount point."""
        found: dict[str, str] = {}
        own = [mount for mount in self.mounts if mount.process is None]
        for mount in (*init_mounts(self.proc), *own):
            point = mount.mount_point
            if point in _SYSTEM_MOUNTS or f"{point}/".startswith(_LIVE_MOUNTS):
                for name in self.layers(self.mount_devices(mount), True):
                    found.setdefault(name, point)
        return found

    def system_use(self, name: str) -> str | None:
        """The mount point, "/" or the like, for which the running system needs this device."""
        uses = [point for claim, point in self._system_claims.items() if self.overlap(claim, name)]
        return min(uses, key=len, default=None)

    def name_of_path(self, path: Path) -> str | None:
        """The kernel's name of the block device that `path` is a node of; None for all else."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return self.tree.name_of_number(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None

    def mount_devices(self, mount: Mount) -> frozenset[str]:
        """The block devices that a mounted file system names as its own."""
        name = self.tree.name_of_number(mount.device)
        if name is None and mount.source.startswith("/"):
            name = self.name_of_path(Path(mount.source))
        if name is None and mount.source.startswith("/dev/"):
            known = os.path.basename(mount.source)
            name = known if self.tree.directory(known).exists() else None
        if name is not None:
            return frozenset((name, *self.tree.btrfs_members(name)))
        if mount.fs_type == "overlay":
            return self._overlay_devices(mount)
        return frozenset()

    def path_devices(self, path: Path) -> frozenset[str]:
        """The block devices of the file system that `path` is on; none where it is a network's."""
        try:
            name = self.tree.name_of_number(os.stat(path).st_dev)
        except OSError:
            return frozenset()
        if name is not None:
            return frozenset((name,))
        mount = mount_of(path, self.mounts)
        return self.mount_devices(mount) if mount else frozenset()

    def layers(self, names: Iterable[str], through_files: bool) -> frozenset[str]:
        """`names` and all devices that they are built of: LVM, RAID, encryption, loop devices.

        With `through_files` also those that carry the file behind a loop device.
        """
        found: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name in found:
                continue
            found.add(name)
            base = self.tree.parent(name) or name
            todo += self.tree.slaves(base)
            for loop in self.tree.loops:
                if loop.name == base:
                    todo += self._backing_devices(loop, through_files)
        return frozenset(found)

    def storage(self, name: str) -> frozenset[str]:
        """`name`, and all devices that are written with it where it is a loop device:

        the block device that it is attached to, or other loop devices of the same file.
        """
        found: set[str] = set()
        todo = [name]
        while todo:
            name = todo.pop()
            found.add(name)
            base = self.tree.parent(name) or name
            for loop in self.tree.loops:
                if loop.name == base:
                    todo += self._backing_devices(loop, False) - found
                    others = {other.name for other in self.loops_of(loop.inode)}
                    todo += others - found - {base}
        return frozenset(found)

    def loops_of(self, inode: tuple[int, int] | None) -> list[Loop]:
        """The loop devices that are attached to the plain file (device, inode)."""
        loops = self.tree.loops
        return [loop for loop in loops if inode and loop.inode == inode and not loop.device]

    def family(self, name: str) -> list[str]:
        """A device with its partitions, or a partition with its disk."""
        parent = self.tree.parent(name)
        return [name, parent] if parent else [name, *self.tree.partitions(name)]

    def overlap(self, one: str, other: str) -> bool:
        """Whether two devices are the same or one is a partition of the other."""
        return one == other or self.tree.parent(one) == other or self.tree.parent(other) == one

    def any_overlap(self, some: Iterable[str], others: Iterable[str]) -> bool:
        """Whether any of `some` overlaps any of `others`."""
        others = tuple(others)
        return any(self.overlap(one, other) for one in some for other in others)

    def _backing_devices(self, loop: Loop, through_files: bool) -> frozenset[str]:
        if loop.device:
            name = self.tree.name_of_number(loop.device)
            return frozenset((name,)) if name else frozenset()
        if not through_files:
            return frozenset()
        if loop.inode:
            name = self.tree.name_of_number(loop.inode[0])
            if name:
                return frozenset((name,))
        return self.path_devices(Path(loop.file))

    def _overlay_devices(self, overlay: Mount) -> frozenset[str]:
        """The devices of the directories that an overlay shows, which may be overlays again."""
        found: set[str] = set()
        seen: set[int] = set()
        todo = [overlay]
        while todo:
            mount = todo.pop()
            if mount.fs_type != "overlay":
                found |= self.mount_devices(mount)
            elif mount.device not in seen:
                seen.add(mount.device)
                below = (mount_of(path, self.mounts) for path in _overlay_directories(mount))
                todo += filter(None, below)
        return frozenset(found)


def _overlay_directories(mount: Mount) -> list[Path]:
    """The directories that an overlay is made of, as far as they have kept their paths."""
    return [
        Path(directory)
        for option in mount.super_options
        for key in _OVERLAY_DIRECTORIES
        if option.startswith(key)
        for directory in option.removeprefix(key).split(":")
    ]
