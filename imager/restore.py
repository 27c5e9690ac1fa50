"""Restore: an image onto a disk, nothing destroyed before the image is known to be good.

    plan -> verify the image -> wipe old signatures -> write -> partition table last -> read back

What a power cut leaves is a target without a partition table: it does not look bootable.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imager.check import check, layout_of
from imager.disk.identity import FILE_SECTOR_SIZE, Identity, identify, resolve
from imager.disk.safety import check_target
from imager.disk.target import TargetDevice
from imager.errors import (
    ImageError,
    NotUnderstoodError,
    RefusedError,
    UsageError,
)
from imager.extents import Extents
from imager.image.head import Head
from imager.image.origin import Origin
from imager.layout.edges import ends, old_ends
from imager.layout.libparted import second_opinion
from imager.layout.model import DiskLayout, VolumeLayout
from imager.layout.pieces import Pieces
from imager.layout.relocate import relocate
from imager.pipeline import Progress, no_progress, thread_count
from imager.target_writer import Span, TargetWriter


@dataclass(frozen=True)
class RestoreOptions:
    """How to restore; the defaults are the safe ones."""

    partition: int | None = None
    """Restore this partition only, onto a partition."""
    threads: int | None = None
    only_changes: bool = False
    verify_first: bool = True
    """Verify all that is needed before anything is written."""
    read_back: bool = True
    salvage: bool = False
    """Restore what is intact of a damaged image; the verdict is `failed` all the same."""

    def __post_init__(self) -> None:
        """Check what argparse cannot."""
        thread_count(self.threads)


@dataclass(frozen=True)
class RestorePlan:
    """What a restore will do; nothing has been touched yet."""

    image: Path | None
    """None: standard input."""
    head: Head
    layout: DiskLayout
    volumes: tuple[VolumeLayout, ...]
    """What will be on the target."""
    span: Span
    """The part of the imaged disk that is restored, to the target's beginning."""
    target: Identity
    options: RestoreOptions
    warnings: tuple[str, ...]
    """What a person must know before saying yes."""

    @property
    def size(self) -> int:
        """Bytes of the target that the restored disk or partition spans."""
        return self.span.end - self.span.start


@dataclass(frozen=True)
class RestoreResult:
    """A finished restore."""

    verdict: str
    """`ok`; `degraded` if the capture could not read everything; `failed` after a salvage."""
    written: int
    """Bytes written with content."""
    zeroed: int
    unchanged: int
    """Bytes that were right already."""
    discarded: int
    lost: Extents
    """Disk ranges that the image no longer holds; left as they were."""
    unreadable: Extents
    """Disk ranges that the capture could not read: zeros now."""
    read_back: bool
    notes: tuple[str, ...]
    seconds: float


def plan_restore(origin: Origin, target: str | Path, options: RestoreOptions) -> RestorePlan:
    """Decide what goes where, and refuse what must not be; touches nothing.

    `target` is a path, `serial:...` or `wwn:...`. Raises RefusedError with what to do where the
    target is in use, too small, of another sector size or holds the image; ImageError where the
    image is not complete (unless to be salvaged).
    """
    if not options.salvage:
        origin.require_complete()
    head = origin.head
    layout = layout_of(head)
    path = resolve(str(target))
    span, volumes = _source_range(layout, options.partition)
    if path.exists():
        identity = identify(path)
        check_target(path, origin.files)
    else:
        identity = _new_file(path, span.end - span.start, head.sector_size)
    _check_fit(identity, layout, span, options.partition)
    spare = identity.size - (span.end - span.start)
    return RestorePlan(
        image=origin.path,
        head=head,
        layout=layout,
        volumes=volumes,
        span=span,
        target=identity,
        options=options,
        warnings=tuple(_warnings(layout, volumes, options, origin.path is None, spare)),
    )


def nothing_first() -> None:
    """For callers who need not know when a target begins to change."""


def restore(
    origin: Origin,
    plan: RestorePlan,
    progress: Progress = no_progress,
    before_writing: Callable[[], None] = nothing_first,
) -> RestoreResult:
    """Carry out `plan`.

    `before_writing` is called once all that is verified first has been, and the target is still as
    it was; what it raises ends the restore there.

    Raises ImageError before anything is written if the image is damaged (to be salvaged: if nothing
    of it is left),
    WriteFailedError where the target fails, VerifyError where it reads back something else. After
    an error once writing has begun, the target has no partition table.
    """
    begun = time.monotonic()
    options = plan.options
    if options.verify_first and plan.image is not None:
        checked = check(
            plan.image,
            threads=options.threads,
            progress=progress,
            within=plan.span,
            parents=origin.parents,
        )
        if options.salvage:
            checked.require_anything(plan.size)
        else:
            checked.require_restorable()
    notes: list[str] = []
    with _open_target(plan) as target:
        old = old_ends(target)
        writer = TargetWriter(
            origin,
            target,
            span=plan.span,
            edges=_edges(plan, old),
            table=plan.layout.table.extents,
            only_changes=options.only_changes,
            salvage=options.salvage,
            threads=thread_count(options.threads),
            progress=progress,
        )
        before_writing()
        _wipe_signatures(target, plan, old)
        writer.write()
        target.sync()
        final = _final_pieces(plan, writer.late_pieces(), target.size, notes)
        for offset, data in final:
            target.write(offset - plan.span.start, memoryview(data))
        target.sync()
        if options.read_back:
            writer.read_back(final)
        if options.partition is None and not target.reread_partition_table():
            notes.append("the kernel still uses the old partition table: restart before using it")
    notes += _second_opinion(plan)
    failed = bool(writer.lost) or not _is_complete(origin)
    return RestoreResult(
        verdict="failed" if failed else "degraded" if writer.unreadable else "ok",
        written=writer.counts.written,
        zeroed=writer.counts.zeroed,
        unchanged=writer.counts.unchanged,
        discarded=writer.counts.discarded,
        lost=writer.lost,
        unreadable=writer.unreadable,
        read_back=options.read_back,
        notes=tuple(notes),
        seconds=time.monotonic() - begun,
    )


def _is_complete(origin: Origin) -> bool:
    """Whether the image has its end: without it nothing says that what it holds is all."""
    try:
        origin.require_complete()
    except ImageError:
        return False
    return True


def _open_target(plan: RestorePlan) -> TargetDevice:
    """Open the target exclusively; a file that does not exist is made."""
    is_file = plan.target.kind == "file"
    return TargetDevice(
        Path(plan.target.path),
        size=plan.target.size if is_file else None,
        sector_size=plan.head.sector_size if is_file else None,
    )


def _new_file(path: Path, size: int, sector_size: int) -> Identity:
    """A disk-image file that does not exist yet; RefusedError where it would be no plain file."""
    if not path.parent.is_dir() or path.absolute().parent.is_relative_to("/dev"):
        raise RefusedError(f"there is no {path}: imager devices lists the disks")
    return Identity(
        path=str(path),
        name=path.name,
        kind="file",
        model=None,
        serial=None,
        wwn=None,
        transport=None,
        size=size,
        logical_sector=sector_size,
        physical_sector=sector_size,
        rotational=False,
        removable=False,
        read_only=False,
        backing_file=None,
    )


def _source_range(
    layout: DiskLayout, partition: int | None
) -> tuple[Span, tuple[VolumeLayout, ...]]:
    """The part of the imaged disk to restore, and the volumes in it."""
    if partition is None:
        return Span(0, layout.size), layout.volumes
    for volume in layout.volumes:
        if volume.number == partition:
            if volume.stored == "excluded":
                raise UsageError(f"partition {partition} was left out of this image")
            return Span(volume.start, volume.end), (volume,)
    numbers = ", ".join(str(volume.number) for volume in layout.volumes if volume.number)
    raise UsageError(f"there is no partition {partition} in the image, only: {numbers or 'none'}")


def _check_fit(identity: Identity, layout: DiskLayout, span: Span, partition: int | None) -> None:
    """RefusedError, with what to do, where the target cannot take it."""
    if identity.size < span.end - span.start:
        raise RefusedError(
            f"{identity.path} is too small: {identity.size} bytes, "
            f"{span.end - span.start} are needed"
        )
    if identity.kind == "file":
        return
    if identity.logical_sector != layout.sector_size:
        raise RefusedError(
            f"{identity.path} has sectors of {identity.logical_sector} bytes, the imaged disk had "
            f"{layout.sector_size}: its partition table and file systems would not be readable"
        )
    if identity.kind == "partition" and partition is None and layout.table.kind != "none":
        raise RefusedError(
            f"{identity.path} is a partition, the image is of a whole disk: "
            "name a disk, or one partition of the image with --partition"
        )


def _warnings(
    plan_layout: DiskLayout,
    volumes: tuple[VolumeLayout, ...],
    options: RestoreOptions,
    streamed: bool,
    spare: int,
) -> list[str]:
    warnings = []
    if streamed or not options.verify_first:
        warnings.append(
            "the image is verified only while it is written: if it turns out to be damaged, "
            "the target's old content is lost already"
        )
    if not options.read_back:
        warnings.append("what was written is not read back")
    if options.salvage:
        warnings.append("damaged parts of the image are passed over")
    if any(volume.stored == "excluded" for volume in volumes):
        warnings.append("partitions that were left out of the image stay as they are on the target")
    if spare and options.partition is None and plan_layout.table.kind == "mbr":
        warnings.append(f"{spare} bytes at the end of the larger target stay unpartitioned")
    return warnings


def _left_out(plan: RestorePlan) -> Extents:
    return Extents.of(
        (volume.start, volume.end) for volume in plan.volumes if volume.stored == "excluded"
    )


def _edges(plan: RestorePlan, old: Extents) -> Extents:
    """What is always written, in disk bytes: the ends of the disk and of its volumes, new and old.

    `old` are those of the target's volumes, in bytes of the target.
    """
    new = ends([plan.span, *((volume.start, volume.end) for volume in plan.volumes)])
    return (new | old.shift(plan.span.start).clip(*plan.span)) - _left_out(plan)


def _wipe_signatures(target: TargetDevice, plan: RestorePlan, old: Extents) -> None:
    """Zero both ends of the target, and the `old` ends behind what will be written.

    From now on nothing is found on it, whatever interrupts the writing.
    """
    wiped = ends([(0, target.size)]) | old.clip(plan.size, target.size)
    # Whole-disk restores only: in a partition's, nothing is left out.
    for start, end in wiped - _left_out(plan):
        target.zero(start, end - start)
    target.sync()


def _final_pieces(
    plan: RestorePlan, late: list[tuple[int, bytes]], target_size: int, notes: list[str]
) -> list[tuple[int, bytes]]:
    """What is written last, in order; a GPT is fitted to the target's size, or a note says why not.

    Not understood, it can be a damaged one that is salvaged, or an image that lies.
    """
    late = sorted(late, reverse=True)
    table = plan.layout.table
    if plan.options.partition is not None or table.kind != "gpt" or target_size == plan.size:
        return late
    try:
        disk = Pieces(plan.head.disk_size, plan.head.sector_size, late)
        fitted = list(relocate(disk, target_size))
    except (NotUnderstoodError, RefusedError) as error:
        notes.append(f"the partition table was not fitted to the target's size: {error}")
        return late
    taken = Extents.of((offset, offset + len(data)) for offset, data in fitted)
    rest = []
    for offset, data in late:
        for start, end in Extents.span(offset, offset + len(data)) - taken:
            piece = bytearray(data[start - offset : end - offset])
            # The old backup's place lies amid the larger disk: it must not be found there.
            for low, high in table.extents.clip(start, end):
                piece[low - start : high - start] = bytes(high - low)
            rest.append((start, bytes(piece)))
    return rest + fitted


def _second_opinion(plan: RestorePlan) -> list[str]:
    """Whether libparted sees the table as the image says; only for a whole disk that has one."""
    if plan.options.partition is not None or plan.layout.table.kind == "none":
        return []
    # libparted takes every plain file for one with sectors of 512 bytes.
    if plan.target.kind == "file" and plan.head.sector_size != FILE_SECTOR_SIZE:
        return []
    doubt = second_opinion(Path(plan.target.path), plan.layout.table)
    return [doubt] if doubt else []
