"""Preview: what a capture would store and why, and about how large its image would be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imager.capture_job import LIVE, CaptureJob, open_parent, settle_consistency
from imager.capture_options import CaptureOptions
from imager.chunk_coder import ChunkCoder
from imager.chunks import ChunkReader, ChunkRun, Salvage
from imager.disk.source import SourceDevice
from imager.extents import Extents
from imager.image.hashing import hash_algorithm
from imager.image.parents import ParentReference
from imager.layout.model import DiskLayout
from imager.parent_image import ParentImage
from imager.pipeline import Progress, no_progress, ordered_map, thread_count


@dataclass(frozen=True)
class Preview:
    """What a capture would do."""

    layout: DiskLayout
    used: int
    expected_size: int
    """Estimated from compressing a sample, bytes."""
    sampled: int
    """Bytes of the sample."""
    parent: ParentReference | None = None
    """What the image would refer to, if it were incremental."""
    changed: int = 0
    """Bytes of the sample in chunks that are not the parent's."""


_DEFAULTS = CaptureOptions()
_SAMPLE = 256
"""Chunks that are compressed..."""
_SAMPLE_COMPARED = 1024
"""...and that are compared with a parent: what changed lies in few of them."""
_FIXED_SIZE = 1 << 15
"""About what head, manifest, index and footers take."""


class _Measured(NamedTuple):
    """What became of one chunk of the sample; bytes."""

    used: int
    stored: int
    changed: int


def preview(
    source: str | Path,
    options: CaptureOptions = _DEFAULTS,
    progress: Progress = no_progress,
) -> Preview:
    """What `capture` would store and why, and about how large the image would be.

    Reads and compresses chunks evenly spread over those in use: 256, or 1024 where there is a parent.
    Of what changed in a night that is a rough guess. Errors are those of `capture`.
    """
    with (
        SourceDevice(Path(source), sector_size=options.sector_size) as device,
        open_parent(options, progress) as parent,
    ):
        consistency = settle_consistency(device, None, options)
        if consistency in LIVE:
            device.read_past_cache()
        if parent is not None:
            parent.require_fit(None, device.size, device.sector_size)
        job = CaptureJob(device, None, options, consistency, parent, progress)
        analysis = job.analyse(device)
        used = analysis.used - analysis.excluded
        chunk_size = parent.head.chunk_size if parent else options.chunk_size
        algorithm = parent.algorithm if parent else hash_algorithm(options.hash_name)
        coder = ChunkCoder(algorithm, options.level, chunk_size, parent)
        salvage = Salvage(device.reread_sector, device.sector_size)
        reader = ChunkReader(device.stream_into, chunk_size, salvage)

        def measure(run: ChunkRun) -> _Measured:
            chunk, unreadable = reader.read(run)
            encoded = coder.encode(run, chunk, unreadable, _hash_in(parent, run))
            size = run.used.total
            return _Measured(size, len(encoded.frame or b""), 0 if encoded.unchanged else size)

        count = _SAMPLE if parent is None else _SAMPLE_COMPARED
        sample = list(sample_of(used, device.size, chunk_size, count))
        total = sum(run.used.total for run in sample)
        done = stored = changed = 0
        with closing(ordered_map(measure, sample, thread_count(options.threads))) as results:
            for measured in results:
                done += measured.used
                stored += measured.stored
                changed += measured.changed
                progress("sample", done, total)
        return Preview(
            analysis.layout,
            used.total,
            (round(stored * used.total / total) if total else 0) + _FIXED_SIZE,
            total,
            parent.reference if parent else None,
            changed,
        )


def sample_of(used: Extents, disk_size: int, chunk_size: int, count: int) -> Iterator[ChunkRun]:
    """At least `count` chunks that hold anything, evenly spread; all of them where there are fewer.

    Less than twice as many, however large the disk.
    """
    chunks = used.align(chunk_size)
    step = max(1, chunks.total // chunk_size // count)
    passed = 0
    for start, end in chunks:
        here = (end - start) // chunk_size
        for number in range(-passed % step, here, step):
            first = start + number * chunk_size
            last = min(first + chunk_size, disk_size)
            yield ChunkRun(first, last, used.clip(first, last))
        passed += here


def _hash_in(parent: ParentImage | None, run: ChunkRun) -> bytes | None:
    """The content hash of the parent's chunk there."""
    if parent is None:
        return None
    return next(iter(parent.runs(run.start, run.end))).content_hash
