"""Fills an image from a disk in use: a first pass, what changed since, one instant, and the merge."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Protocol

from imager.capture_facts import Filled
from imager.disk.source import SourceDevice
from imager.extents import Extents
from imager.image.head import Head, Json
from imager.image.sink import FileSink
from imager.image_filler import ImageFiller, Settings
from imager.image_merger import DiskMaps, ImageMerger
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
    first: Analysis,
    head: Head,
    sink: FileSink,
    settings: Settings,
    parent: ParentImage | None,
    results: Results,
    progress: Progress,
) -> Filled:
    """Write and finish the image of a disk that is followed already.

    `first` and `head` are what is known of it before the first pass. An interrupted live capture
    leaves nothing that could be gone on with, so what `sink` has is overwritten. Raises as
    `LiveDisk.catch` and the filler do; the sink is then of no use.
    """
    sink.truncate(0)
    patches = Patches(device.readinto, sink.spool_directory)
    try:
        with ImageFiller(device, first, head, sink, settings, progress, parent) as filler:
            if parent is not None:
                parent.require_kept()
            begun = time.monotonic()
            filler.fill(progress)
            filler.writer.end_chunks()
            rate = first.used.total / max(time.monotonic() - begun, 1e-3)
            progress("changes", 0, 0)
            instant = disk.catch(patches, rate)
            after = instant.analysis
            facts = {**head.facts, "layout": after.layout.to_json(), "table": instant.table}
            final = replace(head, facts=facts)
            merger = ImageMerger(
                filler, sink, patches, final, _maps(first, device), _maps(after, device)
            )
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


def _maps(analysis: Analysis, device: SourceDevice) -> DiskMaps:
    used = analysis.used - analysis.excluded
    unused = used.complement(0, device.size) - analysis.excluded
    return DiskMaps(used, unused, analysis.excluded)
