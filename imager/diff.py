"""Diff: where two images of one disk differ, range by range and partition by partition."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imager.check import layout_of
from imager.errors import ImageError, UsageError
from imager.extents import Extents, ExtentsBuilder
from imager.image.chain import Chain
from imager.image.reader import LostRange
from imager.layout.model import DiskLayout, VolumeLayout
from imager.pipeline import Progress, no_progress, ordered_map, thread_count

BLOCK = 4096
"""Changed ranges are whole blocks of this many bytes, counted from the chunk's beginning."""


@dataclass(frozen=True)
class DiffResult:
    """What two images differ in."""

    changed: Extents
    """Disk ranges whose content, as the images store it, is not the same: unused space is zeros."""
    disk_size: int
    layout: DiskLayout
    """Of the second image."""
    seconds: float

    def volumes(self) -> Iterator[tuple[VolumeLayout, Extents]]:
        """The second image's volumes that changed, each with what changed in it."""
        for volume in self.layout.volumes:
            inside = self.changed.clip(volume.start, volume.end)
            if inside:
                yield volume, inside

    def outside(self) -> Extents:
        """What changed outside of all volumes: partition table, boot loader, gaps."""
        return self.changed - Extents.of((v.start, v.end) for v in self.layout.volumes)


def diff(
    first: Path,
    second: Path,
    threads: int | None = None,
    progress: Progress = no_progress,
    parents: Sequence[Path] = (),
) -> DiffResult:
    """Compare two images, by the chunks' hashes, and where these differ by content.

    Their ancestors lie beside them or in one of the folders `parents`.

    Raises UsageError where they are of disks of different sizes, or cut into other chunks; ImageError
    where either is incomplete or damaged in a place that matters.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        chains = [stack.enter_context(Chain(path, parents)) for path in (first, second)]
        for chain in chains:
            chain.require_complete()
        one, other = chains
        if one.head.disk_size != other.head.disk_size:
            raise UsageError(
                f"the images are of disks of {one.head.disk_size} and {other.head.disk_size} bytes"
            )
        if one.head.chunk_size != other.head.chunk_size or (
            one.image.algorithm != other.image.algorithm
        ):
            raise UsageError(
                "the images have chunks of other sizes or other hashes: they cannot be compared"
            )
        changed = ExtentsBuilder()

        def compare(run: _Run) -> list[tuple[int, int]]:
            return _differing(one, other, run)

        runs = _differing_runs(one, other)
        with closing(ordered_map(compare, runs, thread_count(threads))) as results:
            for ranges in results:
                for start, end in ranges:
                    changed.add(start, end)
                    progress("diff", end, one.head.disk_size)
        return DiffResult(
            changed=changed.build(),
            disk_size=other.head.disk_size,
            layout=layout_of(other.head),
            seconds=time.monotonic() - begun,
        )


class _Run(NamedTuple):
    """Chunks with one content hash."""

    start: int
    end: int
    content_hash: bytes


def _runs(chain: Chain) -> Iterator[_Run]:
    for piece in chain.pieces():
        if isinstance(piece, LostRange):
            why = piece.reason or "a segment and its copy are damaged"
            raise ImageError(f"{chain.image.file.path} is damaged: {why}")
        for start, end, entry in piece.segment.placed(chain.head.chunk_size):
            yield _Run(start, end, entry.content_hash)


def _differing_runs(one: Chain, other: Chain) -> Iterator[_Run]:
    """Single chunks in which the images differ."""
    chunk_size = one.head.chunk_size
    theirs = _runs(other)
    there = _Run(0, 0, b"")
    for start, end, content_hash in _runs(one):
        while start < end:
            if there.end <= start:
                there = next(theirs)
            stop = min(end, there.end)
            if content_hash != there.content_hash:
                for place in range(start, stop, chunk_size):
                    yield _Run(place, min(place + chunk_size, stop), content_hash)
            start = stop


def _differing(one: Chain, other: Chain, run: _Run) -> list[tuple[int, int]]:
    """The blocks of a chunk that differ."""
    before = bytes(one.read_chunk(one.find_chunk(run.start)))
    after = bytes(other.read_chunk(other.find_chunk(run.start)))
    return [
        (run.start + place, min(run.start + place + BLOCK, run.end))
        for place in range(0, len(before), BLOCK)
        if before[place : place + BLOCK] != after[place : place + BLOCK]
    ]
