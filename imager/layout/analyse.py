"""From a disk to the ranges that must be stored, and a description of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

from imager.disk.system import System
from imager.errors import NotUnderstoodError, ReadFailedError, UsageError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout.blkid import Identity, identify
from imager.layout.gaps import KEPT_WHOLE, NextData, find_gaps
from imager.layout.luks.keys import Keys
from imager.layout.model import DiskLayout, Gap, Partition, PartitionTable
from imager.layout.nest import Nest
from imager.layout.table import read_table
from imager.layout.volumes import Piece, leave_out, store_raw

_RAW = "every sector was asked for"
_GAPS = "searching the gaps between partitions"

Progress = Callable[[str, int, int], None]
"""Called with a step, a short clause, and with bytes done and in all where it takes long, or 0."""

_Found = tuple[Partition | None, Identity | None, str | None]
"""A partition, or the disk; what blkid sees in it; why it must be stored whole, if that is known."""

Identify = Callable[[str | os.PathLike[str], int, int], Identity | None]
"""As `blkid.identify`."""


@dataclass(frozen=True)
class Analysis:
    """What is on a disk, which of its bytes are stored, and which are left out by request."""

    layout: DiskLayout
    used: Extents
    """Whole sectors (but for a last partial one of a file), none of them in `excluded`."""
    excluded: Extents
    """The volumes left out: neither stored nor ever touched by a restore."""


@dataclass(frozen=True)
class _Disk:
    """What stays the same while one disk is analysed."""

    volume: Volume
    path: str | os.PathLike[str]
    raw: str | None
    """Why every sector is taken, if so."""
    raw_volumes: Mapping[int | None, str]
    progress: Progress
    identify: Identify
    known_gaps: Collection[Gap]
    keys: Keys
    system: System

    def report_gaps(self, done: int, total: int) -> None:
        """How far the search for lost partitions is, in bytes of unpartitioned space."""
        self.progress(_GAPS, done, total)


def _silent(step: str, done: int, total: int) -> None:
    """Ignore progress."""


def analyse(
    volume: Volume,
    path: str | os.PathLike[str],
    *,
    raw: bool = False,
    raw_reason: str | None = None,
    keep_gaps: bool = False,
    only: Collection[int] = (),
    exclude: Collection[int] = (),
    raw_volumes: Mapping[int | None, str] | None = None,
    next_data: NextData | None = None,
    known_gaps: Collection[Gap] = (),
    identify: Identify = identify,
    keys: Keys | None = None,
    system: System | None = None,
    progress: Progress = _silent,
) -> Analysis:
    """Find out what is on the disk `volume`, which blkid can look at under `path`.

    `raw` takes every sector, for `raw_reason` if not on request; `keep_gaps` all that is
    unpartitioned. `only` and `exclude` are partition numbers: the others, or these, are left out.
    `raw_volumes` gives numbers (None: the disk itself) that must be stored whole, with the reason.
    `next_data` finds data in a sparse file (see `gaps`); gaps that are among `known_gaps` are not
    searched again. `identify` asks blkid. `keys` open LUKS volumes that the kernel has not open,
    by `system`. `progress` is told each step.

    Raises UsageError for a partition that does not exist or a key that does not fit,
    MissingToolError without blkid or what such a key needs. What is
    damaged, unknown or unreadable raises nothing: it is stored whole, and the layout says why.
    """
    disk = _Disk(
        volume,
        path,
        (raw_reason or _RAW) if raw else None,
        raw_volumes or {},
        progress,
        identify,
        known_gaps,
        keys or Keys(),
        system or System(),
    )
    progress("reading the partition table", 0, 0)
    try:
        table = read_table(volume)
    except NotUnderstoodError as fault:
        return _all_raw(disk, str(fault), only, exclude)
    except ReadFailedError:
        return _all_raw(disk, "the partition table cannot be read", only, exclude)
    left_out = _left_out(table, only, exclude)
    whole, doubt = _identify(disk, None)
    if table.kind == "none" or (table.kind == "mbr" and not table.partitions):
        # An empty MBR is what a file system with boot code of its own looks like, too.
        return _assemble(disk, table, _pieces(disk, [(None, whole, doubt)]), None, None)
    if whole and whole.usage == "raid" and not raw:
        return _all_raw(disk, f"the whole disk is part of a RAID ({whole.kind})", only, exclude)
    found = []
    left = []
    for partition in sorted(table.partitions, key=lambda partition: partition.start):
        if not partition.extended:
            progress(f"reading partition {partition.number}", 0, 0)
            identity, unclear = _identify(disk, partition)
            if partition.number in left_out:
                left.append(leave_out(volume, partition, identity))
            else:
                found.append((partition, identity, unclear))
    pieces = _pieces(disk, found) + left
    pieces.sort(key=lambda piece: piece[0].start)
    keep_reason = disk.raw or ("all gaps were asked for" if keep_gaps else None)
    if whole and not keep_reason:
        doubt = f"the disk as a whole has a signature of {whole.kind}"
    return _assemble(disk, table, pieces, keep_reason or doubt, next_data)


def _identify(disk: _Disk, partition: Partition | None) -> tuple[Identity | None, str | None]:
    """What blkid sees in a partition, or on the whole disk, or why that is not clear."""
    start, size = (partition.start, partition.size) if partition else (0, disk.volume.size)
    try:
        identity = disk.identify(disk.path, start, size)
    except NotUnderstoodError as fault:
        return None, str(fault)
    return (identity if identity and identity.kind else None), None


def _pieces(disk: _Disk, found: Sequence[_Found]) -> list[Piece]:
    """How volumes are stored: whole where that is asked for or where a fault says why it must."""
    whole: list[Piece] = []
    devices = _devices(disk)

    def identify_at(start: int, size: int) -> Identity | None:
        return disk.identify(disk.path, start, size)

    with Nest(disk.volume, identify_at, disk.system.tree, disk.keys) as nest:
        for partition, identity, fault in found:
            number = partition.number if partition else None
            reason = disk.raw or disk.raw_volumes.get(number, fault)
            if reason is not None:
                whole.append(store_raw(disk.volume, partition, identity, reason))
            else:
                at = (partition.start, partition.size) if partition else None
                nest.add(partition, identity, devices.get(at))
        pieces = whole + nest.solve()
    disk.keys.require_used()
    return pieces


def _devices(disk: _Disk) -> dict[tuple[int, int] | None, str]:
    """The kernel's names of the disk's partitions, by start and size, and (None) of the disk."""
    name = disk.system.name_of_path(Path(disk.path))
    if name is None:
        return {}
    tree = disk.system.tree
    parts = {(tree.start(part), tree.size(part)): part for part in tree.partitions(name)}
    found: dict[tuple[int, int] | None, str] = {None: name}
    return found | parts


def _left_out(table: PartitionTable, only: Iterable[int], exclude: Iterable[int]) -> set[int]:
    """The numbers of the partitions that are not wanted; UsageError for one that is not there."""
    existing = {partition.number for partition in table.partitions if not partition.extended}
    wanted, unwanted = {*only}, {*exclude}
    unknown = (wanted | unwanted) - existing
    if unknown:
        names = ", ".join(map(str, sorted(existing))) or "none"
        raise UsageError(f"the disk has no partition {min(unknown)}; it has: {names}")
    return unwanted | (existing - wanted if wanted else set())


def _all_raw(disk: _Disk, reason: str, only: Collection[int], exclude: Collection[int]) -> Analysis:
    """Everything is stored, because the partitions are not known for sure."""
    if only or exclude:
        raise UsageError(f"partitions cannot be left out of this disk: {reason}")
    table = PartitionTable("none", None, (), Extents())
    piece = store_raw(disk.volume, None, None, reason)
    return _assemble(disk, table, [piece], None, None)


def _assemble(
    disk: _Disk,
    table: PartitionTable,
    pieces: list[Piece],
    keep_reason: str | None,
    next_data: NextData | None,
) -> Analysis:
    """Put the volumes, in disk order, and the gaps between them together."""
    size = disk.volume.size
    occupied = Extents.of((layout.start, layout.end) for layout, _ in pieces)
    known = {(gap.start, gap.end): gap for gap in disk.known_gaps}
    gaps = find_gaps(disk.volume, occupied, keep_reason, next_data, disk.report_gaps, known)
    layouts = tuple(layout for layout, _ in pieces)
    excluded = Extents.of((at.start, at.end) for at in layouts if at.stored == "excluded")
    parts = [used for _, used in pieces]
    parts += [_stored_of(gap, table) for gap in gaps]
    # In disk order, so that each union only appends.
    parts = sorted(filter(None, parts), key=lambda part: part.start)
    used = _with_edges(reduce(or_, parts, Extents()), disk.volume, excluded)
    layout = DiskLayout(size, disk.volume.sector_size, table, layouts, gaps, table.notes)
    return Analysis(layout, used, excluded)


def _stored_of(gap: Gap, table: PartitionTable) -> Extents:
    """What is stored of a gap: all of it, or only the partition table's bytes in it."""
    if gap.stored:
        return Extents.span(gap.start, gap.end)
    return table.extents.clip(gap.start, gap.end)


def _with_edges(used: Extents, disk: Volume, excluded: Extents) -> Extents:
    """`used` with the disk's first and last 16 MiB, where boot loaders and RAID metadata live."""
    size = disk.size
    head_end = min(KEPT_WHOLE, size)
    # A file may end amid a sector; what is kept begins with a whole one all the same.
    tail_start = max((size - KEPT_WHOLE) // disk.sector_size * disk.sector_size, head_end)
    head = Extents.span(0, head_end) - excluded
    tail = Extents.span(tail_start, size) - excluded
    return head | used.clip(head_end, tail_start) | tail
