"""A store as a folder: made once, and refused where its marker is not there.

The marker tells a store from the empty mount point on which it should be mounted: a capture that
filled the latter would fill the system's own disk, and hide behind the next mount.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imager.disk.mounts import all_mounts, mount_of
from imager.errors import ImageError, RefusedError, StoreAbsentError, UnsupportedImageError
from imager.image.head import get, load
from imager.image.sink import MAX_PART
from imager.store.files import write_durably

MARKER = "imager-store.json"
VERSION = 1
_MAX_MARKER = 1 << 16
_LOCK = "imager.lock"
_SMALL_FILES = frozenset(("vfat", "msdos"))
"""File systems that hold no file of 4 GiB."""


@dataclass(frozen=True)
class Store:
    """An open store."""

    path: Path
    id: str
    """A UUID."""

    def disk_folders(self) -> tuple[Path, ...]:
        """The folders that may hold images of a disk, in order of their names."""
        return tuple(disk for host in _folders(self.path) for disk in _folders(host))

    def part_size(self) -> int | None:
        """The most bytes that a file may have here; None where nothing that matters forbids it."""
        mount = mount_of(self.path, all_mounts())
        return MAX_PART if mount is not None and mount.fs_type in _SMALL_FILES else None

    def free(self) -> tuple[int, int]:
        """Bytes that are free for us, and bytes in all, of the file system."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def create_store(path: Path) -> Store:
    """Make `path`, a folder that exists or whose parent does, a store.

    Raises RefusedError where it is one already, or holds something else.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if (path / MARKER).exists():
        raise RefusedError(f"{path} is a store already")
    if any(entry.name not in _NOT_OURS for entry in path.iterdir()):
        raise RefusedError(f"{path} is not empty: choose an empty or a new folder for the store")
    created = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    facts = {"imager_store": VERSION, "id": str(uuid.uuid4()), "created": created}
    write_durably(path / MARKER, json.dumps(facts, indent=2) + "\n")
    return open_store(path)


def open_store(path: Path) -> Store:
    """Open the store in the folder `path`.

    Raises StoreAbsentError where there is none, UnsupportedImageError for one of a later version.
    """
    marker = path / MARKER
    try:
        with marker.open("rb") as file:
            facts = load(file.read(_MAX_MARKER), "store's marker")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreAbsentError(
            f"{path} is not a store ({MARKER} is not in it): connect or mount its disk, "
            f"or make one with imager store init {path}"
        ) from None
    except OSError as error:
        # A USB disk that was pulled out leaves a mount whose every access fails.
        raise StoreAbsentError(f"{path} cannot be read: {error.strerror}") from None
    if get(facts, "imager_store", int) != VERSION:
        raise UnsupportedImageError(f"{path} was made by a later release of imager")
    name = get(facts, "id", str)
    try:
        return Store(path, str(uuid.UUID(name)))
    except ValueError:
        raise ImageError(f"{marker}: its id makes no sense") from None


@contextmanager
def disk_lock(folder: Path) -> Iterator[None]:
    """Keep others from working on the same disk's folder meanwhile.

    It only saves work that would be in vain: on network file systems locks may do nothing.
    Raises RefusedError where another has it.
    """
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with contextlib.suppress(OSError):  # no locks here: nothing rests on them
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RefusedError(
                    f"{folder} is being worked on by another capture or prune: try again later"
                ) from None
        yield
    finally:
        os.close(fd)


_NOT_OURS = frozenset(("lost+found", "System Volume Information", "$RECYCLE.BIN", ".Trash-1000"))
"""What file systems and desktops make by themselves."""


def _folders(path: Path) -> list[Path]:
    found = [
        entry
        for entry in path.iterdir()
        if entry.name not in _NOT_OURS and entry.is_dir() and not entry.is_symlink()
    ]
    return sorted(found)
