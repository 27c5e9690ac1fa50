"""The volume header of HFS+ and HFSX: what the volume is, and where its special files are.

    | reserved | volume header |  allocation blocks ...            | alternate header | reserved |
    0          1024            1536                    512 bytes each, 1024 before the end

Source: Apple Technical Note TN1150, "HFS Plus Volume Format", whose names are used here: Volume
Header, Fork Data Structure, B-Trees. All numbers are big-endian. The bits of `attributes` that it
does not have are from hfs_format.h of Apple's hfs (kHFSVolumeInconsistentBit and later ones).
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

HEADER_OFFSET = 1024
HEADER_SIZE = 512
ALTERNATE_FROM_END = 1024

_HFS = b"BD"
_REPLAY_FAILED = b"FSK!"  # kFSKMountVersion of hfs_format.h
_VERSIONS = ((b"H+", 4), (b"HX", 5))
_MIN_BLOCK, _MAX_BLOCK = 512, 1 << 24
_HEADER_NODE = 1
_HEADER_NODE_RECORDS = 3
_NODE_SIZES = tuple(512 << shift for shift in range(7))


class Attributes(IntFlag):
    """Known bits of `attributes`."""

    HARDWARE_LOCK = 1 << 7
    UNMOUNTED = 1 << 8
    SPARED_BLOCKS = 1 << 9
    NO_CACHE_REQUIRED = 1 << 10
    BOOT_VOLUME_INCONSISTENT = 1 << 11
    CATALOG_NODE_IDS_REUSED = 1 << 12
    JOURNALED = 1 << 13
    INCONSISTENT = 1 << 14
    SOFTWARE_LOCK = 1 << 15
    CONTENT_PROTECTION = 1 << 30
    UNUSED_NODE_FIX = 1 << 31


class VolumeHeader(NamedTuple):
    """HFSPlusVolumeHeader, without what it says of the special files."""

    signature: bytes
    version: int
    attributes: int
    lastMountedVersion: bytes
    journalInfoBlock: int
    createDate: int
    modifyDate: int
    backupDate: int
    checkedDate: int
    fileCount: int
    folderCount: int
    blockSize: int
    totalBlocks: int
    freeBlocks: int
    nextAllocation: int
    rsrcClumpSize: int
    dataClumpSize: int
    nextCatalogID: int
    writeCount: int
    encodingsBitmap: int
    finderInfo: bytes


class Fork(NamedTuple):
    """HFSPlusForkData: where a file is, as far as eight extents can say."""

    logicalSize: int
    clumpSize: int
    totalBlocks: int
    extents: tuple[tuple[int, int], ...]
    """(first block, blocks), without the empty ones."""

    @property
    def is_whole(self) -> bool:
        """Whether there are no more extents of it in the extents overflow file."""
        return sum(count for _, count in self.extents) == self.totalBlocks


class Header(NamedTuple):
    """A header whose numbers are in range."""

    volume: VolumeHeader
    attributes: Attributes
    allocation: Fork
    extents_overflow: Fork
    catalog: Fork
    attributes_file: Fork
    startup: Fork

    @property
    def forks(self) -> tuple[Fork, ...]:
        """All special files."""
        return self[2:]

    @property
    def block_size(self) -> int:
        """Bytes of an allocation block."""
        return self.volume.blockSize

    @property
    def size(self) -> int:
        """Bytes of all allocation blocks."""
        return self.volume.totalBlocks * self.volume.blockSize


_HEADER = struct.Struct(">2sHI4s15IQ32s")
_FORK = struct.Struct(">QII16I")
_FORKS = 5
_NODE = struct.Struct(">IIbBH2xHIIIIH")  # BTNodeDescriptor, BTHeaderRec up to nodeSize


def read_header(volume: Volume) -> Header:
    """The header of `volume`, and proof that it is this volume's.

    Raises NotUnderstoodError unless its fields make sense, the alternate header agrees about what
    shapes the volume, and the catalog and the extents overflow file begin where it says.
    """
    if volume.size < HEADER_OFFSET + HEADER_SIZE + ALTERNATE_FROM_END:
        raise NotUnderstoodError("too small for HFS+")
    data = volume.read(HEADER_OFFSET, HEADER_SIZE)
    header = _parse(data)
    if not 0 < header.size <= volume.size:
        raise NotUnderstoodError("file system is larger than its volume")
    _check_state(header)
    _check_alternate(volume, header)
    for fork in header.forks:
        if any(start + count > header.volume.totalBlocks for start, count in fork.extents):
            raise NotUnderstoodError("a special file is outside of the file system")
    for fork in (header.extents_overflow, header.catalog):
        _check_tree(volume, header, fork)
    return header


def _parse(data: bytes) -> Header:
    fields = VolumeHeader._make(_HEADER.unpack_from(data))
    if fields.signature == _HFS:
        raise NotUnderstoodError("HFS, or HFS+ in an HFS wrapper, is not read by this version")
    if (fields.signature, fields.version) not in _VERSIONS:
        raise NotUnderstoodError("no HFS+ volume header")
    unknown = fields.attributes & ~sum(Attributes)
    if unknown:
        raise NotUnderstoodError(f"HFS+ attributes {unknown:#x} are not known")
    if fields.blockSize.bit_count() != 1 or not _MIN_BLOCK <= fields.blockSize <= _MAX_BLOCK:
        raise NotUnderstoodError("size of allocation blocks makes no sense")
    forks = []
    for index in range(_FORKS):
        at = _HEADER.size + index * _FORK.size
        logical, clump, total, *pairs = _FORK.unpack_from(data, at)
        extents = tuple(zip(pairs[0::2], pairs[1::2], strict=True))
        forks.append(Fork(logical, clump, total, tuple(e for e in extents if e[1])))
    return Header(fields, Attributes(fields.attributes), *forks)


def _check_state(header: Header) -> None:
    attributes = header.attributes
    if header.volume.lastMountedVersion == _REPLAY_FAILED:
        raise NotUnderstoodError("its journal could not be replayed")
    if attributes & (Attributes.INCONSISTENT | Attributes.BOOT_VOLUME_INCONSISTENT):
        raise NotUnderstoodError("file system is marked as inconsistent")
    if Attributes.UNMOUNTED not in attributes:
        raise NotUnderstoodError("file system was not cleanly unmounted")


def _check_alternate(volume: Volume, header: Header) -> None:
    """The alternate header is near the end of the volume, which may end behind the last block."""
    for end in dict.fromkeys((header.size, volume.size // HEADER_SIZE * HEADER_SIZE)):
        offset = end - ALTERNATE_FROM_END
        if offset >= HEADER_OFFSET + HEADER_SIZE:
            other = VolumeHeader._make(_HEADER.unpack_from(volume.read(offset, HEADER_SIZE)))
            shapes = [
                (one.signature, one.version, one.createDate, one.blockSize, one.totalBlocks)
                for one in (header.volume, other)
            ]
            if shapes[0] == shapes[1]:
                return
    raise NotUnderstoodError("volume header differs from the alternate one")


def _check_tree(volume: Volume, header: Header, fork: Fork) -> None:
    """The first node of a B-tree is its header node."""
    if not fork.extents:
        raise NotUnderstoodError("a special file is missing")
    data = volume.read(fork.extents[0][0] * header.block_size, HEADER_SIZE)
    _, _, kind, height, records, *_, node_size = _NODE.unpack_from(data)
    if (kind, height, records) != (_HEADER_NODE, 0, _HEADER_NODE_RECORDS):
        raise NotUnderstoodError("a special file is not where the volume header says")
    if node_size not in _NODE_SIZES:
        raise NotUnderstoodError("a special file is damaged")
