"""What tests of NTFS share: places by ntfscluster, restart pages of $LogFile."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from tests.disks import run

MIB = 1 << 20
STRIDE = 512


def runs_of(image: Path, inode: int) -> list[tuple[int, int]]:
    """(LCN, length) of all runs of an inode, by ntfscluster."""
    text = run("ntfscluster", "-f", "-I", str(inode), image)
    rows = re.findall(r"^ +\d+ +(\d+) +(\d+) *$", text, re.MULTILINE)
    return [(int(lcn), int(length)) for lcn, length in rows]


def protect(block: bytearray) -> bytearray:
    usa_ofs, usa_count = struct.unpack_from("<HH", block, 4)
    for index in range(1, usa_count):
        block[usa_ofs + 2 * index : usa_ofs + 2 * index + 2] = block[index * STRIDE - 2 :][:2]
        block[index * STRIDE - 2 : index * STRIDE] = block[usa_ofs : usa_ofs + 2]
    return block


NO_CLIENT = 0xFFFF


def restart_page(
    lsn: int = 0x100000,
    in_use: int = 0,
    flags: int = 0,
    version: tuple[int, int] = (1, 1),
    magic: bytes = b"RSTR",
    file_size: int = 2 * MIB,
    clients: int = 1,
) -> bytes:
    """A restart page as libntfs-3g's logfile.h describes it."""
    page = bytearray(4096)
    major, minor = version
    struct.pack_into("<4sHHQIIHhh", page, 0, magic, 30, 9, 0, 4096, 4096, 48, minor, major)
    free = 0 if in_use == NO_CLIENT else NO_CLIENT
    bits = 67 - file_size.bit_length()
    area = (lsn, clients, free, in_use, flags, bits, 224, 64, file_size, 0, 48, 64, 7, 0)
    struct.pack_into("<QHHHHIHHqIHHII", page, 48, *area)
    client = (lsn, lsn, NO_CLIENT, NO_CLIENT, 0, 8, "NTFS".encode("utf-16-le"))
    struct.pack_into("<QQHHH6xI8s", page, 48 + 64, *client)
    struct.pack_into("<H", page, 30, 0x1234)
    return bytes(protect(page))
