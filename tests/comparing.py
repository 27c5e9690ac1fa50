"""Whether a restored disk is the old one: tables, file-system checks, and file by file."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.disks import MIB, run, sfdisk_json
from tests.loop import LoopDevice, mounted

Tree = dict[str, tuple[object, ...]]


def digest(path: Path) -> str:
    """A hash of all bytes of a file or device."""
    found = blake3()
    with path.open("rb") as file:
        while piece := file.read(4 * MIB):
            found.update(piece)
    return found.hexdigest()


def tree_of(place: Path) -> Tree:
    """All that a directory tree holds: content and metadata of each name, but for access times."""
    found: Tree = {}
    for folder, _, _ in os.walk(place):
        for entry in (*os.scandir(folder),):
            path = Path(entry.path)
            status = path.lstat()
            content = ""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = digest(path)
            found[str(path.relative_to(place))] = (
                status.st_mode,
                status.st_ino,
                status.st_nlink,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                status.st_size,
                status.st_blocks,
                status.st_mtime_ns,
                tuple(sorted((name, _attribute(path, name)) for name in _attributes(path))),
                content,
            )
    return found


def _attributes(path: Path) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as failure:
        if failure.errno == errno.EOPNOTSUPP:  # a file system without any
            return []
        raise


def _attribute(path: Path, name: str) -> bytes:
    return os.getxattr(path, name, follow_symlinks=False)


def files_of(device: Path, kind: str, folder: Path) -> Tree:
    """The tree on a file system, which passes its check and is not changed."""
    if kind == "vfat":
        return _files_of_fat(device, folder)
    if kind == "swap":
        return {"": (run("swaplabel", device),)}
    if kind == "ntfs":
        run("ntfsfix", "--no-action", device)
        with mounted(
            device, folder / "at", "ro,streams_interface=xattr", fs_type="ntfs-3g"
        ) as place:
            return tree_of(place)
    if kind == "exfat":
        run("fsck.exfat", "-n", device)
        with mounted(device, folder / "at", "ro", fs_type="exfat-fuse") as place:
            return tree_of(place)
    run("e2fsck", "-f", "-n", device)
    with mounted(device, folder / "at", "ro", fs_type=kind) as place:
        return tree_of(place)


def _files_of_fat(device: Path, folder: Path) -> Tree:
    run("fsck.fat", "-n", device)
    place = folder / "fat"
    place.mkdir()
    found: Tree = {"": (run("mdir", "-i", device, "-a", "-/", "::"),)}
    run("mcopy", "-i", device, "-s", "-m", "-n", "::*", place)
    for path in sorted(place.rglob("*")):
        status = path.stat()
        content = digest(path) if path.is_file() else ""
        found[str(path.relative_to(place))] = (status.st_size, status.st_mtime, content)
    run("rm", "-r", place)
    return found


def table_of(device: Path) -> dict[str, Any]:
    """A disk's partition table as sfdisk sees it, without the device's name and size."""
    table = sfdisk_json(device)
    for name in ("device", "lastlba"):
        table.pop(name, None)
    for partition in table["partitions"]:
        partition["node"] = partition["node"].removeprefix(str(device))
    return table


def disk_facts(device: LoopDevice, kinds: dict[int, str], folder: Path) -> dict[object, object]:
    """A disk's table, and the files of its partitions, whose kinds are given by their numbers."""
    device.scan()
    facts: dict[object, object] = {"table": table_of(device.path)}
    for number, kind in kinds.items():
        facts[number] = files_of(device.partition(number), kind, folder)
    return facts


def gpt_is_sound(device: Path) -> bool:
    """Whether sgdisk finds nothing to complain of."""
    done = subprocess.run(["sgdisk", "-v", device], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "No problems found" in done.stdout
