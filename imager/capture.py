"""Capture: a disk's used sectors into an image.

    device -> layout -> used extents -> chunks -> (read, hash, compress in threads) -> writer

The source is only ever read.
"""

from __future__ import annotations

import datetime
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from imager.check import CheckResult, check
from imager.chunks import ChunkReader, ChunkRun, Salvage, chunk_runs
from imager.disk.safety import mounted_read_write, same_disk
from imager.disk.source import SourceDevice
from imager.errors import RefusedError, UsageError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.image.codec import ChunkEncoder
from imager.image.format import (
    DEFAULT_CHUNK,
    INCOMPATIBLE_FREE,
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
from imager.layout.analyse import Analysis, Identify, analyse
from imager.layout.blkid import identify
from imager.layout.model import DiskLayout, Gap
from imager.layout.table import table_sectors
from imager.live.disk import Instant, LiveDisk, LiveSettings
from imager.live.precopy import Limits
from imager.live_capture import Filled, fill_live
from imager.parent_image import ParentImage
from imager.pipeline import Progress, no_progress, ordered_map, thread_count
from imager.version import VERSION

Consistency = Literal["auto", "offline", "frozen", "snapshot", "crash"]

DEFAULT_LEVEL = 3
MAX_LEVEL = 19
"""Above it zstd wants more memory than the rescue machine may have."""
MAX_PAUSE = 60.0
"""Seconds; a machine whose disk stands still for longer is taken for dead."""
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
    consistency: Consistency = "auto"
    """auto: offline where nothing on the disk is mounted read-write, else frozen. frozen: as the
    disk is at one instant, for which its file systems are frozen. offline: refuse a disk in use.
    crash: store what is in use whole, as a power cut would leave it. snapshot: not in this
    release."""
    target_pause: float = 0.15
    """How long the file systems of a disk in use should stand still at most, seconds."""
    max_pause: float = 2.0
    """How long they ever may, seconds."""
    before_freeze: str = ""
    """A shell command to be run before that; if it fails there is no image."""
    after_thaw: str = ""
    """A shell command to be run after that."""
    inside_freeze: Callable[[], None] = lambda: None
    """Called while they stand still, when all is read."""
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
        if not 0 < self.target_pause <= self.max_pause <= MAX_PAUSE:
            raise UsageError(
                f"a pause has up to {MAX_PAUSE:g} seconds, and --target-pause is not above "
                "--max-pause"
            )
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
        consistency = _check_source(device, image, options)
        if parent is not None:
            parent.require_fit(image, device.size, device.sector_size)
        job = _Job(device, image, options, consistency, parent, progress)
        filled = job.fill_live() if consistency == "frozen" else job.fill()
        problem = parent.problem_now(filled.written.files) if parent else ""
        result = CaptureResult(
            verdict="failed" if problem else _verdict(filled.unreadable),
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
        consistency = _check_source(device, None, options)
        if consistency == "frozen":
            device.read_past_cache()
        job = _Job(device, None, options, consistency, None, progress)
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

        for size, frame in ordered_map(measure, sample, thread_count(options.threads)):
            done += size
            stored += frame
            progress("sample", done, total)
        expected = round(stored * used.total / total) if total else 0
        return Preview(analysis.layout, used.total, expected + _FIXED_SIZE, total)


@contextmanager
def _open_sink(image: Path | int | None, options: CaptureOptions) -> Iterator[Sink]:
    if isinstance(image, Path):
        sink: Sink = FileSink(image, options.split, options.resume)
    elif options.resume or options.split is not None or options.verify:
        raise UsageError("--resume, --split and --verify need an image file, not a pipe")
    elif image is None:
        raise UsageError("name the image file to write, or - for standard output")
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


def _check_source(device: SourceDevice, image: Path | int | None, options: CaptureOptions) -> str:
    """How the image will be consistent; RefusedError where it would not be, or lie on the disk."""
    if not device.size:
        raise UsageError(f"{device.path} is empty: it has no sector that could be stored")
    if isinstance(image, Path) and same_disk(image.absolute().parent, device.path):
        raise RefusedError(
            f"{image} lies on the disk that is to be captured: choose a place on another disk"
        )
    busy = mounted_read_write(device.path)
    wanted = options.consistency
    if not busy:
        return "offline"
    if wanted == "crash":
        return "crash"
    if wanted == "offline":
        raise RefusedError(
            f"{device.path} is in use ({busy[0]}): unmount it, or leave out --consistency offline "
            "to capture it as it is at one instant"
        )
    if wanted == "snapshot":
        raise RefusedError(
            f"{device.path} is in use ({busy[0]}), and this release makes no LVM snapshots: leave "
            "out --consistency snapshot to capture it as it is at one instant"
        )
    if isinstance(image, int) or options.split is not None:
        what = "standard output" if isinstance(image, int) else "parts"
        raise RefusedError(
            f"{device.path} is in use ({busy[0]}): its image has to be patched while it is made, "
            f"which {what} cannot be: write it to one file, or unmount the disk first"
        )
    return "frozen"


class _Job:
    """One capture: what its steps share."""

    def __init__(
        self,
        device: SourceDevice,
        image: Path | int | None,
        options: CaptureOptions,
        consistency: str,
        parent: ParentImage | None,
        progress: Progress,
    ) -> None:
        self._device = device
        self._image = image
        self._options = options
        self._consistency = consistency
        self._parent = parent
        self._progress = progress

    def analyse(
        self, volume: Volume, identify: Identify = identify, known_gaps: tuple[Gap, ...] = ()
    ) -> Analysis:
        """What is in use on the source, seen through `volume`."""
        options, crash = self._options, self._consistency == "crash"
        return analyse(
            volume,
            self._device.path,
            # The maps of mounted file systems change while they are read, so they prove nothing.
            raw=options.raw or crash,
            raw_reason=_BUSY if crash else None,
            keep_gaps=options.keep_gaps,
            only=options.only,
            exclude=options.exclude,
            next_data=self._device.next_data,
            known_gaps=known_gaps,
            identify=identify,
            progress=self._progress,
        )

    def fill(self) -> Filled:
        """A disk at rest, or one that is stored as a power cut would leave it."""
        analysis = self.analyse(self._device)
        head = self._head(analysis)
        require_room(head, analysis.used, self._options.split)
        with (
            _open_sink(self._image, self._options) as sink,
            ImageFiller(
                self._device, analysis, head, sink, self._options, self._progress, self._parent
            ) as filler,
        ):
            filler.fill(self._progress)
            unreadable = filler.unreadable()
            results = _results(analysis.used.total, filler.zero, unreadable)
            return Filled(
                analysis,
                filler.finish(results),
                filler.uuid,
                filler.zero,
                filler.inherited,
                unreadable,
                filler.resumed,
            )

    def fill_live(self) -> Filled:
        """A disk in use."""
        options = self._options
        settings = LiveSettings(
            Limits(options.target_pause, options.max_pause),
            options.before_freeze,
            options.after_thaw,
            options.inside_freeze,
        )
        if not isinstance(self._image, Path):
            raise ValueError("an image of a disk in use is a file")
        with LiveDisk(self._device, self._analyse_quietly, settings) as disk:
            analysis = disk.first_look()
            head = self._head(analysis)
            require_room(head, analysis.used, None)
            sink = FileSink(self._image, None, options.resume)
            try:
                return fill_live(
                    disk, self._device, analysis, head, sink, options, self._parent,
                    _results, self._progress,
                )  # fmt: skip
            except BaseException:
                sink.discard()
                raise
            finally:
                sink.close()

    def _analyse_quietly(
        self, volume: Volume, identify: Identify, known_gaps: tuple[Gap, ...]
    ) -> Analysis:
        """As `analyse`, but nothing is printed: what is frozen may hold the log."""
        quiet = _Job(
            self._device, self._image, self._options, self._consistency, self._parent, no_progress
        )
        return quiet.analyse(volume, identify, known_gaps)

    def _head(self, analysis: Analysis) -> Head:
        options, parent, device = self._options, self._parent, self._device
        bits = INCOMPATIBLE_PARTIAL if analysis.excluded else 0
        bits |= INCOMPATIBLE_INCREMENTAL if parent else 0
        bits |= INCOMPATIBLE_FREE if self._consistency == "frozen" else 0
        return Head(
            disk_size=device.size,
            chunk_size=parent.head.chunk_size if parent else options.chunk_size,
            sector_size=device.sector_size,
            split=options.split is not None,
            incompatible=bits,
            facts={
                "created": _now(),
                "tool": f"imager {VERSION}",
                "host": _host(),
                "source": device.identity.to_json(),
                "physical_sector_size": device.physical_sector_size,
                "level": options.level,
                "consistency": self._consistency,
                "note": options.note,
                "parents": [parent.reference.to_json()] if parent else [],
                "layout": analysis.layout.to_json(),
                "table": table_sectors(device, analysis.layout.table.extents),
            },
        )


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


def _results(used: int, zero: int, unreadable: Extents, instant: Instant | None = None) -> Json:
    """The manifest's facts."""
    caught: Json = {}
    if instant is not None:
        when = datetime.datetime.fromtimestamp(instant.pause.instant).astimezone()
        caught = {
            "instant": when.isoformat(timespec="milliseconds"),
            "pause": round(instant.pause.seconds, 4),
            "read_again": list(instant.rounds),
            "written_meanwhile": instant.written,
        }
    return {
        "verdict": _verdict(unreadable),
        "finished": _now(),
        "used": used,
        "zero": zero,
        "unreadable_bytes": unreadable.total,
        "unreadable": [list(pair) for pair in islice(unreadable, MAX_UNREADABLE_LISTED)],
        **caught,
    }


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
