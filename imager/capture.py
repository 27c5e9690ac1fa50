"""Capture: a disk's used sectors into an image.

    device -> layout -> used extents -> chunks -> (read, hash, compress in threads) -> writer

The source is only ever read.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imager.capture_facts import verdict_of
from imager.capture_job import LIVE, CaptureJob, open_parent, settle_consistency
from imager.capture_options import DEFAULT_LEVEL, MAX_LEVEL, CaptureOptions
from imager.check import CheckResult, check
from imager.disk.source import SourceDevice
from imager.extents import Extents
from imager.image.parents import ParentReference
from imager.image.writer import WrittenImage
from imager.layout.model import DiskLayout
from imager.pipeline import Progress, no_progress

if TYPE_CHECKING:
    from imager.live.disk import Instant

__all__ = [
    "DEFAULT_LEVEL",
    "MAX_LEVEL",
    "CaptureOptions",
    "CaptureResult",
    "capture",
]


_DEFAULTS = CaptureOptions()


@dataclass(frozen=True)
class CaptureResult:
    """A finished capture."""

    verdict: str
    """`ok`; `degraded` where sectors could not be read; `failed` where the parent has gone."""
    image: WrittenImage
    uuid: str
    layout: DiskLayout
    disk_size: int
    used: int
    """Bytes in use, as stored."""
    zero: int
    """Bytes in chunks that were found to be all zero or unused."""
    unreadable: Extents
    resumed: int
    """Disk bytes taken over from an interrupted capture."""
    seconds: float
    consistency: str = "offline"
    instant: Instant | None = None
    """When and how a disk in use was caught."""
    parent: ParentReference | None = None
    """What the image refers to, if it is incremental."""
    inherited: int = 0
    """Disk bytes in chunks that are the parent's."""
    parent_problem: str = ""
    """Why the image cannot be read although it was written: its parent has gone meanwhile."""
    revised: bool = False
    """Whether some of its chunks replace others: plain zstd cannot restore it."""
    begun_anew: bool = False
    """Whether it was to resume another one, which of a disk in use is not possible."""
    check: CheckResult | None = None
    """Of the image just written, if asked for."""


def capture(
    source: str | Path,
    image: Path | int,
    options: CaptureOptions = _DEFAULTS,
    progress: Progress = no_progress,
) -> CaptureResult:
    """Store the disk, partition or disk-image file `source` in `image`, a path or an open pipe.

    Raises RefusedError where the source is in use or the image would lie on it, ReadFailedError at
    an unreadable sector in use (unless asked to go on), WriteFailedError where the image cannot be
    written; a `.partial` file then stays for `resume`. With a parent also ImageError where that is
    not complete or its structure is damaged, RefusedError where it does not fit.

    That the parent has gone when all is written is no error but a result: `parent_problem`.
    """
    begun = time.monotonic()
    with (
        SourceDevice(Path(source), sector_size=options.sector_size) as device,
        open_parent(options, progress) as parent,
    ):
        consistency = settle_consistency(device, image, options)
        if parent is not None:
            parent.require_fit(image, device.size, device.sector_size)
        job = CaptureJob(device, image, options, consistency, parent, progress)
        filled = job.fill_live() if consistency in LIVE else job.fill()
        problem = parent.problem_now(filled.written.files) if parent else ""
        result = CaptureResult(
            verdict="failed" if problem else verdict_of(filled.unreadable),
            image=filled.written,
            uuid=str(uuid.UUID(bytes=filled.uuid)),
            layout=filled.analysis.layout,
            disk_size=device.size,
            used=filled.analysis.used.total,
            zero=filled.zero,
            unreadable=filled.unreadable,
            resumed=filled.resumed,
            seconds=time.monotonic() - begun,
            consistency=filled.instant.consistency if filled.instant else consistency,
            instant=filled.instant,
            parent=parent.reference if parent else None,
            inherited=filled.inherited,
            parent_problem=problem,
            revised=filled.revised,
            begun_anew=options.resume and consistency == "frozen",
        )
    if options.verify and isinstance(image, Path):
        checked = check(image, threads=options.threads, progress=progress)
        result = replace(result, check=checked)
    return result
