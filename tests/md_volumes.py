"""Members of md arrays for tests, built field by field; `mdadm --examine` must agree with them.

The kernel of the test machine may lack md, and mdadm makes arrays through the kernel only.
(linux/include/uapi/linux/raid/md_p.h)
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.disks import put

MAGIC = 0xA92B4EFC
NEVER = (1 << 64) - 1
SET = uuid.UUID("b6f5c2de-1f0e-4d2a-9a54-6d1f6a2d9c01")


@dataclass(frozen=True)
class Array:
    """What a superblock says; sizes in bytes."""

    version: str = "1.2"
    level: int = 1
    disks: int = 2
    name: str = "host:0"
    data_offset: int = 1 << 20
    fields: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Version 1: byte offsets with format and value, put in before the checksum is made."""
    roles: tuple[int, ...] = (0, 1)
    number: int = 0
    words: dict[int, int] = field(default_factory=dict)
    """Version 0.90: other values of words."""


def super_offset(array: Array, size: int) -> int:
    """Where the superblock stands in a member of `size` bytes."""
    if array.version == "0.90":
        return size // 65536 * 65536 - 65536
    at_end = ((size // 512 - 16) & ~7) * 512
    return {"1.0": at_end, "1.1": 0, "1.2": 4096}[array.version]


def data_range(array: Array, size: int) -> tuple[int, int]:
    """Where the array's data begin, and how many bytes they have."""
    if array.version in ("0.90", "1.0"):
        return 0, super_offset(array, size) // 65536 * 65536 - 65536
    return array.data_offset, size - array.data_offset


def write_superblock(path: Path, array: Array, offset: int = 0, size: int | None = None) -> None:
    """Make a member of the `size` bytes at `offset` of a file, or all of it."""
    size = path.stat().st_size - offset if size is None else size
    block = _version_0(array, size) if array.version == "0.90" else _version_1(array, size)
    put(path, offset + super_offset(array, size), block)


def _version_1(array: Array, size: int) -> bytes:
    start, length = data_range(array, size)
    block = bytearray(256 + 2 * 128)
    struct.pack_into("<4I", block, 0, MAGIC, 1, 0, 0)
    block[16:32] = SET.bytes
    block[32 : 32 + len(array.name)] = array.name.encode()
    struct.pack_into("<QiIQII", block, 64, 1, array.level, 0, length // 512, 0, array.disks)
    offset = super_offset(array, size)
    struct.pack_into("<QQQQ", block, 128, start // 512, length // 512, offset // 512, 0)
    struct.pack_into("<II", block, 160, array.number, 0)
    block[168:184] = uuid.UUID(int=array.number + 1).bytes
    struct.pack_into("<QQQ", block, 192, 1, 17, NEVER)
    struct.pack_into("<II", block, 216, 0, 128)
    for number in range(128):
        role = array.roles[number] if number < len(array.roles) else 0xFFFE
        struct.pack_into("<H", block, 256 + 2 * number, role)
    for at, (kind, value) in array.fields.items():
        struct.pack_into(f"<{kind}", block, at, value)
    struct.pack_into("<I", block, 216, _sum(block))
    return bytes(block)


def _version_0(array: Array, size: int) -> bytes:
    words = [0] * 1024
    _, length = data_range(array, size)
    words[0:4] = [MAGIC, 0, 90, 3]
    words[6:11] = [1, array.level & 0xFFFFFFFF, length // 1024, array.disks, array.disks]
    words[5], words[13], words[14], words[15] = struct.unpack(">4I", SET.bytes)
    words[32:37] = [1, 1, array.disks, array.disks, 0]  # utime, clean, active, working, failed
    words[39] = words[41] = 17  # events, cp_events
    for number in range(array.disks):
        at = 128 + 32 * number
        words[at : at + 5] = [number, 8, 1 + 16 * number, number, 6]
    words[992:997] = [array.number, 8, 1 + 16 * array.number, array.number, 6]
    for at, value in array.words.items():
        words[at] = value
    words[38] = _sum(struct.pack("<1024I", *words))
    return struct.pack("<1024I", *words)


def _sum(block: bytes | bytearray) -> int:
    total: int = sum(struct.unpack(f"<{len(block) // 4}I", block))
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF
