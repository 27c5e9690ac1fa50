"""A volume group: which extents of its physical volumes belong to what, by its metadata's text.

Only what is known in full is read through: linear and striped volumes that nothing else is built
upon. All others (snapshots and what they are of, thin pools, caches, RAID, mirrors, moves) are made
of hidden volumes, which occupy extents like any other, and are stored whole. Extents that no volume
has are not in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.layout.lvm.text import Section, Value, parse

_SECTOR = 512
_MAX_EXTENTS = 1 << 32
_MAX_SEGMENTS = 100_000
_MAX_STRIPES = 1 << 8
_MAX_NAME = 127
_GROUP_STATUS = {"RESIZEABLE", "READ", "WRITE"}
_VOLUME_STATUS = {"READ", "WRITE", "VISIBLE", "FIXED_MINOR"}
_VOLUME_FLAGS = {"ACTIVATION_SKIP", "NOAUTOACTIVATE"}
_MEMBER_STATUS = {"ALLOCATABLE"}
_HIDDEN_TYPES = {
    *("snapshot", "thin", "thin-pool", "cache", "cache-pool", "writecache", "mirror"),
    *("raid0", "raid0_meta", "raid1", "raid4", "raid10", "raid10_near", "vdo", "vdo-pool"),
    *("raid5", "raid5_n", "raid5_la", "raid5_ra", "raid5_ls", "raid5_rs"),
    *("raid6", "raid6_zr", "raid6_nr", "raid6_nc", "raid6_ls_6", "raid6_rs_6", "raid6_la_6"),
    *("raid6_ra_6", "raid6_n_6", "integrity", "zero", "error"),
}
"""Segments that are built of other logical volumes, which are listed too, or of nothing."""


class Area(NamedTuple):
    """Extents of a physical volume."""

    member: str
    """The physical volume's name in the metadata."""
    extent: int
    extents: int


class Run(NamedTuple):
    """A segment: that many extents of a logical volume from `start` on, dealt out to its areas."""

    start: int
    extents: int
    chunk: int
    """Bytes."""
    areas: tuple[Area, ...]


@dataclass(frozen=True)
class LogicalVolume:
    """A volume of the group."""

    name: str
    uuid: str
    runs: tuple[Run, ...]
    """Those segments that lie on physical volumes; all of it where it can be read through."""
    reason: str | None
    """Why it cannot be read through."""
    extents: int


@dataclass(frozen=True)
class Member:
    """A physical volume as the group has it."""

    uuid: str
    start: int
    """Where its first extent begins, bytes."""
    extents: int
    reason: str | None
    """Why nothing is proven about it."""


@dataclass(frozen=True)
class Group:
    """A volume group."""

    name: str
    uuid: str
    sequence: int
    extent_size: int
    """Bytes."""
    members: Mapping[str, Member]
    volumes: tuple[LogicalVolume, ...]


def read_group(text: str) -> Group:
    """The group that metadata describe; NotUnderstoodError unless all of it makes sense."""
    found = parse(text)
    if found.get("contents") != "Text Format Volume Group" or found.get("version") != 1:
        raise NotUnderstoodError("its LVM metadata are of another kind")
    groups = [(key, value) for key, value in found.items() if isinstance(value, dict)]
    if len(groups) != 1:
        raise NotUnderstoodError("its LVM metadata describe more than one group")
    name, group = groups[0]
    if len(name) > _MAX_NAME:
        raise NotUnderstoodError("LVM metadata make no sense")
    if "EXPORTED" in _words(group, "status"):
        raise NotUnderstoodError("its LVM group is exported")
    if not _words(group, "status") <= _GROUP_STATUS or _words(group, "flags"):
        raise NotUnderstoodError("its LVM group is in a state that is not known")
    if group.get("lock_type", "none") != "none":
        raise NotUnderstoodError("its LVM group is shared with other machines")
    if group.get("format", "lvm2") != "lvm2":
        raise NotUnderstoodError("its LVM metadata are of another kind")
    extent_size = _number(group, "extent_size", 1 << 32) * _SECTOR
    if not extent_size:
        raise NotUnderstoodError("LVM metadata make no sense")
    members = {
        key: _member(value, extent_size) for key, value in _sections(group, "physical_volumes")
    }
    if len({member.uuid for member in members.values()}) != len(members):
        raise NotUnderstoodError("two LVM physical volumes have the same id")
    sections = dict(_sections(group, "logical_volumes"))
    below = _built_upon(sections)
    volumes = tuple(
        _volume(key, section, below, members, extent_size) for key, section in sections.items()
    )
    _refuse_overlap(volumes, members)
    sequence = _number(group, "seqno", 1 << 63)
    return Group(name, _string(group, "id"), sequence, extent_size, members, volumes)


def _member(section: Section, extent_size: int) -> Member:
    start = _number(section, "pe_start", 1 << 54) * _SECTOR
    extents = _number(section, "pe_count", _MAX_EXTENTS)
    if (start + extents * extent_size) >> 63:
        raise NotUnderstoodError("LVM metadata make no sense")
    reason = None
    if "MISSING" in _words(section, "flags"):
        reason = "its LVM group counts it as missing"
    elif _words(section, "flags") or _words(section, "status") - _MEMBER_STATUS:
        reason = "it is in a state of LVM that is not known"
    return Member(_string(section, "id").replace("-", ""), start, extents, reason)


def _built_upon(sections: Mapping[str, Section]) -> set[str]:
    """Every name that any segment mentions: those of volumes are parts of others."""
    found: set[str] = set()
    for section in sections.values():
        for _, segment in _segments(section):
            for key, value in segment.items():
                if key == "type":
                    continue
                values = value if isinstance(value, list) else [value]
                found.update(each for each in values if isinstance(each, str))
                if isinstance(value, dict):
                    raise NotUnderstoodError("an LVM segment is of a kind that is not known")
    return found


def _volume(
    name: str, section: Section, below: set[str], members: Mapping[str, Member], extent_size: int
) -> LogicalVolume:
    runs: list[Run] = []
    reason = "other LVM volumes are built upon it" if name in below else None
    if "VISIBLE" not in _words(section, "status"):
        reason = reason or "it is a part of other LVM volumes"
    if not _words(section, "status") <= _VOLUME_STATUS or _words(section, "flags") - _VOLUME_FLAGS:
        reason = reason or "LVM has work to do on it"
    position = 0
    for _, segment in sorted(_segments(section)):
        start = _number(segment, "start_extent", _MAX_EXTENTS)
        count = _number(segment, "extent_count", _MAX_EXTENTS)
        if start != position or not count:
            raise NotUnderstoodError("an LVM volume has gaps")
        position += count
        kind = _string(segment, "type")
        if kind in ("striped", "linear"):
            run = _run(segment, start, count, members, extent_size)
            if run is None:
                reason = reason or "LVM has work to do on it"
            else:
                runs.append(run)
        elif kind in _HIDDEN_TYPES:
            reason = reason or f"LVM volumes of type {kind} are not read"
            _refuse_members(segment, members)
        else:
            raise NotUnderstoodError("an LVM segment is of a kind that is not known")
    if not position or _number(section, "segment_count", _MAX_SEGMENTS) != len(_segments(section)):
        raise NotUnderstoodError("an LVM volume has gaps")
    return LogicalVolume(
        name, _string(section, "id").replace("-", ""), tuple(runs), reason, position
    )


def _run(
    segment: Section, start: int, count: int, members: Mapping[str, Member], extent_size: int
) -> Run | None:
    """A linear or striped segment, None where it lies on other volumes (a move in progress)."""
    listed = segment.get("stripes")
    stripes = _number(segment, "stripe_count", _MAX_STRIPES)
    if not isinstance(listed, list) or len(listed) != 2 * stripes or not stripes:
        raise NotUnderstoodError("an LVM segment makes no sense")
    chunk = _number(segment, "stripe_size", 1 << 32) * _SECTOR if stripes > 1 else extent_size
    if count % stripes or not chunk or (count // stripes * extent_size) % chunk:
        raise NotUnderstoodError("an LVM segment makes no sense")
    areas = []
    for name, extent in zip(listed[::2], listed[1::2], strict=True):
        if not isinstance(name, str) or type(extent) is not int:
            raise NotUnderstoodError("an LVM segment makes no sense")
        if name not in members:
            return None
        if not 0 <= extent <= members[name].extents - count // stripes:
            raise NotUnderstoodError("an LVM volume reaches past the end of its physical volume")
        areas.append(Area(name, extent, count // stripes))
    return Run(start, count, chunk, tuple(areas))


def _refuse_members(segment: Section, members: Mapping[str, Member]) -> None:
    """A segment that is not striped has no extents of its own, but during a move."""
    for value in segment.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and each in members:
                raise NotUnderstoodError("LVM is moving extents of its group")


def _refuse_overlap(volumes: tuple[LogicalVolume, ...], members: Mapping[str, Member]) -> None:
    """No extent belongs to two volumes."""
    areas = sorted(area for volume in volumes for run in volume.runs for area in run.areas)
    for one, other in pairwise(areas):
        if one.member == other.member and one.extent + one.extents > other.extent:
            raise NotUnderstoodError("two LVM volumes overlap")


def _segments(volume: Section) -> list[tuple[int, Section]]:
    """The numbered segments of a volume."""
    found = []
    for key, value in volume.items():
        number = key.removeprefix("segment")
        if isinstance(value, dict) and key != number and number.isdecimal() and len(number) < 8:
            found.append((int(number), value))
        elif isinstance(value, dict):
            raise NotUnderstoodError("LVM metadata make no sense")
    if len(found) > _MAX_SEGMENTS:
        raise NotUnderstoodError("an LVM volume has too many segments")
    return found


def _sections(group: Section, key: str) -> Iterator[tuple[str, Section]]:
    found = group.get(key, {})
    if not isinstance(found, dict):
        raise NotUnderstoodError("LVM metadata make no sense")
    for name, value in found.items():
        if not isinstance(value, dict) or len(name) > _MAX_NAME:
            raise NotUnderstoodError("LVM metadata make no sense")
        yield name, value


def _number(section: Section, key: str, limit: int) -> int:
    value = section.get(key)
    if type(value) is not int or not 0 <= value < limit:
        raise NotUnderstoodError("LVM metadata make no sense")
    return value


def _string(section: Section, key: str) -> str:
    value: Value | None = section.get(key)
    if not isinstance(value, str):
        raise NotUnderstoodError("LVM metadata make no sense")
    return value


def _words(section: Section, key: str) -> set[str]:
    value = section.get(key, [])
    if not isinstance(value, list):
        raise NotUnderstoodError("LVM metadata make no sense")
    return {str(each) for each in value}
