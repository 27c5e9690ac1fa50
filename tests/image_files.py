"""Small images for tests, written straight through the writer, and read without our reader."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from imager.errors import ImageError, ImagerError, ReadFailedError
from imager.extents import Extents
from imager.image import sink
from imager.image.codec import ChunkDecoder, ChunkEncoder
from imager.image.format import INCOMPATIBLE_PARTIAL, MAX_ZERO_RUN
from imager.image.hashing import hash_algorithm
from imager.image.head import Head
from imager.image.index import Segment
from imager.image.reader import ImageReader
from imager.image.sink import FileSink, Sink
from imager.image.writer import ImageWriter, WrittenImage
from imager.layout.model import DiskLayout, PartitionTable, VolumeLayout

KIB = 1 << 10
CHUNK = 64 * KIB
UUID = bytes(range(16))


@dataclass(frozen=True)
class Disk:
    """A disk's content, and what an image is to say of it."""

    content: bytes = field(repr=False)
    unused: Extents = field(default_factory=Extents)
    excluded: Extents = field(default_factory=Extents)
    unreadable: Extents = field(default_factory=Extents)
    sector_size: int = 512

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def absent(self) -> Extents:
        return self.unused | self.excluded | self.unreadable

    @property
    def stored(self) -> bytes:
        """What the image must decode to: zeros where the disk did not hold anything."""
        stored = bytearray(self.content)
        for start, end in self.absent:
            stored[start:end] = bytes(end - start)
        return bytes(stored)

    def layout(self) -> DiskLayout:
        """No table; one volume before what is left out, one for it, one behind."""
        bounds = sorted({0, self.size, *(edge for pair in self.excluded for edge in pair)})
        volumes = [
            VolumeLayout(
                number=number,
                start=start,
                size=end - start,
                kind=None,
                label=f"volume {number}",
                uuid=None,
                usage=None,
                version=None,
                partition=None,
                stored="excluded" if start in self.excluded else "raw",
                reason="a test",
                used=end - start,
                fs_size=None,
            )
            for number, (start, end) in enumerate(pairwise(bounds), 1)
        ]
        table = PartitionTable("none", None, (), Extents())
        return DiskLayout(self.size, self.sector_size, table, tuple(volumes), ())

    def head(self, chunk_size: int = CHUNK, split: bool = False) -> Head:
        return Head(
            disk_size=self.size,
            chunk_size=chunk_size,
            sector_size=self.sector_size,
            split=split,
            incompatible=INCOMPATIBLE_PARTIAL if self.excluded else 0,
            facts={
                "created": "2026-01-02T03:04:05+00:00",
                "tool": "imager test",
                "host": {"name": "test", "system": "none", "firmware": "bios"},
                "layout": self.layout().to_json(),
            },
        )


def write_disk(
    sink: Sink,
    disk: Disk,
    chunk_size: int = CHUNK,
    hash_name: str = "blake3",
    uuid: bytes = UUID,
    split: bool = False,
    level: int = 3,
) -> WrittenImage:
    """Write the image of `disk`, as a capture would."""
    algorithm = hash_algorithm(hash_name)
    encoder = ChunkEncoder(algorithm, level, chunk_size)
    head = disk.head(chunk_size, split)
    writer = ImageWriter(sink, head, uuid, algorithm, disk.unused, disk.excluded)
    stored = disk.stored
    zeros: list[tuple[int, int]] = []

    def flush() -> None:
        if zeros:
            start, end = zeros[0][0], zeros[-1][1]
            chunk = bytes(min(chunk_size, end - start))
            writer.add_unreadable(disk.unreadable.clip(start, end))
            frame, frame_hash = encoder.zero_run(end - start)
            writer.add_zeros(len(zeros), frame, algorithm.digest(chunk), frame_hash)
            zeros.clear()

    writer.begin()
    for start in range(0, disk.size, chunk_size):
        end = min(start + chunk_size, disk.size)
        chunk = stored[start:end]
        if not any(chunk):
            if end - start < chunk_size or len(zeros) == MAX_ZERO_RUN // chunk_size:
                flush()
            zeros.append((start, end))
            continue
        flush()
        writer.add_unreadable(disk.unreadable.clip(start, end))
        frame = encoder.encode(memoryview(chunk))
        writer.add_data(frame, algorithm.digest(chunk), algorithm.frame_digest(frame))
    flush()
    verdict = "degraded" if disk.unreadable else "ok"
    try:
        return writer.finish({"verdict": verdict, "unreadable_bytes": disk.unreadable.total})
    finally:
        writer.close()


def make_image(
    path: Path,
    disk: Disk,
    chunk_size: int = CHUNK,
    hash_name: str = "blake3",
    uuid: bytes = UUID,
    split: int | None = None,
) -> WrittenImage:
    """The image of `disk` at `path`, in parts of at most `split` bytes."""
    with small_parts():
        target = FileSink(path, split)
        try:
            return write_disk(target, disk, chunk_size, hash_name, uuid, split is not None)
        finally:
            target.close()


@contextmanager
def small_parts() -> Iterator[None]:
    """Let parts be smaller than any real disk has use for."""
    with patch.object(sink, "MIN_PART", 1):
        yield


class MemorySink:
    """Keeps the image in memory; like a file, or like a pipe."""

    spool_directory = None

    def __init__(self, seekable: bool = False) -> None:
        self.seekable = seekable
        self.data = bytearray()

    def needs_part(self, size: int) -> bool:
        return False

    def begin_part(self) -> None:
        raise AssertionError("not split")

    def write(self, data: bytes) -> None:
        self.data += data

    def settle(self) -> None:
        pass

    def finish(self, opening: bytes) -> tuple[Path, ...]:
        if self.seekable:
            self.data[: len(opening)] = opening
        return ()

    def close(self) -> None:
        pass


def image_bytes(disk: Disk, uuid: bytes = UUID, hash_name: str = "blake3", level: int = 3) -> bytes:
    """The image of `disk`, in memory."""
    memory = MemorySink()
    write_disk(memory, disk, hash_name=hash_name, uuid=uuid, level=level)
    return bytes(memory.data)


def rich_disk(excluded: bool = True, seed: int = 1) -> Disk:
    """A disk whose image has three segments, data and runs of zeros, every map, and an odd end."""
    noise = random.Random(seed)
    size = 200 * CHUNK + 5 * 512
    content = bytearray(size)
    for number in range(190):
        if number % 8:  # the eighth is a chunk of zeros
            place = number * CHUNK
            content[place : place + 12] = noise.randbytes(12)
            content[place + 40_000 : place + 40_008] = noise.randbytes(8)
    content[7 * CHUNK : 7 * CHUNK + CHUNK // 4] = noise.randbytes(CHUNK // 4)
    content[189 * CHUNK : 189 * CHUNK + CHUNK // 4] = noise.randbytes(CHUNK // 4)
    content[-700:-650] = noise.randbytes(50)
    unused = [
        (1024, 79 * 512),
        (30 * CHUNK + 512, 33 * CHUNK),
        (195 * CHUNK, size - 3 * 512),
    ]
    return Disk(
        bytes(content),
        unused=Extents.of(unused),
        excluded=Extents.of([(100 * CHUNK, 110 * CHUNK)] if excluded else []),
        unreadable=Extents.of([(50 * CHUNK, 50 * CHUNK + 512), (70 * CHUNK - 512, 71 * CHUNK)]),
    )


class Frame(NamedTuple):
    """A frame of an image, found without our reader."""

    name: str
    """A record's tag, "DATA", "TEXT", "GUARD" or "SEEK"."""
    start: int
    end: int
    disk: tuple[int, int]
    """What it decodes to; empty for what is no data frame."""


def walk(image: bytes) -> list[Frame]:
    """The image's frames as its seek table lists them.

    zstd seekable format 0.1.0: entries of compressed and decompressed size before a footer of
    number of frames, descriptor and magic number, all in one skippable frame.
    """
    count, descriptor, magic = struct.unpack("<IBI", image[-9:])
    assert magic == 0x8F92EAB1 and descriptor == 0
    table = len(image) - 9 - 8 * count - 8
    assert struct.unpack_from("<II", image, table) == (0x184D2A5E, 8 * count + 9)
    frames = []
    position = disk = 0
    for stored, decoded in struct.iter_unpack("<II", image[table + 8 : -9]):
        magic = int.from_bytes(image[position : position + 4], "little")
        if magic == 0x184D2A5D:
            name = image[position + 8 : position + 12].decode()
        elif magic == 0x184D2A5C:
            name = "TEXT"
        else:
            assert magic == 0xFD2FB528
            name = "DATA" if decoded else "GUARD"
        frames.append(Frame(name, position, position + stored, (disk, disk + decoded)))
        position += stored
        disk += decoded
    assert position == table
    return [*frames, Frame("SEEK", table, len(image), (disk, disk))]


def read_disk(path: Path) -> tuple[bytes, Extents]:
    """What the image still gives of the disk, zeros where it is lost, and the lost ranges."""
    with ImageReader(path) as image:
        decoder = ChunkDecoder(image.algorithm, image.head.chunk_size)
        content = bytearray(image.head.disk_size)
        lost = []
        for segment in image.segments():
            if not isinstance(segment, Segment):
                lost.append((segment.start, segment.end))
                continue
            for start, end, entry in segment.placed(image.head.chunk_size):
                (frame,) = image.read_frames([entry])
                try:
                    if isinstance(frame, ImagerError):
                        raise frame
                    view = decoder.decode(frame, entry, end - start)
                    if view is not None:
                        content[start:end] = view
                except (ImageError, ReadFailedError):
                    if not decoder.proves_zeros(entry, end - start):
                        lost.append((start, end))
        return bytes(content), Extents.of(lost)


def join(files: Sequence[Path]) -> bytes:
    """What `cat` makes of the parts."""
    return b"".join(file.read_bytes() for file in files)
