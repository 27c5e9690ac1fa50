"""Finding the disk of a schedule, whatever the kernel calls it today."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from imager.disk.identity import identity_of
from imager.disk.lsblk import lsblk
from imager.disk.source import SourceDevice
from imager.disk.system import System
from imager.errors import ImagerError, RefusedError
from imager.store.disk_key import is_of, key_of_device

_FILE = "file "


def find_disk(key: str, hint: str) -> Path:
    """The device whose key this is; `hint` is looked at first.

    Raises RefusedError unless exactly one device of the machine has it.
    """
    if key.startswith(_FILE):
        return Path(key.removeprefix(_FILE))
    if _is(Path(hint), key):
        return Path(hint)
    found = [path for path in _devices(key) if _is(path, key)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(path) for path in found)
        raise RefusedError(f"{key} is more than one disk: {names}; disconnect one of them")
    raise RefusedError(f"the disk {key} is not connected")


def _is(path: Path, key: str) -> bool:
    try:
        with SourceDevice(path) as device:
            return key_of_device(device) == key
    except (ImagerError, OSError):
        return False


def _devices(key: str) -> Iterator[Path]:
    """The disks and partitions that may be meant; what their identity rules out is not opened."""
    system = System()
    listing = lsblk()
    for disk in system.tree.disks():
        if not system.tree.size(disk):
            continue
        for name in (disk, *system.tree.partitions(disk)):
            node = system.tree.node(name)
            if is_of(identity_of(name, node, listing, system), key):
                yield node
