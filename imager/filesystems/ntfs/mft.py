"""The $MFT as a whole: files by number, also where their attributes fill several records.

Format: "NTFS Documentation" of the Linux-NTFS project, file $MFT and attribute $ATTRIBUTE_LIST.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.ntfs import record as rec
from imager.filesystems.ntfs.boot import Geometry
from imager.filesystems.ntfs.record import Attribute, Record
from imager.filesystems.ntfs.runlist import MAX_RUNS, Run, Stream

MFT, MFTMIRR, LOGFILE, VOLUME, ROOT, BITMAP, BOOT, BADCLUS = 0, 1, 2, 3, 5, 6, 7, 8
"""Record numbers of the system files."""

_LIST_ENTRY = Struct("<IHBBQQH")
_MAX_LIST = 256 << 10
"""Windows lets no $ATTRIBUTE_LIST grow beyond this many bytes."""

_MAX_RECORDS = 1 << 32
"""Microsoft's limit of files on a volume; a record has 32 bits for its own number."""

_MIRRORED = 4


class ListEntry(NamedTuple):
    """ATTR_LIST_ENTRY: where one attribute of a file is."""

    type: int
    length: int
    name_length: int
    name_offset: int
    lowest_vcn: int
    mft_reference: int
    instance: int

    @property
    def record_number(self) -> int:
        """The record that holds the attribute."""
        return self.mft_reference & 0xFFFFFFFFFFFF


class Mft:
    """Reads files by number; NotUnderstoodError where a record is not what it should be."""

    def __init__(self, volume: Volume, geometry: Geometry) -> None:
        self._volume = volume
        self._geometry = geometry
        self._stream = self._bootstrap()
        self.records = self._stream.size // geometry.record_size
        if self.records > _MAX_RECORDS:
            raise NotUnderstoodError("$MFT is larger than ntfs allows")

    def record(self, number: int) -> Record:
        """The record `number`, which has to be in use."""
        record = self.find_record(number)
        if record is None:
            raise NotUnderstoodError(f"mft record {number} is not in use")
        return record

    def find_record(self, number: int) -> Record | None:
        """The record `number`, or None where it is not in use."""
        size = self._geometry.record_size
        return rec.parse_record(self._stream.read(number * size, size), number)

    def scan(self) -> Iterator[Record]:
        """All records in use, in order, read in large pieces."""
        size = self._geometry.record_size
        parse = rec.parse_record
        for offset, piece in self._stream.pieces(self.records * size, size):
            first = offset // size
            for index in range(len(piece) // size):
                record = parse(piece[index * size : (index + 1) * size], first + index)
                if record is not None:
                    yield record

    def attributes(self, number: int) -> list[Attribute]:
        """All attributes of the file `number`, from its base and its extension records."""
        base = self.record(number)
        if base.header.base_mft_record:
            raise NotUnderstoodError(f"mft record {number} is not the base record of a file")
        attributes = rec.parse_attributes(base, self._geometry.clusters)
        entries = self._list_entries(attributes)
        others = dict.fromkeys(entry.record_number for entry in entries)
        others.pop(number, None)
        places = {(number, a.header.type, a.header.instance) for a in attributes}
        runs = 0
        for other in others:
            for attribute in self._extension(other, base):
                attributes.append(attribute)
                runs += len(attribute.runs)
                places.add((other, attribute.header.type, attribute.header.instance))
            if runs > MAX_RUNS:
                raise NotUnderstoodError(f"mft record {number} is too fragmented")
        for entry in entries:
            if (entry.record_number, entry.type, entry.instance) not in places:
                raise NotUnderstoodError(f"the attribute list of mft record {number} is wrong")
        return attributes

    def stream(self, attributes: list[Attribute], kind: int, name: str = "") -> Stream:
        """The content of the non-resident attribute, put together from all its parts."""
        stream = self.find_stream(attributes, kind, name)
        if stream is None:
            raise NotUnderstoodError("a system file has no content")
        return stream

    def find_stream(self, attributes: list[Attribute], kind: int, name: str = "") -> Stream | None:
        """As `stream`, but None where the file has no such attribute, or a resident one."""
        parts = sorted(
            (attribute.non_resident.lowest_vcn, attribute.non_resident, attribute.runs)
            for attribute in attributes
            if attribute.non_resident and attribute.header.type == kind and attribute.name == name
        )
        if not parts:
            return None
        runs = [run for _, _, part_runs in parts for run in part_runs]
        return self._make_stream(runs, parts[0][1])

    def check_mirror(self) -> None:
        """Raise NotUnderstoodError unless $MFTMirr holds the first records of $MFT."""
        mirror = self.stream(self.attributes(MFTMIRR), rec.DATA)
        mirror.require_dense("$MFTMirr")
        if mirror.runs[0].lcn != self._geometry.mftmirr_lcn:
            raise NotUnderstoodError("$MFTMirr is not where the boot sector says")
        size = self._geometry.record_size
        for number in range(_MIRRORED):
            ours = self.record(number)
            theirs = rec.parse_record(mirror.read(number * size, size), number)
            used = ours.header.bytes_in_use
            # The update sequence number itself may differ: both are written on their own.
            usn = slice(ours.header.usa_ofs, ours.header.usa_ofs + 2)
            if theirs is None or _without(ours.data[:used], usn) != _without(
                theirs.data[:used], usn
            ):
                raise NotUnderstoodError("$MFTMirr differs from $MFT")

    def _make_stream(self, runs: list[Run], part: rec.NonResident) -> Stream:
        return Stream(
            self._volume,
            self._geometry.cluster_size,
            runs,
            part.data_size,
            part.initialized_size,
        )

    def _bootstrap(self) -> Stream:
        """Find $MFT's own content.

        Its extension records lie in itself. Each has to be in a part that earlier ones map, so the
        stream grows part by part.
        """
        geometry = self._geometry
        block = self._volume.read(geometry.mft_lcn * geometry.cluster_size, geometry.record_size)
        base = rec.parse_record(block, MFT)
        if base is None or base.header.base_mft_record:
            raise NotUnderstoodError("mft record 0 is damaged")
        attributes = rec.parse_attributes(base, geometry.clusters)
        self._stream = self.stream(attributes, rec.DATA)
        for entry in self._list_entries(attributes):
            if entry.type == rec.DATA and not entry.name_length and entry.lowest_vcn:
                for attribute in self._extension(entry.record_number, base):
                    part = attribute.non_resident
                    if part and (part.lowest_vcn, attribute.header.instance) == (
                        entry.lowest_vcn,
                        entry.instance,
                    ):
                        self._stream.extend(attribute.runs)
        stream = self.stream(self.attributes(MFT), rec.DATA)
        stream.require_dense("$MFT")
        if stream.runs[0].lcn != geometry.mft_lcn:
            raise NotUnderstoodError("$MFT is not where the boot sector says")
        return stream

    def _extension(self, number: int, base: Record) -> list[Attribute]:
        record = self.record(number)
        if record.header.base_mft_record != base.reference:
            raise NotUnderstoodError(f"mft record {number} does not belong to {base.number}")
        return rec.parse_attributes(record, self._geometry.clusters)

    def _list_entries(self, attributes: list[Attribute]) -> list[ListEntry]:
        """The entries of the file's $ATTRIBUTE_LIST, if it has one."""
        lists = [a for a in attributes if a.header.type == rec.ATTRIBUTE_LIST]
        if not lists:
            return []
        part = lists[0].non_resident
        data = lists[0].value
        if len(lists) > 1 or (part and not 0 <= part.data_size <= _MAX_LIST):
            raise NotUnderstoodError("an attribute list is damaged")
        if part:
            stream = self._make_stream(lists[0].runs, part)
            data = stream.read(0, stream.data_size)
        entries: list[ListEntry] = []
        position = 0
        while position + _LIST_ENTRY.size <= len(data):
            entry = ListEntry._make(_LIST_ENTRY.unpack_from(data, position))
            if entry.length < _LIST_ENTRY.size or entry.length & 7:
                raise NotUnderstoodError("an attribute list is damaged")
            entries.append(entry)
            position += entry.length
        if position != len(data):
            raise NotUnderstoodError("an attribute list is damaged")
        return entries


def _without(data: bytes, part: slice) -> bytes:
    return data[: part.start] + data[part.stop :]
