"""What a volume holds, as util-linux's blkid sees it: a hint which reader to ask, never a proof."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from imager.errors import MissingToolError, NotUnderstoodError
from imager.filesystems import Volume

_EXTRA_PATH = ("/usr/sbin", "/sbin")
_NOTHING_FOUND = 2
_SHOWN = 1 << 20
_AMBIVALENT = 8
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True)
class Identity:
    """A file system, LVM, LUKS or RAID member, swap space, or a partition table."""

    kind: str | None
    """blkid's TYPE; None where there is only a partition table."""
    label: str | None
    """As found, untrusted: it may hold control characters."""
    uuid: str | None
    usage: str | None
    """"filesystem", "raid", "crypto" or "other"."""
    version: str | None
    table: str | None
    """blkid's PTTYPE, where a partition table stands in the volume."""
    still: bool = False
    """Whether it is a mounted file system that is frozen; nothing that blkid could know."""


def identify(
    path: str | os.PathLike[str], offset: int, size: int, inherited: tuple[int, ...] = ()
) -> Identity | None:
    """What the `size` bytes at `offset` of a device or file hold; None if that is nothing known.

    The device is only read; `inherited` are descriptors that stay open in blkid. Raises
    NotUnderstoodError where the signatures of several kinds are there or blkid cannot look,
    MissingToolError where it is not installed.
    """
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), *_EXTRA_PATH))
    program = shutil.which("blkid", path=search)
    if program is None:
        raise MissingToolError("blkid is missing: install the package util-linux")
    if not os.access(path, os.R_OK):
        raise NotUnderstoodError("it cannot be opened")  # blkid would just say "nothing found"
    result = subprocess.run(
        [program, "-p", "-o", "udev", "-O", str(offset), "-S", str(size), "--", os.fspath(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"LC_ALL": "C"},
        pass_fds=inherited,
        check=False,
    )
    found = _parse(result.stdout)
    if result.returncode == _AMBIVALENT:
        raise NotUnderstoodError("it has the signatures of several file systems")
    if result.returncode == _NOTHING_FOUND and not result.stderr:
        return None
    if result.returncode:
        raise NotUnderstoodError("blkid could not look at it")
    return Identity(
        found.get("ID_FS_TYPE"),
        found.get("ID_FS_LABEL_ENC"),
        found.get("ID_FS_UUID_ENC"),
        found.get("ID_FS_USAGE"),
        found.get("ID_FS_VERSION"),
        found.get("ID_PART_TABLE_TYPE"),
    )


def identify_volume(volume: Volume) -> Identity | None:
    """What a volume holds that lies on no device in one piece; as `identify`, and ReadFailedError.

    blkid is shown its first and last MiB, in memory, where all signatures are; what else it looks
    for (the label in a FAT's root directory) may be missing.
    """
    fd = os.memfd_create("volume")
    try:
        os.ftruncate(fd, volume.size)
        head = min(_SHOWN, volume.size)
        os.pwrite(fd, volume.read(0, head), 0)
        tail = max(head, volume.size - _SHOWN)
        os.pwrite(fd, volume.read(tail, volume.size - tail), tail)
        return identify(f"/proc/self/fd/{fd}", 0, volume.size, (fd,))
    finally:
        os.close(fd)


def _parse(output: bytes) -> dict[str, str]:
    """The KEY=value lines; the values of ..._ENC keys have all but plain characters as \\xNN."""
    found = {}
    for line in output.split(b"\n"):
        key, separator, value = line.partition(b"=")
        if separator:
            if key.endswith(b"_ENC"):
                value = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), value)
            found[key.decode("ascii", "replace")] = value.decode("utf-8", "replace")
    return found
