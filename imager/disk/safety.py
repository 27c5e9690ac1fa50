"""What must not be overwritten, and what should not be captured while it changes.

All of this only asks; the kernel's own lock, O_EXCL, is what a target is opened with.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from imager.disk.sysfs import Loop
from imager.disk.system import System
from imager.errors import RefusedError, UsageError

_LISTED = 4
"""How many reasons a message names before it only counts the rest."""


def usage(path: Path, system: System | None = None) -> tuple[str, ...]:
    """Why a disk, partition or disk-image file is in use, each as a clause; empty if it is not.

    An ordinary user does not see the mounts of other users' namespaces.
    """
    system = system or System()
    name = system.name_of_path(path)
    if name is None:
        return tuple(_file_uses(path, system))
    found = device_uses(name, system)
    return found if found or not _is_held(path) else ("another program has it open exclusively",)


def device_uses(name: str, system: System) -> tuple[str, ...]:
    """As `usage`, for the device that the kernel calls `name`, which is not touched for it."""
    devices = system.storage(name)
    found = [
        f"{_user(claims, devices, system)} is mounted on {mount.place}"
        for mount, claims in system.claims
        if system.any_overlap(claims, devices)
    ]
    found += _swaps(devices, system)
    for part in sorted({part for device in devices for part in system.family(device)}):
        found += (_holder_use(part, holder, system) for holder in system.tree.holders(part))
    found += _loop_uses(name, devices, system)
    return tuple(dict.fromkeys(found))


def mounted_read_write(path: Path, system: System | None = None) -> tuple[str, ...]:
    """Through what a source may change while it is read: mount points, and swap in use."""
    system = system or System()
    devices = _storage(path, system)
    mounts = [
        mount.place
        for mount, claims in system.claims
        if mount.writable and system.any_overlap(claims, devices)
    ]
    return (*dict.fromkeys(mounts), *_swaps(devices, system))


def same_disk(image: Path, source: Path, system: System | None = None) -> bool:
    """Whether a file at `image` lies (or would lie) on the disk, partition or file `source`.

    Followed down through LVM, RAID, encryption and loop devices. `image` may not exist yet.
    """
    system = system or System()
    place = image if image.exists() else image.absolute().parent
    claims = system.layers(system.path_devices(place), True)
    return _is_same_file(image, source) or system.any_overlap(claims, _storage(source, system))


def check_target(target: Path, images: Iterable[Path] = (), system: System | None = None) -> None:
    """Raise RefusedError, in one line with what to do, unless `target` may be overwritten.

    `images` are the files that will be read while it is (for standard input, /dev/stdin). A target
    that does not exist yet may be made. Whether it is large enough is for the caller to see.
    """
    system = system or System()
    name = system.name_of_path(target)
    if name is None and target.exists() and not target.is_file():
        raise UsageError(f"{target} is neither a block device nor a plain file")
    for device in sorted(_storage(target, system)):
        point = system.system_use(device)
        if point is not None:
            raise RefusedError(
                f"{target} is the disk that this system runs from ({point} is on it): "
                "boot from a rescue medium to overwrite it"
            )
    for image in images:
        if same_disk(image, target, system):
            raise RefusedError(
                f"{target} holds the image {image}: "
                "restore to another disk, or copy the image elsewhere first"
            )
    uses = usage(target, system)
    if uses:
        raise RefusedError(f"{target} is in use: {summary(uses)}; unmount or stop that first")
    if name is not None and system.tree.attribute(name, "ro") == "1":
        raise RefusedError(f"{target} is read-only: remove its write protection first")


def summary(uses: tuple[str, ...]) -> str:
    """The first few of `uses` in one line, and how many more there are."""
    more = len(uses) - _LISTED
    return "; ".join(uses[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _user(claims: frozenset[str], devices: Iterable[str], system: System) -> str:
    """The one of `claims` that lies on one of `devices`, the nearest to what a person knows."""
    near = [claim for claim in sorted(claims) if system.any_overlap((claim,), devices)]
    return near[0]


def _swaps(devices: Iterable[str], system: System) -> Iterator[str]:
    for area in system.swaps:
        name = system.name_of_path(area)
        if name is not None:
            claims = system.layers((name,), False)
            if system.any_overlap(claims, devices):
                yield f"{area} is swapped on"


def _holder_use(part: str, holder: str, system: System) -> str:
    tree = system.tree
    kind = (tree.attribute(holder, "dm/uuid") or "").partition("-")[0]
    title = tree.attribute(holder, "dm/name") or holder
    if kind == "LVM":
        return f"{part} holds the active LVM volume {title}"
    if kind == "CRYPT":
        return f"{part} holds the open encrypted volume {title}"
    if tree.attribute(holder, "md/level") is not None:
        return f"{part} is part of the RAID array {holder}"
    return f"{part} is part of {title}"


def _loop_uses(name: str, devices: frozenset[str], system: System) -> Iterator[str]:
    """The other loop devices that are attached to what `name` is made of."""
    base = system.tree.parent(name) or name
    inode = next((loop.inode for loop in system.tree.loops if loop.name == base), None)
    for loop in system.tree.loops:
        below = system.tree.name_of_number(loop.device) if loop.device else None
        node = system.tree.node(loop.name)
        if loop.name == base:
            continue
        if below and system.any_overlap((below,), devices):
            yield f"{below} is attached to {node}"
        elif loop in system.loops_of(inode):
            yield f"its file is also attached to {node}"


def _loops_of_file(path: Path, system: System) -> list[Loop]:
    try:
        status = path.stat()
    except OSError:
        return []
    return system.loops_of((status.st_dev, status.st_ino))


def _storage(path: Path, system: System) -> frozenset[str]:
    """The devices through which a device or plain file is read and written."""
    name = system.name_of_path(path)
    if name is not None:
        return system.storage(name)
    return frozenset(loop.name for loop in _loops_of_file(path, system))


def _file_uses(path: Path, system: System) -> Iterator[str]:
    for loop in _loops_of_file(path, system):
        yield f"it is attached to {system.tree.node(loop.name)}"
    for area in system.swaps:
        if _is_same_file(area, path):
            yield "it is swapped on"


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _is_held(path: Path) -> bool:
    """Whether something holds a block device exclusively: tried, and let go at once."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
