"""Sector 0: an MBR, a protective MBR, a file system's boot sector, or another system's label.

Sources: UEFI 2.10, section 5.2 (legacy and protective MBR); Microsoft's FAT specification, section
3 (BPB); what the first sector has to look like to count as an MBR follows Linux
(block/partitions/msdos.c): the boot indicators of all four entries are 0x00 or 0x80.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from imager.errors import NotUnderstoodError

BOOT_SIGNATURE = b"\x55\xaa"
BOOT_SIGNATURE_OFFSET = 510
ENTRIES_OFFSET = 446
GPT_PROTECTIVE = 0xEE
DYNAMIC_DISK = 0x42

_ENTRY = struct.Struct("<B3sB3sII")
_SIGNATURE = struct.Struct("<I")
_SIGNATURE_OFFSET = 440
_BPB = struct.Struct("<HBHBHHBH")
_BPB_OFFSET = 11
_OEM_NAMES = (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-", b"ReFS\0\0\0\0")

_BSD = (
    (512, b"\x57\x45\x56\x82", 512 + 132, b"\x57\x45\x56\x82", "a BSD disk label"),
    (64, b"\x57\x45\x56\x82", 64 + 132, b"\x57\x45\x56\x82", "a BSD disk label"),
)
_FOREIGN = (
    *_BSD,
    (0, b"ER", 512, b"PM\0\0", "an Apple partition map"),
    (0, b"ER", 2048, b"PM\0\0", "an Apple partition map"),
    (0, b"\x0b\xe5\xa9\x41", 0, b"", "an SGI disk label"),
    (508, b"\xda\xbe", 0, b"", "a Sun disk label"),
    (4, b"IPL1", 0, b"", "a PC-98 partition table"),
    (0, b"\xc9\xc2\xd4\xc1", 0, b"", "an AIX boot record"),
    (0, b"RDSK", 0, b"", "an Amiga partition table"),
)
"""Tables that are recognised only to say so: (offset, magic, second offset, second magic, name)."""
FOREIGN_SPAN = 4096


class Entry(NamedTuple):
    """An MBR partition record (UEFI 2.10, table 5-2), in sectors."""

    boot_indicator: int
    starting_chs: bytes
    os_type: int
    ending_chs: bytes
    starting_lba: int
    size_in_lba: int


class BPB(NamedTuple):
    """The fields of a FAT BIOS parameter block that every FAT has (FAT specification, 3.1)."""

    BPB_BytsPerSec: int
    BPB_SecPerClus: int
    BPB_RsvdSecCnt: int
    BPB_NumFATs: int
    BPB_RootEntCnt: int
    BPB_TotSec16: int
    BPB_Media: int
    BPB_FATSz16: int


def read_entries(sector: bytes) -> tuple[Entry, ...] | None:
    """The four records of an MBR or EBR, None without the 55 AA signature."""
    if sector[BOOT_SIGNATURE_OFFSET : BOOT_SIGNATURE_OFFSET + 2] != BOOT_SIGNATURE:
        return None
    table = sector[ENTRIES_OFFSET:BOOT_SIGNATURE_OFFSET]
    return tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(table))


def pack_entry(entry: Entry) -> bytes:
    """The 16 bytes of a partition record."""
    return _ENTRY.pack(*entry)


def is_plausible(entries: tuple[Entry, ...]) -> bool:
    """Whether all four boot indicators have one of the two values that they can have."""
    return all(entry.boot_indicator in (0, 0x80) for entry in entries)


def is_protective(entries: tuple[Entry, ...]) -> bool:
    """Whether the MBR says that a GPT describes this disk (UEFI 2.10, 5.2.3)."""
    plausible = is_plausible(entries)
    return any(
        entry.os_type == GPT_PROTECTIVE and (plausible or entry.starting_lba == 1)
        for entry in entries
    )


def disk_signature(sector: bytes) -> str | None:
    """The MBR's unique disk signature as 8 hexadecimal digits; None where it is zero."""
    (signature,) = _SIGNATURE.unpack_from(sector, _SIGNATURE_OFFSET)
    return f"{signature:08x}" if signature else None


def is_file_system_boot_sector(sector: bytes) -> bool:
    """Whether a FAT, exFAT, NTFS, ReFS or BitLocker volume starts here; they end in 55 AA too."""
    if sector[3:11] in _OEM_NAMES:
        return True
    if sector[0] not in (0xEB, 0xE9):
        return False
    bpb = BPB(*_BPB.unpack_from(sector, _BPB_OFFSET))
    return (
        bpb.BPB_BytsPerSec in (512, 1024, 2048, 4096)
        and bpb.BPB_SecPerClus.bit_count() == 1
        and bpb.BPB_RsvdSecCnt > 0
        and bpb.BPB_NumFATs in (1, 2, 3, 4)
        and (bpb.BPB_Media == 0xF0 or bpb.BPB_Media >= 0xF8)
    )


def refuse_foreign(start: bytes) -> None:
    """NotUnderstoodError if the disk's first `FOREIGN_SPAN` bytes hold another system's table."""
    _refuse(start, _FOREIGN)


def refuse_slices(start: bytes) -> None:
    """NotUnderstoodError if a partition that begins so is divided by a BSD disk label."""
    _refuse(start, _BSD)


def _refuse(start: bytes, tables: Iterable[tuple[int, bytes, int, bytes, str]]) -> None:
    for offset, magic, second, more, name in tables:
        if start.startswith(magic, offset) and start.startswith(more, second):
            raise NotUnderstoodError(f"it has {name}")
