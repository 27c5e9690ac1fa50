"""Chains of images of a small disk that changes from night to night, made as a capture makes them."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from imager.capture import CaptureOptions, CaptureResult, capture
from imager.extents import Extents
from imager.layout.analyse import Analysis
from tests.image_files import CHUNK, Disk, small_parts


def capture_disk(
    disk: Disk, image: Path, parent: Path | None = None, **options: Any
) -> CaptureResult:
    """The image of `disk` as if a file system said what is unused, and sectors did not read."""
    source = image.with_name(f"{image.name}.disk")
    source.write_bytes(disk.content)
    used = (disk.unused | disk.excluded).complement(0, disk.size)
    analysis = Analysis(disk.layout(), used, disk.excluded)
    settings = CaptureOptions(chunk_size=CHUNK, parent=parent, threads=2, **options)
    if disk.unreadable:
        settings = replace(settings, continue_on_read_error=True)
    parts = small_parts() if settings.split else nullcontext()
    try:
        with (
            mock.patch("imager.capture_job.analyse", return_value=analysis),
            failing(disk.unreadable),
            parts,
        ):
            return capture(source, image, settings)
    finally:
        source.unlink()


@contextmanager
def failing(ranges: Extents) -> Iterator[None]:
    """Reading these ranges of the source fails, as a kernel fails: short of them, then at them."""
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        (view,) = buffers
        if offset in ranges:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        following = ranges.next_start(offset)
        if following is not None and following < offset + view.nbytes:
            view = view[: following - offset]
        return real(fd, [view], offset)

    with mock.patch.object(os, "preadv", preadv) if ranges else nullcontext():
        yield


@dataclass
class Chain:
    """Images of a disk's nights, each the parent of the next, and what the disk was then."""

    folder: Path
    disks: list[Disk] = field(default_factory=list)
    results: list[CaptureResult] = field(default_factory=list)

    def path(self, number: int) -> Path:
        return self.folder / f"night-{number}.img"

    def add(self, disk: Disk, **options: Any) -> CaptureResult:
        """Capture the next night."""
        number = len(self.disks)
        parent = self.path(number - 1) if number else None
        result = capture_disk(disk, self.path(number), parent, **options)
        self.disks.append(disk)
        self.results.append(result)
        return result


def changed(
    disk: Disk,
    *changes: tuple[int, bytes],
    unused: Extents | None = None,
    excluded: Extents | None = None,
    unreadable: Extents | None = None,
) -> Disk:
    """The disk with other bytes at these offsets, and other maps if they are given."""
    content = bytearray(disk.content)
    for offset, data in changes:
        content[offset : offset + len(data)] = data
    return Disk(
        bytes(content),
        disk.unused if unused is None else unused,
        disk.excluded if excluded is None else excluded,
        disk.unreadable if unreadable is None else unreadable,
    )


def noisy_disk(chunks: int = 24, seed: int = 1) -> Disk:
    """Data that hardly compresses, zeros in between, unused ranges, an odd end."""
    noise = random.Random(seed)
    size = chunks * CHUNK + 7 * 512
    content = bytearray(size)
    for number in range(chunks):
        if number % 6 != 5:
            start = number * CHUNK
            content[start : start + CHUNK // 2] = noise.randbytes(CHUNK // 2)
    content[-100:] = noise.randbytes(100)
    unused = Extents.of([(CHUNK // 2 + 512, CHUNK), (8 * CHUNK + 1024, 11 * CHUNK)])
    return Disk(bytes(content), unused=unused)


def three_nights(folder: Path) -> Chain:
    """A full image and two incremental ones with every kind of entry, among them a delta of a delta."""
    chain = Chain(folder)
    disk = noisy_disk()
    chain.add(disk)
    noise = random.Random(2)
    disk = changed(
        disk,
        (CHUNK + 100, b"night one"),
        (3 * CHUNK, noise.randbytes(CHUNK)),
        (6 * CHUNK, bytes(2 * CHUNK)),
        (5 * CHUNK + 10, b"no zeros any more"),
        unused=disk.unused | Extents.span(15 * CHUNK + CHUNK // 2, 16 * CHUNK),
    )
    chain.add(disk)
    disk = changed(disk, (CHUNK + 200, b"night two"), (20 * CHUNK, b"x"), (disk.size - 5, b"end"))
    chain.add(disk)
    return chain
