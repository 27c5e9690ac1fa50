"""Capture: a disk's used sectors into an image.

    device -> layout -> used extents -> chunks -> (read, hash, compress in threads) -> writer

The source is only ever read.
"""

from __future__ import annotations

import datetime
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from imager.check import CheckResult, check
from imager.chunks import ChunkReader, ChunkRun, Salvage, chunk_runs
from imager.disk.safety import mounted_read_write, same_disk
from imager.disk.source import SourceDevice
from imager.errors import RefusedError, UsageError
from imager.extents import Extents
from imager.image.codec import ChunkEncoder
from imager.image.format import (
    DEFAULT_CHUNK,
    INCOMPATIBLE_INCREMENTAL,
    INCOMPATIBLE_PARTIAL,
    MAX_CHUNK,
    MIN_CHUNK,
)
from imager.image.hashing import hash_algorithm
from imager.image.head import Head, Json
from imager.image.parents import ParentReference
from imager.image.sink import FileSink, PipeSink, Sink
from imager.image.writer import WrittenImage, require_room
from imager.image_filler import ImageFiller
from imager.layout.analyse import Analysis, analyse
from imager.layout.model import DiskLayout
from imager.parent_image import ParentImage
from imager.pipeline import Progress, no_progress, ordered_map, thread_count
from imager.version import VERSION

DEFAULT_LEVEL = 3
MAX_LEVEL = 19
"""Above it zstd wants more memory than the rescue machine may have."""
MAX_UNREADABLE_LISTED = 10_000
"""Ranges in the manifest; the segments' maps have them all."""


@dataclass(frozen=True)
class CaptureOptions:
    """What to store, and how; the defaults are right for nearly everybody."""

    level: int = DEFAULT_LEVEL
    threads: int | None = None
    """None: one for each core."""
    chunk_size: int = DEFAULT_CHUNK
    """Bytes, a power of two."""
    only: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    raw: bool = False
    keep_gaps: bool = False
    split: int | None = None
    """Bytes of a part at most."""
    note: str = ""
    continue_on_read_error: bool = False
    resume: bool = False
    verify: bool = False
    crash_consistent: bool = False
    """Capture although file systems on the disk are mounted read-write: they are stored whole,
    as a power cut would leave them."""
    hash_name: str = "blake3"
    sector_size: int | None = None
    """Of a plain disk-image file, bytes; devices know theirs."""
    parent: Path | None = None
    """Store only what differs from this image, which gives chunk size and hash algorithm, too."""
    distrusted: Extents = field(default_factory=Extents)
    """Disk ranges in which the parent is known to be damaged: they are stored whole."""

    def __post_init__(self) -> None:
        """Check what argparse cannot."""
        if not 1 <= self.level <= MAX_LEVEL:
            raise UsageError(f"a compression level lies between 1 and {MAX_LEVEL}")
        if self.chunk_size & (self.chunk_size - 1) or not (
            MIN_CHUNK <= self.chunk_size <= MAX_CHUNK
        ):
            raise UsageError("a chunk size is a power of two between 64 KiB and 16 MiB")
        thread_count(self.threads)
        if self.only and self.exclude:
            raise UsageError("--only and --exclude cannot be used together")
        if self.distrusted and self.parent is None:
            raise UsageError("without a parent image there is nothing to distrust")


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
    options: CaptureOptions = CaptureOptions(),
    progress: Progress = no_progress,
) -> CaptureResult:
    """Store the disk, partition or disk-image file `source` in `image`, a path or an open pipe.

    Raises RefusedError where the source is in use or the image would lie on it, ReadFailedError at
    an unreadable sector in use (unless asked to go on), WriteFailedError where the image cannot be
    written; a `.partial` file then stays for `resume`. With a parent also ImageError where that is
    not complete or its structure is damaged, RefusedError where it does not fit.

    That the parent is gone when all is written is no error but a result: `parent_problem`.
    """
    begun = time.monotonic()
    with (
        SourceDevice(Path(source), sector_size=options.sector_size) as device,
        _open_parent(options, progress) as parent,
    ):
        busy = _check_source(device, image, options)
        if parent is not None:
            parent.require_fit(image, device.size, device.sector_size)
        analysis = _analyse(device, options, busy, progress)
        head = _head(device, analysis, options, bool(busy), parent)
        require_room(head, analysis.used, options.split)
        with (
            _open_sink(image, options) as sink,
            ImageFiller(device, analysis, head, sink, options, progress, parent) as filler,
        ):
            filler.fill(progress)
            unreadable = filler.unreadable()
            used = analysis.used.total
            written = filler.finish(_results(used, filler.zero, unreadable))
        problem = parent.problem_now(written.files) if parent else ""
        result = CaptureResult(
            verdict="failed" if problem else _verdict(unreadable),
            image=written,
            uuid=str(uuid.UUID(bytes=filler.uuid)),
            layout=analysis.layout,
            disk_size=device.size,
            used=used,
            zero=filler.zero,
            unreadable=unreadable,
            resumed=filler.resumed,
            seconds=time.monotonic() - begun,
            parent=parent.reference if parent else None,
            inherited=filler.inherited,
            parent_problem=problem,
        )
    if options.verify and isinstance(image, Path):
        checked = check(image, threads=options.threads, progress=progress)
        result = replace(result, check=checked)
    return result


def preview(
    source: str | Path,
    options: CaptureOptions = CaptureOptions(),
    progress: Progress = no_progress,
) -> Preview:
    """What `capture` would store and why, and about how large the image would be.

    Compresses a sample: 256 chunks evenly spread over those in use. Always of a full image:
    UsageError for one with a parent.
    """
    if options.parent is not None:
        raise UsageError("--dry-run says how large a full image would be: leave out --parent")
    with SourceDevice(Path(source), sector_size=options.sector_size) as device:
        busy = _check_source(device, None, options)
        analysis = _analyse(device, options, busy, progress)
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

        for size, frame in ordered_map(measure, sample, thread_count(options.threads)):
            done += size
            stored += frame
            progress("sample", done, total)
        expected = round(stored * used.total / total) if total else 0
        return Preview(analysis.layout, used.total, expected + _FIXED_SIZE, total)


@contextmanager
def _open_sink(image: Path | int, options: CaptureOptions) -> Iterator[Sink]:
    if isinstance(image, Path):
        sink: Sink = FileSink(image, options.split, options.resume)
    elif options.resume or options.split is not None or options.verify:
        raise UsageError("--resume, --split and --verify need an image file, not a pipe")
    else:
        sink = PipeSink(image)
    try:
        yield sink
    finally:
        sink.close()


def _open_parent(options: CaptureOptions, progress: Progress) -> ParentImage | nullcontext[None]:
    if options.parent is None:
        return nullcontext()
    return ParentImage(options.parent, options.distrusted, progress)


_BUSY = "the disk was in use"
_SAMPLE_CHUNKS = 256
_FIXED_SIZE = 1 << 15
"""About what head, manifest, index and footers take."""


def _check_source(
    device: SourceDevice, image: Path | int | None, options: CaptureOptions
) -> tuple[str, ...]:
    """Refuse what cannot give a consistent image; returns why the source is in use, if allowed."""
    if not device.size:
        raise UsageError(f"{device.path} is empty: it has no sector that could be stored")
    busy = mounted_read_write(device.path)
    if busy and not options.crash_consistent:
        raise RefusedError(
            f"{device.path} is in use ({busy[0]}): unmount it, or add --consistency crash to "
            "store what is mounted as a power cut would leave it"
        )
    if isinstance(image, Path) and same_disk(image.absolute().parent, device.path):
        raise RefusedError(
            f"{image} lies on the disk that is to be captured: choose a place on another disk"
        )
    return busy


def _analyse(
    device: SourceDevice, options: CaptureOptions, busy: tuple[str, ...], progress: Progress
) -> Analysis:
    return analyse(
        device,
        device.path,
        # The maps of mounted file systems change while they are read, so they prove nothing.
        raw=options.raw or bool(busy),
        raw_reason=_BUSY if busy else None,
        keep_gaps=options.keep_gaps,
        only=options.only,
        exclude=options.exclude,
        next_data=device.next_data,
        progress=progress,
    )


def _head(
    device: SourceDevice,
    analysis: Analysis,
    options: CaptureOptions,
    busy: bool,
    parent: ParentImage | None,
) -> Head:
    partial = INCOMPATIBLE_PARTIAL if analysis.excluded else 0
    return Head(
        disk_size=device.size,
        chunk_size=parent.head.chunk_size if parent else options.chunk_size,
        sector_size=device.sector_size,
        split=options.split is not None,
        incompatible=partial | (INCOMPATIBLE_INCREMENTAL if parent else 0),
        facts={
            "created": _now(),
            "tool": f"imager {VERSION}",
            "host": _host(),
            "source": device.identity.to_json(),
            "physical_sector_size": device.physical_sector_size,
            "level": options.level,
            "consistency": "crash" if busy else "offline",
            "note": options.note,
            "parents": [parent.reference.to_json()] if parent else [],
            "layout": analysis.layout.to_json(),
            "table": _table_sectors(device, analysis.layout.table.extents),
        },
    )


def _table_sectors(device: SourceDevice, extents: Extents) -> list[list[object]]:
    """The partition table's sectors that are not zero, as [byte offset, hexadecimal]."""
    sectors: list[list[object]] = []
    for start, end in extents:
        for offset in range(start, end, device.sector_size):
            data = device.read(offset, min(device.sector_size, end - offset))
            if any(data):
                sectors.append([offset, data.hex()])
    return sectors


def _host() -> dict[str, object]:
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    return {
        "name": platform.node(),
        "system": system or platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "firmware": "uefi" if Path("/sys/firmware/efi").is_dir() else "bios",
    }


def _verdict(unreadable: Extents) -> str:
    return "degraded" if unreadable else "ok"


def _results(used: int, zero: int, unreadable: Extents) -> Json:
    """The manifest's facts."""
    return {
        "verdict": _verdict(unreadable),
        "finished": _now(),
        "used": used,
        "zero": zero,
        "unreadable_bytes": unreadable.total,
        "unreadable": [list(pair) for pair in islice(unreadable, MAX_UNREADABLE_LISTED)],
    }


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
