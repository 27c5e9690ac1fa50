"""Fills an image from a disk in use: a first pass, what changed since, and one instant.

What changed is merged into a file, which can be patched (`image_merger`). In a pipe, or in parts, it
follows the first pass and replaces it (`image_reviser`).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Protocol

from imager.capture_facts import Filled
from imager.disk.source import SourceDevice
from imager.errors import NotCaughtError
from imager.extents import Extents
from imager.image.format import ChunkKind
from imager.image.head import Head, Json
from imager.image.sink import FileSink, Sink
from imager.image_filler import ImageFiller, Settings
from imager.image_merger import DiskMaps, ImageMerger
from imager.image_reviser import ImageReviser
from imager.layout.analyse import Analysis
from imager.live.disk import Instant, LiveDisk
from imager.live.patches import Patches
from imager.parent_image import ParentImage
from imager.pipeline import Progress


class Results(Protocol):
    """Makes the manifest's facts."""

    def __call__(self, used: int, zero: int, unreadable: Extents, instant: Instant | None) -> Json:
        """Of bytes in use and in chunks of zeros, what could not be read, and the instant."""


def fill_live(
    disk: LiveDisk,
    device: SourceDevice,
    head: Head,
    sink: FileSink,
    settings: Settings,
    parent: ParentImage | None,
    results: Results,
    progress: Progress,
) -> Filled:
    """Write and finish the image of a disk that is followed already.

    `head` is what is known of it before the first pass. Raises as `LiveDisk.catch` and the filler do;
    the sink is then of no use.
    """
    patches = Patches(device.readinto, sink.spool_directory)
    try:
        with ImageFiller(device, disk.first, head, sink, settings, progress, parent) as filler:
            if parent is not None:
                parent.require_kept()
            begun = time.monotonic()
            filler.fill(progress)
            filler.end_pass()
            rate = disk.first.used.total / max(time.monotonic() - begun, 1e-3)
            progress("changes", 0, 0)
            instant = disk.catch(patches, rate)
            after = instant.analysis
            facts = {**head.facts, "layout": after.layout.to_json(), "table": instant.table}
            facts["consistency"] = instant.consistency
            final = replace(head, facts=facts)
            before = disk.first.used - disk.first.excluded
            merger = ImageMerger(filler, sink, patches, final, before, _maps(after, device))
            del before
            disk.forget_first()
            merged = merger.merge(progress)
            try:
                unreadable = (filler.unreadable() - patches.covered) & after.used
                written = merged.writer.finish(
                    results(after.used.total, merged.zero, unreadable, instant)
                )
            finally:
                merged.writer.close()
        return Filled(
            after,
            written,
            filler.uuid,
            merged.zero,
            merged.inherited,
            unreadable,
            instant=instant,
        )
    finally:
        patches.close()


def fill_live_revised(
    disk: LiveDisk,
    device: SourceDevice,
    head: Head,
    sink: Sink,
    settings: Settings,
    parent: ParentImage | None,
    results: Results,
    progress: Progress,
) -> Filled:
    """The same for a sink that can only be appended to; `head` says that the image is revised."""
    with ImageFiller(device, disk.first, head, sink, settings, progress, parent) as filler:
        if parent is not None:
            parent.require_kept()
        filler.fill(progress)
        filler.end_pass()
        used = disk.first.used - disk.first.excluded
        reviser = ImageReviser(filler, used, device.size, head.chunk_size)
        del used
        progress("changes", 0, 0)
        instant = disk.catch(reviser, reviser.rate())
        if instant.table != head.facts["table"]:
            raise NotCaughtError(
                "the partition table changed while the disk was captured: nothing of this capture "
                "is of use; try again"
            )
        disk.forget_first()
        reviser.flush()
        filler.restate_runs(reviser.used)
        filler.writer.end_chunks()
        sizes = dict.fromkeys(ChunkKind, 0)
        for segment in filler.writer.segments_in_force():
            for start, end, entry in segment.placed(head.chunk_size):
                sizes[ChunkKind(entry.kind)] += end - start
        zero, inherited = sizes[ChunkKind.ZERO], sizes[ChunkKind.PARENT]
        unreadable = filler.unreadable()
        facts = results(reviser.used.total, zero, unreadable, instant)
        written = filler.finish({**facts, "plain_zstd": _NOT_PLAIN})
    return Filled(
        instant.analysis,
        written,
        filler.uuid,
        zero,
        inherited,
        unreadable,
        instant=instant,
        revised=True,
    )


_NOT_PLAIN = "no: some chunks replace others; imager export makes an image that zstd can restore"


def _maps(analysis: Analysis, device: SourceDevice) -> DiskMaps:
    used = analysis.used - analysis.excluded
    unused = used.complement(0, device.size) - analysis.excluded
    return DiskMaps(used, unused, analysis.excluded)
