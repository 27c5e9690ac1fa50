"""Capture: a disk's used sectors into an image.

    device -> layout -> used extents -> chunks -> (read, hash, compress in threads) -> writer

The source is only ever read.
"""

from __future__ import annotations

import time
import uuid
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imager.capture_facts import verdict_of
from imager.capture_job import CaptureJob, settle_consistency
from imager.capture_options import DEFAULT_LEVEL, MAX_LEVEL, CaptureOptions
from imager.check import CheckResult, check
from imager.chunks import ChunkReader, ChunkRun, Salvage, chunk_runs
from imager.disk.source import SourceDevice
from imager.errors import UsageError
from imager.extents import Extents
from imager.image.codec import ChunkEncoder
from imager.image.hashing import hash_algorithm
from imager.image.parents import ParentReference
from imager.image.writer import WrittenImage
from imager.layout.model import DiskLayout
from imager.parent_image import ParentImage
from imager.pipeline import Progress, no_progress, ordered_map, thread_count

if TYPE_CHECKING:
    from imager.live.disk import Instant

__all__ = [
    "DEFAULT_LEVEL",
    "MAX_LEVEL",
    "CaptureOptions",
    "CaptureResult",
    "Preview",
    "capture",
    "preview",
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
    check: CheckResult | None = None
    """Of the image just written, if asked for."""


@dataclass(frozen=True)
class Preview:
    """What a capture would do."""

    layout: DiskLayout
    used: int
    expected_size: int
    """Estimated from compressing a sample, bytes."""
    sampled: int
    """Bytes of the sample."""


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
        _open_parent(options, progress) as parent,
    ):
        consistency = settle_consistency(device, image, options)
        if parent is not None:
            parent.require_fit(image, device.size, device.sector_size)
        job = CaptureJob(device, image, options, consistency, parent, progress)
        filled = job.fill_live() if consistency == "frozen" else job.fill()
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
            consistency=consistency,
            instant=filled.instant,
            parent=parent.reference if parent else None,
            inherited=filled.inherited,
            parent_problem=problem,
        )
    if options.verify and isinstance(image, Path):
        checked = check(image, threads=options.threads, progress=progress)
        result = replace(result, check=checked)
    return result


def preview(
    source: str | Path,
    options: CaptureOptions = _DEFAULTS,
    progress: Progress = no_progress,
) -> Preview:
    """What `capture` would store and why, and about how large the image would be.

    Compresses a sample: 256 chunks evenly spread over those in use. Always of a full image:
    UsageError for one with a parent.
    """
    if options.parent is not None:
        raise UsageError("--dry-run says how large a full image would be: leave out --parent")
    with SourceDevice(Path(source), sector_size=options.sector_size) as device:
        consistency = settle_consistency(device, None, options)
        if consistency == "frozen":
            device.read_past_cache()
        job = CaptureJob(device, None, options, consistency, None, progress)
        analysis = job.analyse(device)
        used = analysis.used - analysis.excluded
        encoder = ChunkEncoder(hash_algorithm(options.hash_name), options.level, options.chunk_size)
        salvage = Salvage(device.reread_sector, device.sector_size)
        reader = ChunkReader(device.readinto, options.chunk_size, salvage)
        runs = [run for run in chunk_runs(used, 0, device.size, options.chunk_size) if run.used]
        sample = runs[:: max(1, len(runs) // _SAMPLE_CHUNKS)]
        total = sum(run.used.total for run in sample)
        done = stored = 0

        def measure(run: ChunkRun) -> tuple[int, int]:
            chunk, _ = reader.read(run)
            return run.used.total, 0 if encoder.is_zero(chunk) else len(encoder.encode(chunk))

        with closing(ordered_map(measure, sample, thread_count(options.threads))) as results:
            for size, frame in results:
                done += size
                stored += frame
                progress("sample", done, total)
        expected = round(stored * used.total / total) if total else 0
        return Preview(analysis.layout, used.total, expected + _FIXED_SIZE, total)


def _open_parent(options: CaptureOptions, progress: Progress) -> ParentImage | nullcontext[None]:
    if options.parent is None:
        return nullcontext()
    return ParentImage(options.parent, options.distrusted, progress)


_SAMPLE_CHUNKS = 256
_FIXED_SIZE = 1 << 15
"""About what head, manifest, index and footers take."""
