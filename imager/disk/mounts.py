"""What is mounted and what is swap: the kernel's tables, of every mount namespace we may see."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo (proc(5), /proc/pid/mountinfo), with the fields that matter here."""

    mount_id: int
    device: int
    """st_dev of what is on it; with btrfs, overlay and the like not that of any block device."""
    mount_point: str
    mount_options: frozenset[str]
    fs_type: str
    source: str
    super_options: frozenset[str]
    process: int | None = None
    """A process that sees it where we do not; None for our own mounts."""
    root: str = "/"
    """Which folder of the file system is mounted: "/" is all of it."""

    @property
    def writable(self) -> bool:
        """Whether the file system may change (a read-only bind mount of it does not matter)."""
        return "rw" in self.super_options

    @property
    def place(self) -> str:
        """The mount point, and who sees it where that is not us."""
        seen = "" if self.process is None else f" (as seen by process {self.process})"
        return self.mount_point + seen


def parse_mountinfo(text: str, process: int | None = None) -> Iterator[Mount]:
    """The mounts in the text of a mountinfo file; lines of another form are skipped."""
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        major, _, minor = fields[2].partition(":")
        if not (fields[0].isdecimal() and major.isdecimal() and minor.isdecimal()):
            continue
        yield Mount(
            mount_id=int(fields[0]),
            device=os.makedev(int(major), int(minor)),
            mount_point=_unescape(fields[4]),
            mount_options=frozenset(fields[5].split(",")),
            fs_type=rest[0],
            source=_unescape(rest[1]),
            super_options=frozenset(_unescape(rest[2]).split(",")),
            process=process,
            root=_unescape(fields[3]),
        )


def all_mounts(proc: Path = Path("/proc")) -> tuple[Mount, ...]:
    """Our own mounts, then those that only other namespaces or roots have."""
    seen = {_view(proc / "self")}
    own = list(parse_mountinfo(_read(proc / "self/mountinfo")))
    mounts = {_key(mount): mount for mount in reversed(own)}
    for process in sorted(_processes(proc)):
        directory = proc / str(process)
        view = _view(directory)
        if view is None or view in seen:
            continue
        seen.add(view)
        for mount in parse_mountinfo(_read(directory / "mountinfo"), process):
            mounts.setdefault(_key(mount), mount)
    return (*own, *(mount for mount in mounts.values() if mount.process is not None))


def init_mounts(proc: Path = Path("/proc")) -> tuple[Mount, ...]:
    """The mounts that the system's first process sees, which is what the system is made of."""
    return tuple(parse_mountinfo(_read(proc / "1/mountinfo")))


def mount_of(path: Path, mounts: tuple[Mount, ...]) -> Mount | None:
    """The mount of ours that `path` is on, asked of the kernel: st_dev is of no use for btrfs."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        info = _read(Path(f"/proc/self/fdinfo/{fd}"))
    finally:
        os.close(fd)
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            own = (mount for mount in mounts if mount.process is None)
            return next((mount for mount in own if mount.mount_id == int(value)), None)
    return None


def swap_areas(proc: Path = Path("/proc")) -> tuple[Path, ...]:
    """The partitions and files that are swapped on (proc(5), /proc/swaps)."""
    lines = _read(proc / "swaps").splitlines()[1:]
    return tuple(Path(_unescape(line.split()[0])) for line in lines if line.split())


def _key(mount: Mount) -> tuple[int, str, str]:
    return (mount.device, mount.source, mount.mount_point)


def _view(directory: Path) -> tuple[str, str] | None:
    """What decides which mounts a process sees: its namespace and its root directory."""
    try:
        return os.readlink(directory / "ns/mnt"), os.readlink(directory / "root")
    except OSError:
        return None


def _processes(proc: Path) -> list[int]:
    return [int(entry) for entry in os.listdir(proc) if entry.isdecimal()]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
