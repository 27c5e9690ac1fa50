"""Directories: entries that have clusters, found without a loop over all entries.

Source: "exFAT file system specification", sections 6, "Directory Structure", and 7, "Directory Entry
Definitions".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.exfat.boot import Geometry, checksum
from imager.filesystems.exfat.chains import Chains, Stream

_ENTRY = 32
"""Size of an entry in bytes; its first byte is its EntryType."""


class EntryType(IntEnum):
    """Types of entries in use; bit 7 says so. Section 7."""

    ALLOCATION_BITMAP = 0x81
    UP_CASE_TABLE = 0x82
    VOLUME_LABEL = 0x83
    FILE = 0x85
    VOLUME_GUID = 0xA0
    TEXFAT_PADDING = 0xA1
    STREAM_EXTENSION = 0xC0
    FILE_NAME = 0xC1
    VENDOR_EXTENSION = 0xE0
    VENDOR_ALLOCATION = 0xE1


class File(NamedTuple):
    """Of a File entry; section 7.4."""

    EntryType: int
    SecondaryCount: int
    SetChecksum: int
    FileAttributes: int


class Allocated(NamedTuple):
    """Of any secondary entry that has clusters, of which Stream Extension is one; section 6.4."""

    EntryType: int
    GeneralSecondaryFlags: int
    FirstCluster: int
    DataLength: int


class System(NamedTuple):
    """Of Allocation Bitmap and Up-case Table; sections 7.1 and 7.2."""

    EntryType: int
    BitmapFlags: int
    TableChecksum: int
    FirstCluster: int
    DataLength: int


_FILE = struct.Struct("<BBHH26x")
_ALLOCATED = struct.Struct("<BB18xIQ")
_SYSTEM = struct.Struct("<BB2xI12xIQ")
_DIRECTORY = 0x10
_ALLOCATION_POSSIBLE, _NO_FAT_CHAIN = 1, 2
_SECOND_BITMAP = 1
_LARGEST_UP_CASE_TABLE = 128 << 10


def _one_of(*types: EntryType) -> bytes:
    return b"".join(re.escape(bytes((kind,))) for kind in types)


_SYSTEM_STREAMS = re.compile(
    b"[%b]" % _one_of(EntryType.ALLOCATION_BITMAP, EntryType.UP_CASE_TABLE)
)
_WITH_CLUSTERS = re.compile(
    b"[%b]" % _one_of(EntryType.FILE, EntryType.STREAM_EXTENSION, EntryType.VENDOR_ALLOCATION)
)
_UNKNOWN = re.compile(b"[^\x01-\x7f%b]" % _one_of(*EntryType))
"""Neither one of these nor an entry that is not in use."""


class Child(NamedTuple):
    """What an entry leads to."""

    stream: Stream
    directory: bool


class SystemStreams(NamedTuple):
    """What the root directory says of the file system's own clusters."""

    bitmaps: tuple[Stream, ...]
    up_case: Stream


def read_system_streams(
    volume: Volume, geometry: Geometry, chains: Chains, root: Stream
) -> SystemStreams:
    """The allocation bitmaps, one for each FAT, and the up-case table.

    Raises NotUnderstoodError unless each is there once, and the table has the checksum that it should.
    """
    bitmaps: dict[int, Stream] = {}
    up_case: list[tuple[Stream, int]] = []
    for types, entries in _pieces(volume, geometry, root):
        for match in _SYSTEM_STREAMS.finditer(types):
            entry = System._make(_SYSTEM.unpack_from(entries, match.start() * _ENTRY))
            stream = chains.chain(entry.FirstCluster, entry.DataLength)
            if entry.EntryType == EntryType.UP_CASE_TABLE:
                up_case.append((stream, entry.TableChecksum))
            elif bitmaps.setdefault(entry.BitmapFlags & _SECOND_BITMAP, stream) is not stream:
                raise NotUnderstoodError("it has an allocation bitmap twice")
    if sorted(bitmaps) != list(range(geometry.fats)):
        raise NotUnderstoodError("it has no allocation bitmap")
    if len(up_case) != 1 or not 0 < up_case[0][0].size <= _LARGEST_UP_CASE_TABLE:
        raise NotUnderstoodError("it has no up-case table")
    stream, expected = up_case[0]
    if checksum(b"".join(stream.pieces(volume, geometry))) != expected:
        raise NotUnderstoodError("wrong checksum of its up-case table")
    return SystemStreams(tuple(bitmaps.values()), stream)


def children(
    volume: Volume, geometry: Geometry, chains: Chains, directory: Stream
) -> Iterator[Child]:
    """What the entries of a directory lead to, in order.

    The checksum of an entry set is not looked at: what is found here is only ever kept. Raises
    NotUnderstoodError for an entry of an unknown kind.
    """
    is_directory = False
    for types, entries in _pieces(volume, geometry, directory):
        for match in _WITH_CLUSTERS.finditer(types):
            at = match.start() * _ENTRY
            if types[match.start()] == EntryType.FILE:
                file = File._make(_FILE.unpack_from(entries, at))
                is_directory = bool(file.FileAttributes & _DIRECTORY)
                continue
            entry = Allocated._make(_ALLOCATED.unpack_from(entries, at))
            flags = entry.GeneralSecondaryFlags
            if not flags & _ALLOCATION_POSSIBLE or not entry.FirstCluster:
                continue
            find = chains.contiguous if flags & _NO_FAT_CHAIN else chains.chain
            stream = find(entry.FirstCluster, entry.DataLength)
            yield Child(stream, is_directory and entry.EntryType == EntryType.STREAM_EXTENSION)


def _pieces(volume: Volume, geometry: Geometry, directory: Stream) -> Iterator[tuple[bytes, bytes]]:
    """A directory up to its end: the types of some entries, and these entries."""
    for entries in directory.pieces(volume, geometry):
        types = entries[::_ENTRY]
        end = types.find(0)
        types = types if end < 0 else types[:end]
        unknown = _UNKNOWN.search(types)
        if unknown:
            raise NotUnderstoodError(f"unknown kind of directory entry, {unknown[0][0]:#04x}")
        yield types, entries
        if end >= 0:
            return
