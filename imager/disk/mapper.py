"""Where the bytes of a device-mapper device (LVM, LUKS) lie on the devices below it.

    /dev/mapper/vg-root   dm-1   [0, 4 GiB)  linear  dm-0 at 1 MiB
    /dev/mapper/opened    dm-0   [0, 9 GiB)  crypt   sda3 at 16 MiB   (other bytes, same places)

Asked of the kernel: what it uses at this moment is what counts, not what some metadata say.
(linux/include/uapi/linux/dm-ioctl.h; linux/Documentation/admin-guide/device-mapper)
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from imager.disk.system import System

_CONTROL = "/dev/mapper/control"
_SECTOR = 512
_DM_TABLE_STATUS = 0xC138FD0C
"""_IOWR(DM_IOCTL, DM_TABLE_STATUS_CMD, struct dm_ioctl)"""
_DM_IOCTL = struct.Struct("=3I3IiIIIQ128s129s7x")
"""version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid"""
_DM_TARGET_SPEC = struct.Struct("=QQiI16s")
"""sector_start, length, status, next, target_type; its parameters follow as text"""
_VERSION = (4, 0, 0)
_DM_STATUS_TABLE_FLAG = 1 << 4
_DM_BUFFER_FULL_FLAG = 1 << 8
_DM_SECURE_DATA_FLAG = 1 << 15
_FIRST_ROOM, _MOST_ROOM = 1 << 14, 1 << 24

# Parameters of the targets that keep the order of bytes. A crypt target's second one is the key.
_LINEAR = re.compile(rb"(?P<device>\d+:\d+) (?P<offset>\d+)")
_CRYPT = re.compile(rb"\S+ \S+ \d+ (?P<device>\d+:\d+) (?P<offset>\d+)")
_CRYPT_KEY = re.compile(rb"([!-~]+) [!-~]+ ([ -~]*)")
_STRIPED = re.compile(rb"(?P<count>\d+) (?P<chunk>\d+)(?P<stripes>(?: \d+:\d+ \d+)+)")
_ORIGIN = re.compile(rb"(?P<device>\d+:\d+)")
_MAX_PIECES = 1 << 20


class Piece(NamedTuple):
    """A run of bytes of a device, and where it lies on a disk; all in bytes."""

    start: int
    """On the device."""
    disk_start: int
    size: int
    encrypted: bool
    """Whether the disk's bytes are others than the device's."""


class _Target(NamedTuple):
    start: int
    size: int
    device: str
    """The kernel's name of what is below."""
    offset: int
    encrypted: bool


def status(number: int) -> list[tuple[bytes, bytes]]:
    """Type and state of each target of the device `number`; OSError where it is none of dm's."""
    return [(kind, bytes(text)) for _, _, kind, text in _targets(number, 0)]


def table(number: int) -> list[tuple[int, int, str, str]]:
    """Start and size in bytes, type and parameters of each target of the device `number`.

    In the place of a key stands a hyphen. OSError or ValueError where there is no such table.
    """
    return [
        (start, size, kind.decode("ascii", "replace"), _without_key(kind, text))
        for start, size, kind, text in _targets(number, _DM_STATUS_TABLE_FLAG)
    ]


def _without_key(kind: bytes, text: memoryview) -> str:
    if kind != b"crypt":
        return bytes(text).decode("ascii", "replace")
    words = _CRYPT_KEY.match(text)
    return f"{words[1].decode()} - {words[2].decode()}" if words else ""


def pieces(system: System, name: str, disk: str) -> tuple[Piece, ...] | None:
    """Where the device `name` lies on `disk`, in its own order; None where that cannot be told.

    What of it lies on other disks is left out.
    """
    size = system.tree.size(name)
    try:
        found = list(_down(system, name, disk, Piece(0, 0, size, False), 0))
    except (OSError, ValueError):
        return None
    return tuple(sorted(found))


_DEEPEST = 16


def _down(system: System, name: str, disk: str, part: Piece, depth: int) -> Iterator[Piece]:
    """`part` of the uppermost device is `part.size` bytes at `part.disk_start` of `name`."""
    parent = system.tree.parent(name)
    if name == disk or parent == disk:
        start = system.tree.start(name) if parent else 0
        yield part._replace(disk_start=start + part.disk_start)
        return
    if parent or system.tree.attribute(name, "dm/uuid") is None:
        if system.any_overlap(system.layers((name,), True), (disk,)):
            raise ValueError(f"{name} lies on {disk}, but nobody knows where")
        return  # another disk's
    if depth > _DEEPEST:
        raise ValueError("device-mapper devices are stacked too high")
    for target in _order_keeping(system, name):
        start = max(part.disk_start, target.start)
        end = min(part.disk_start + part.size, target.start + target.size)
        if start < end:
            below = Piece(
                part.start + start - part.disk_start,
                target.offset + start - target.start,
                end - start,
                part.encrypted or target.encrypted,
            )
            yield from _down(system, target.device, disk, below, depth + 1)


def _order_keeping(system: System, name: str) -> Iterator[_Target]:
    """The targets of a device; ValueError where one is of a kind that shuffles what is in it."""
    major, _, minor = (system.tree.attribute(name, "dev") or "").partition(":")
    for start, size, kind, text in _targets(
        os.makedev(int(major), int(minor)), _DM_STATUS_TABLE_FLAG
    ):
        if kind == b"striped":
            yield from _stripes(system, start, size, text)
            continue
        pattern = {b"linear": _LINEAR, b"crypt": _CRYPT, b"snapshot-origin": _ORIGIN}.get(kind)
        match = pattern.match(text) if pattern else None
        if match is None:
            raise ValueError(f"{name} has a target of the kind {kind.decode('ascii', 'replace')}")
        offset = 0 if kind == b"snapshot-origin" else int(match["offset"]) * _SECTOR
        # An origin is a device as large as this one, behind which snapshots get what was there.
        within = start if kind == b"snapshot-origin" else 0
        below = _name(system, match["device"])
        yield _Target(start, size, below, offset + within, kind == b"crypt")


def _stripes(system: System, start: int, size: int, text: memoryview) -> Iterator[_Target]:
    match = _STRIPED.match(text)
    if match is None:
        raise ValueError("a striped target makes no sense")
    words = match["stripes"].split()
    count, chunk = int(match["count"]), int(match["chunk"]) * _SECTOR
    if len(words) != 2 * count or not chunk or size // chunk > _MAX_PIECES:
        raise ValueError("a striped target makes no sense")
    stripes = [
        (_name(system, words[at]), int(words[at + 1]) * _SECTOR) for at in range(0, 2 * count, 2)
    ]
    for number in range(-(-size // chunk)):
        device, offset = stripes[number % count]
        length = min(chunk, size - number * chunk)
        place = offset + number // count * chunk
        yield _Target(start + number * chunk, length, device, place, False)


def _name(system: System, number: bytes) -> str:
    major, _, minor = number.partition(b":")
    name = system.tree.name_of_number(os.makedev(int(major), int(minor)))
    if name is None:
        raise ValueError("a device below has vanished")
    return name


def _targets(number: int, flags: int) -> Iterator[tuple[int, int, bytes, memoryview]]:
    """Start and size in bytes, type and text of each target; the text is gone after the next one.

    The table of an encrypted volume has its key in it: it is copied nowhere, and wiped here.
    """
    room = _FIRST_ROOM
    while True:
        buffer = bytearray(room)
        try:
            count = _ask(buffer, number, flags | _DM_SECURE_DATA_FLAG)
            if count is not None:
                yield from _parse(buffer, count)
                return
        finally:
            buffer[:] = bytes(room)
        room *= 8
        if room > _MOST_ROOM:
            raise ValueError("a device-mapper table is too long")


def _ask(buffer: bytearray, number: int, flags: int) -> int | None:
    """Have the kernel fill `buffer`; how many targets there are, None where it is too small."""
    _DM_IOCTL.pack_into(
        buffer, 0, *_VERSION, len(buffer), _DM_IOCTL.size, 0, 0, flags, 0, 0, _encoded(number), b"", b""
    )  # fmt: skip
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, _DM_TABLE_STATUS, buffer)
    finally:
        os.close(control)
    fields = _DM_IOCTL.unpack_from(buffer)
    if fields[7] & _DM_BUFFER_FULL_FLAG:
        return None
    return int(fields[5])


def _parse(buffer: bytearray, count: int) -> Iterator[tuple[int, int, bytes, memoryview]]:
    base = at = _DM_IOCTL.size
    for _ in range(count):
        start, length, _, following, kind = _DM_TARGET_SPEC.unpack_from(buffer, at)
        text = at + _DM_TARGET_SPEC.size
        end = buffer.index(0, text)
        view = memoryview(buffer)[text:end]
        yield start * _SECTOR, length * _SECTOR, kind.rstrip(b"\0"), view
        view.release()
        at = base + following  # counted from the first one


def _encoded(number: int) -> int:
    """A device number as the kernel passes it in 32 bits (linux/kdev_t.h, huge_encode_dev)."""
    major, minor = os.major(number), os.minor(number)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
