"""What is attached that may hold images, and how it is looked into without changing it.

A volume is mounted through a read-only loop device, and without replaying its journal: an ext4 that
is damaged notes that in its superblock even where it is mounted read-only, unless its device
forbids it, and a dirty journal belongs to the patient.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imager.disk import programs
from imager.disk.identity import Identity, identity_of
from imager.disk.inventory import Contents, Disk, list_disks
from imager.disk.lsblk import lsblk
from imager.disk.system import System
from imager.errors import ReadFailedError, RefusedError, WriteFailedError
from imager.rescue.mount_places import mount_place
from imager.wording import format_size, printable

LIVE_MEDIUM = Path("/run/live/medium")
"""Where the running rescue system has mounted what it was booted from."""
LIVE_LABEL = "IMAGER_LIVE"
"""The label of what it is booted from, also where that was copied to memory and let go."""
EFI_LABEL = "IMAGER_EFI"
"""The label of what UEFI starts it from: no place for anything else."""
DATA_LABEL = "IMAGER_DATA"
"""The stick's own partition for images, logs and the record of jobs."""
STATE = Path("/run/imager")

_EXT = (("ext4", "noload"),)
_READ_ONLY: dict[str, tuple[tuple[str, str], ...]] = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "xfs": (("xfs", "norecovery"),),
    "btrfs": (("btrfs", "rescue=nologreplay"),),
    "ntfs": (("ntfs3", ""), ("ntfs-3g", "")),
    "vfat": (("vfat", "utf8"),),
    "exfat": (("exfat", ""),),
    "iso9660": (("iso9660", ""),),
    "udf": (("udf", ""),),
}
"""By blkid's name, the drivers to try and the options with which each only reads."""
_OWN = ("exfat", "vfat", "ext4")
"""What the stick's own partition may be."""
_WRITABLE: dict[str, tuple[tuple[str, str], ...]] = {
    "exfat": (("exfat", ""),),
    "vfat": (("vfat", "utf8"),),
    "ext2": (("ext4", ""),),
    "ext3": (("ext4", ""),),
    "ext4": (("ext4", ""),),
    "xfs": (("xfs", ""),),
    "btrfs": (("btrfs", ""),),
    "ntfs": (("ntfs3", ""), ("ntfs-3g", "")),
}
"""What can be written to, with its drivers and their options."""
_HARMLESS = "nosuid,nodev,noexec"
_PATIENCE = 5.0
"""Seconds until a loop device that is let go must be gone: udev may look at it for a moment."""


@dataclass(frozen=True)
class MediaVolume:
    """A partition, disk or CD with a file system that may hold images; or a folder (a share)."""

    path: str
    """The device, or the folder."""
    kind: str
    """blkid's name of the file system; "folder" for what somebody else has mounted."""
    label: str | None
    uuid: str | None
    size: int
    """Bytes; 0 for a folder."""
    disk: Identity | None
    """The disk that it is on; None for a folder."""

    @property
    def title(self) -> str:
        """A name for a person: "sdb1 (BACKUP)"."""
        name = os.path.basename(self.path) if self.disk else self.path
        return printable(f"{name} ({self.label})" if self.label else name)

    def describe(self) -> str:
        """One line for a person: "sdb1 (BACKUP): ntfs, 2.0 TB, on sdb: Elements, 2.0 TB, USB"."""
        if self.disk is None:
            return self.title
        return f"{self.title}: {self.kind}, {format_size(self.size)}, on {self.disk.describe()}"


def folder_volume(folder: Path, label: str | None = None) -> MediaVolume:
    """A folder, such as a mounted share, to be looked into like a disk."""
    return MediaVolume(str(folder), "folder", label, None, 0, None)


def media_volumes(disks: tuple[Disk, ...] | None = None) -> tuple[MediaVolume, ...]:
    """Every file system on the attached disks that may hold images, the stick's own included.

    Of `disks`; else of all disks and CDs, but not of loop devices. What lies in LVM, RAID or
    encryption is not activated for it, and so not found. Raises MissingToolError without lsblk.
    """
    found: list[MediaVolume] = []
    if disks is None:
        disks = tuple(disk for disk in list_disks() if disk.identity.kind != "loop")
        found += _discs(System())
    for disk in disks:
        parts = [
            _volume(part.path, part.size, part.contents, disk.identity) for part in disk.partitions
        ]
        whole = _volume(disk.identity.path, disk.identity.size, disk.contents, disk.identity)
        if whole and whole.kind == "iso9660":
            # A hybrid ISO's partition begins where the disk does: the same files once more.
            parts = [part for part in parts if part and part.uuid != whole.uuid]
        found += [volume for volume in (whole, *parts) if volume]
    return tuple(found)


def medium_disk(medium: Path = LIVE_MEDIUM) -> str | None:
    """The kernel's name of the disk that this system was booted from; None where it is gone."""
    if not medium.is_mount():
        return None
    system = System()
    names = system.layers(system.path_devices(medium), False)
    return min((system.tree.parent(name) or name for name in names), default=None)


def data_volume(
    volumes: tuple[MediaVolume, ...], medium: Path = LIVE_MEDIUM, label: str = DATA_LABEL
) -> MediaVolume | None:
    """The partition for data of the very stick that was booted; None for a CD or a plain ISO."""
    name = medium_disk(medium)
    found = [
        volume
        for volume in volumes
        if volume.label == label and volume.kind in _OWN
        if volume.disk is not None and volume.disk.name == name
    ]
    return found[0] if len(found) == 1 else None


@contextlib.contextmanager
def mounted_read_only(volume: MediaVolume) -> Iterator[Path]:
    """The volume's files, for reading; nothing on it changes, and it is unmounted at the end.

    Where it is mounted already, through a read-only view of that. Raises ReadFailedError where it
    cannot be mounted, RefusedError without root's rights.
    """
    if volume.kind == "folder":
        yield Path(volume.path)
        return
    _require_root()
    known = _mount_point(volume)
    with mount_place(STATE, "mount") as place:
        if known is not None:
            failure = _mount("none", f"bind,ro,{_HARMLESS}", known, place)
            if failure:
                raise ReadFailedError(f"{volume.title} cannot be looked into: {failure}")
            try:
                yield place
            finally:
                _unmount(place)
            return
        with _read_only_loop(volume) as loop:
            failure = _mount_by_any(_READ_ONLY[volume.kind], "ro", loop, place)
            if failure:
                raise ReadFailedError(
                    f"{volume.title} ({volume.kind}) cannot be mounted: {failure}"
                )
            try:
                yield place
            finally:
                _unmount(place)


def is_writable(volume: MediaVolume) -> bool:
    """Whether `mounted_for_writing` knows the volume's file system."""
    return volume.kind in _WRITABLE


@contextlib.contextmanager
def mounted_for_writing(volume: MediaVolume) -> Iterator[Path]:
    """The volume's files, to be written; synced and unmounted at the end.

    Where it is mounted already it is used there. Raises WriteFailedError where it cannot be
    mounted or is read-only, RefusedError without root's rights.
    """
    _require_root()
    if volume.kind not in _WRITABLE:
        raise WriteFailedError(f"{volume.title} is {volume.kind}, which is not written to")
    known = _mount_point(volume)
    if known is not None:
        if not os.access(known, os.W_OK):
            raise WriteFailedError(f"{volume.title} is mounted read-only")
        yield known
        return
    with mount_place(STATE, "mount") as place:
        failure = _mount_by_any(_WRITABLE[volume.kind], "rw", Path(volume.path), place)
        if failure:
            raise WriteFailedError(f"{volume.title} cannot be mounted: {failure}")
        try:
            # mount falls back to read-only where the device is write-protected.
            if not os.access(place, os.W_OK):
                raise WriteFailedError(f"{volume.title} is read-only")
            yield place
        finally:
            _unmount(place)


def _volume(path: str, size: int, contents: Contents, disk: Identity) -> MediaVolume | None:
    if contents.kind not in _READ_ONLY:
        return None
    return MediaVolume(path, contents.kind, contents.label, contents.uuid, size, disk)


def _discs(system: System) -> Iterator[MediaVolume]:
    """The CDs and DVDs that are in."""
    tree = system.tree
    facts = lsblk()
    for name in tree.disks():
        if name.startswith("sr") and tree.size(name) > 0:
            known = facts.get(name, {})
            contents = Contents(
                known.get("fstype"), known.get("label"), known.get("uuid"), (), None
            )
            identity = identity_of(name, tree.node(name), facts, system)
            volume = _volume(identity.path, identity.size, contents, identity)
            if volume is not None:
                yield volume


def _mount_point(volume: MediaVolume) -> Path | None:
    """Where the whole file system is mounted already, if it is."""
    system = System()
    name = system.name_of_path(Path(volume.path))
    for mount in system.mounts:
        whole = mount.process is None and mount.root == "/"
        if whole and name in system.mount_devices(mount):
            return Path(mount.mount_point)
    return None


@contextlib.contextmanager
def _read_only_loop(volume: MediaVolume) -> Iterator[Path]:
    """A write-protected loop device over a volume."""
    done = programs.run(
        *("losetup", "util-linux", "--find", "--show", "--read-only", "--", volume.path)
    )
    if done.returncode:
        raise ReadFailedError(f"{volume.title} cannot be read: {_reason(done.stderr)}")
    loop = Path(done.stdout.strip())
    try:
        yield loop
    finally:
        programs.run("losetup", "util-linux", "--detach", str(loop))
        _wait_until_gone(loop)


def _wait_until_gone(loop: Path) -> None:
    """A restore onto the disk below would otherwise be refused."""
    backing = Path("/sys/block") / loop.name / "loop/backing_file"
    end = time.monotonic() + _PATIENCE
    while backing.exists() and time.monotonic() < end:
        time.sleep(0.02)


def _mount(kind: str, options: str, source: Path, place: Path) -> str:
    """The reason in one line why it failed; empty where it did not."""
    done = programs.run(
        *("mount", "util-linux", "--types", kind, "--options", options),
        *("--", str(source), str(place)),
    )
    return _reason(done.stderr) if done.returncode else ""


def _mount_by_any(
    drivers: tuple[tuple[str, str], ...], mode: str, source: Path, place: Path
) -> str:
    """As `_mount`, with the first driver that can."""
    failure = ""
    for kind, options in drivers:
        words = ",".join(filter(None, (mode, _HARMLESS, options)))
        failure = _mount(kind, words, source, place)
        if not failure:
            break
    return failure


def _unmount(place: Path) -> None:
    """Unmount; by force of detaching where the medium was pulled out and something still looks."""
    if programs.run("umount", "util-linux", "--", str(place)).returncode:
        programs.run("umount", "util-linux", "--lazy", "--", str(place))


def _reason(text: str) -> str:
    """The first line of what a program said, without its own name and the mount point."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else "no reason given"
    return printable(line.rpartition(f"{STATE}/mount-")[2].partition(": ")[2] or line).rstrip(".")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise RefusedError("only root may mount a disk: run as root")
