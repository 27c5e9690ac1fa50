"""MFT records ("file record segments") and the attributes inside one.

Format: "NTFS Documentation" of the Linux-NTFS project, concepts "File Record", "Attribute Header"
and "Fixup"; field names as in libntfs-3g's layout.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct, unpack_from
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems.ntfs.runlist import Run, decode_runlist

STRIDE = 512
"""Bytes guarded by one entry of an update sequence array, whatever the sector size."""

IN_USE = 0x0001

ATTRIBUTE_LIST = 0x20
FILE_NAME = 0x30
VOLUME_INFORMATION = 0x70
DATA = 0x80
INDEX_ROOT = 0x90
INDEX_ALLOCATION = 0xA0
_END = 0xFFFFFFFF

_MULTI_SECTOR_HEADER = Struct("<4sHH")
_MFT_RECORD = Struct("<4sHHQHHHHIIQH")
_ATTRIBUTE = Struct("<IIBBHHH")
_ATTRIBUTE_START = Struct("<II")
_RESIDENT = Struct("<IHBB")
_NON_RESIDENT = Struct("<qqHB5xqqq")
_NON_RESIDENT_AT = 8
_MIN_ATTRIBUTE = _ATTRIBUTE.size + _RESIDENT.size
_RECORD_NUMBER_AT = 44
_XP_USA_OFS = 48
"""From here on the update sequence array leaves room for the record's own number (NTFS 3.1)."""


class MftRecordHeader(NamedTuple):
    """MFT_RECORD, as far as all versions have it."""

    magic: bytes
    usa_ofs: int
    usa_count: int
    lsn: int
    sequence_number: int
    link_count: int
    attrs_offset: int
    flags: int
    bytes_in_use: int
    bytes_allocated: int
    base_mft_record: int
    next_attr_instance: int


class AttributeHeader(NamedTuple):
    """ATTR_RECORD, the part that resident and non-resident attributes share."""

    type: int
    length: int
    non_resident: int
    name_length: int
    name_offset: int
    flags: int
    instance: int


class NonResident(NamedTuple):
    """ATTR_RECORD, the non-resident part; sizes in bytes, valid where lowest_vcn is 0."""

    lowest_vcn: int
    highest_vcn: int
    mapping_pairs_offset: int
    compression_unit: int
    allocated_size: int
    data_size: int
    initialized_size: int


class Attribute(NamedTuple):
    """One attribute of one record, fully decoded."""

    header: AttributeHeader
    name: str
    value: bytes
    """The content where it is resident."""
    non_resident: NonResident | None
    runs: list[Run]


class Record(NamedTuple):
    """An MFT record that is in use, with its fixups applied."""

    number: int
    header: MftRecordHeader
    data: bytes

    @property
    def reference(self) -> int:
        """What other records call this one: its number and sequence number."""
        return self.number | self.header.sequence_number << 48


def apply_fixups(block: bytes, what: str) -> bytes:
    """Check and undo the multi-sector protection of one whole block."""
    _, usa_ofs, usa_count = _MULTI_SECTOR_HEADER.unpack_from(block)
    strides = len(block) // STRIDE
    usa_end = usa_ofs + 2 * usa_count
    if usa_count != strides + 1 or usa_ofs < 8 or usa_ofs & 1 or usa_end > STRIDE - 2:
        raise NotUnderstoodError(f"{what} has a damaged update sequence array")
    number = block[usa_ofs : usa_ofs + 2]
    fixed = bytearray(block)
    for index in range(1, usa_count):
        at = index * STRIDE - 2
        if block[at : at + 2] != number:
            raise NotUnderstoodError(f"{what} was not written completely")
        fixed[at : at + 2] = block[usa_ofs + 2 * index : usa_ofs + 2 * index + 2]
    return bytes(fixed)


def parse_record(block: bytes, number: int) -> Record | None:
    """Check one MFT record; None where it is unused.

    A record of zeros was never used. An unused one may hold anything behind its header.
    """
    header = MftRecordHeader._make(_MFT_RECORD.unpack_from(block))
    if header.magic != b"FILE":
        if header.magic != bytes(4):
            raise NotUnderstoodError(f"mft record {number} is damaged")
        return None
    if not header.flags & IN_USE:
        return None
    if (
        header.bytes_allocated != len(block)
        or header.bytes_in_use > len(block)
        or header.attrs_offset & 7
        or header.attrs_offset < header.usa_ofs + 2 * header.usa_count
        or header.usa_ofs < _MFT_RECORD.size
    ):
        raise NotUnderstoodError(f"mft record {number} is damaged")
    data = apply_fixups(block, f"mft record {number}")
    if header.usa_ofs >= _XP_USA_OFS:
        (own,) = unpack_from("<I", data, _RECORD_NUMBER_AT)
        if own != number & 0xFFFFFFFF:
            raise NotUnderstoodError(f"mft record {number} is in the wrong place")
    return Record(number, header, data)


def iter_attributes(record: Record) -> Iterator[tuple[int, int, int]]:
    """Each attribute's offset in the record, its length and its non_resident, bounds checked.

    No NamedTuple here: this is the innermost loop of a scan of the MFT.
    """
    data = record.data
    end = record.header.bytes_in_use
    position = record.header.attrs_offset
    last_type = 0
    unpack = _ATTRIBUTE_START.unpack_from
    while position + _ATTRIBUTE_START.size <= end:
        kind, length = unpack(data, position)
        if kind == _END:
            return
        if (
            kind < last_type
            or length & 7
            or length < _MIN_ATTRIBUTE
            or position + length > end
            or data[position + _NON_RESIDENT_AT] > 1
        ):
            break
        yield position, length, data[position + _NON_RESIDENT_AT]
        last_type = kind
        position += length
    raise NotUnderstoodError(f"mft record {record.number} has damaged attributes")


def decode_runs(
    record: Record, position: int, length: int, clusters: int
) -> tuple[NonResident, list[Run]]:
    """The non-resident part and the runs of the attribute of `length` bytes at `position`."""
    pairs_from = _ATTRIBUTE.size + _NON_RESIDENT.size
    if length < pairs_from:
        raise NotUnderstoodError(f"mft record {record.number} has damaged attributes")
    part = NonResident._make(_NON_RESIDENT.unpack_from(record.data, position + _ATTRIBUTE.size))
    if (
        not pairs_from <= part.mapping_pairs_offset <= length
        or part.lowest_vcn < 0
        or part.highest_vcn < part.lowest_vcn - 1
    ):
        raise NotUnderstoodError(f"mft record {record.number} has damaged attributes")
    pairs = record.data[position + part.mapping_pairs_offset : position + length]
    return part, decode_runlist(pairs, part.lowest_vcn, part.highest_vcn, clusters)


def parse_attributes(record: Record, clusters: int) -> list[Attribute]:
    """Decode every attribute of one record."""
    found: list[Attribute] = []
    for position, length, non_resident in iter_attributes(record):
        header = AttributeHeader._make(_ATTRIBUTE.unpack_from(record.data, position))
        name_end = header.name_offset + 2 * header.name_length
        if name_end > length:
            raise NotUnderstoodError(f"mft record {record.number} has damaged attributes")
        name = record.data[position + header.name_offset : position + name_end]
        value = b""
        part: NonResident | None = None
        runs: list[Run] = []
        if non_resident:
            part, runs = decode_runs(record, position, length, clusters)
        else:
            size, offset, _, _ = _RESIDENT.unpack_from(record.data, position + _ATTRIBUTE.size)
            if offset + size > length:
                raise NotUnderstoodError(f"mft record {record.number} has damaged attributes")
            value = record.data[position + offset : position + offset + size]
        found.append(Attribute(header, name.decode("utf-16-le", "replace"), value, part, runs))
    return found
