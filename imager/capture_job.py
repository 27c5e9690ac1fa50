"""One capture, step by step: of a disk at rest, or of one in use."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

from imager.capture_facts import Filled, manifest_facts
from imager.capture_options import CaptureOptions
from imager.description import describe
from imager.disk.safety import mounted_read_write, same_disk
from imager.disk.source import SourceDevice
from imager.errors import ImageError, RefusedError, UsageError, WriteFailedError
from imager.filesystems import Volume
from imager.image.format import INCOMPATIBLE_FREE, INCOMPATIBLE_REVISED
from imager.image.head import Head
from imager.image.room import require_room
from imager.image.sink import FileSink, PipeSink, Sink
from imager.image_filler import ImageFiller
from imager.layout.analyse import Analysis, Identify, analyse
from imager.layout.blkid import identify
from imager.layout.luks.keys import Keys
from imager.layout.model import Gap
from imager.parent_image import ParentImage
from imager.pipeline import Progress, no_progress

_BUSY = "the disk was in use"
LIVE = ("frozen", "snapshot")
"""The disk is in use, and caught at one instant."""

_SNAPSHOTS: Mapping[str, Literal["never", "if needed", "always"]] = {
    "auto": "if needed",
    "frozen": "never",
    "snapshot": "always",
}
_PIPE_CHUNK = 1 << 18
"""Bytes of a chunk of a disk in use that goes to a pipe: chunks are read again whole there..."""
_SMALL_CHUNKS_UP_TO = 1 << 40
"""...on disks of up to so many bytes, for the seek table has 8 bytes for each chunk."""


def settle_consistency(
    device: SourceDevice, image: Path | int | None, options: CaptureOptions
) -> str:
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
    if wanted == "snapshot" and _only_appended(image, options):
        raise RefusedError(
            "what is read from snapshots is patched into the image, which a pipe or parts cannot be: "
            "write it to one file, or leave out --consistency snapshot"
        )
    return "snapshot" if wanted == "snapshot" else "frozen"


def _only_appended(image: Path | int | None, options: CaptureOptions) -> bool:
    """Whether what was written cannot be patched: then the image of a disk in use is a revised one."""
    return isinstance(image, int) or options.split is not None


def open_parent(options: CaptureOptions, progress: Progress) -> ParentImage | nullcontext[None]:
    """The image that the new one is to refer to, if there is to be one; errors as of `ParentImage`."""
    if options.parent is None:
        return nullcontext()
    return ParentImage(options.parent, options.distrusted, progress)


class CaptureJob:
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
        """Of an open source into `image`; `consistency` as `settle_consistency` says."""
        self._device = device
        self._image = image
        self._options = options
        self._consistency = consistency
        self._parent = parent
        self._progress = progress
        self._keys = Keys(options.unlock)

    def analyse(
        self,
        volume: Volume,
        identify: Identify = identify,
        known_gaps: tuple[Gap, ...] = (),
        progress: Progress | None = None,
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
            keys=self._keys,
            progress=progress or self._progress,
        )

    def fill(self) -> Filled:
        """A disk at rest, or one that is stored as a power cut would leave it."""
        analysis = self.analyse(self._device)
        head = self._head(analysis)
        if self._parent is None:
            require_room(head, analysis.used, self._options.split)
        with (
            _open_sink(self._image, self._options) as sink,
            ImageFiller(
                self._device, analysis, head, sink, self._options, self._progress, self._parent
            ) as filler,
        ):
            self._require_parent(sink)
            filler.fill(self._progress)
            unreadable = filler.unreadable()
            results = manifest_facts(analysis.used.total, filler.zero, unreadable)
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
        # Most captures do without all this, and start faster.
        from imager.live.disk import LiveDisk, LiveSettings
        from imager.live.precopy import Limits
        from imager.live_capture import fill_live, fill_live_revised

        options = self._options
        revised = _only_appended(self._image, options)
        settings = LiveSettings(
            Limits(options.target_pause, options.max_pause),
            options.before_freeze,
            options.after_thaw,
            "never" if revised else _SNAPSHOTS[options.consistency],
            options.inside_freeze,
        )
        with LiveDisk(self._device, self._analyse_quietly, settings) as disk:
            disk.first_look()
            head = self._head(disk.first)
            if self._parent is None:
                require_room(head, disk.first.used, options.split)
            with _open_sink(self._image, options) as sink:
                if isinstance(sink, FileSink):
                    # An interrupted live capture leaves nothing that could be gone on with.
                    sink.truncate(0)
                try:
                    if isinstance(sink, FileSink) and not revised:
                        return fill_live(
                            disk, self._device, head, sink, options, self._parent,
                            manifest_facts, self._progress,
                        )  # fmt: skip
                    return fill_live_revised(
                        disk, self._device, head, sink, options, self._parent,
                        manifest_facts, self._progress,
                    )  # fmt: skip
                except BaseException:
                    if isinstance(sink, FileSink):
                        sink.discard()
                    raise

    def _require_parent(self, sink: Sink) -> None:
        """Leave nothing behind that refers to an image which was given up before `sink` said so."""
        if self._parent is None:
            return
        try:
            self._parent.require_kept()
        except ImageError:
            if isinstance(sink, FileSink):
                sink.discard()
            raise

    def _analyse_quietly(
        self, volume: Volume, identify: Identify, known_gaps: tuple[Gap, ...]
    ) -> Analysis:
        """As `analyse`, but nothing is printed: what is frozen may hold the log."""
        return self.analyse(volume, identify, known_gaps, no_progress)

    def _head(self, analysis: Analysis) -> Head:
        live = self._consistency in LIVE
        revised = live and _only_appended(self._image, self._options)
        bits = INCOMPATIBLE_REVISED if revised else INCOMPATIBLE_FREE if live else 0
        options = self._options
        if revised and isinstance(self._image, int) and self._device.size <= _SMALL_CHUNKS_UP_TO:
            options = replace(options, chunk_size=min(options.chunk_size, _PIPE_CHUNK))
        return describe(self._device, analysis, options, self._consistency, self._parent, bits)


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
    except OSError as error:
        if error.errno != errno.ENOSPC or not isinstance(image, Path):
            raise
        # The sink's own errors say what they are of; temporary files have no name.
        raise WriteFailedError(
            f"{image}: the disk is full: there is no room for the temporary files of the capture"
        ) from None
    finally:
        sink.close()
