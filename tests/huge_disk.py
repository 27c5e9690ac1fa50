"""A full image of a huge disk, every chunk of it in use and different, that takes no huge disk to make.

The content hashes are those of short words, one for each chunk, and all frames are the same few bytes:
no chunk of it can be decoded. A night in which nothing changed decodes none; it goes through the
program as any other, but that reading a chunk gives its word.

    python -m tests.huge_disk FOLDER GIB     as a process of its own; prints sizes, seconds, memory
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from imager.capture import CaptureOptions, CaptureResult, capture
from imager.chunks import ChunkReader, ChunkRun
from imager.extents import Extents
from imager.image.codec import ChunkEncoder
from imager.image.hashing import hash_algorithm
from imager.image.sink import FileSink
from imager.image.writer import ImageWriter
from imager.layout.analyse import Analysis
from imager.layout.model import DiskLayout, PartitionTable
from tests.image_files import UUID, Disk

CHUNK = 1 << 20
_NIGHTS = 2


def word(number: int) -> bytes:
    """What stands for the content of a chunk."""
    return b"chunk %d" % number


def forge(image: Path, chunks: int) -> Path:
    """The full image."""
    algorithm = hash_algorithm("blake3")
    frame = ChunkEncoder(algorithm, 3, CHUNK).encode(bytearray(b"\1" * CHUNK))
    frame_hash = algorithm.frame_digest(frame)
    head = replace(Disk(b"").head(CHUNK), disk_size=chunks * CHUNK)
    head = replace(head, facts={**head.facts, "layout": _layout(chunks).to_json()})
    sink = FileSink(image)
    writer = ImageWriter(sink, head, UUID, algorithm, Extents(), Extents())
    try:
        writer.begin()
        for number in range(chunks):
            writer.add_data(frame, algorithm.digest(word(number)), frame_hash)
        writer.finish({"verdict": "ok"})
    finally:
        writer.close()
        sink.close()
    return image


def unchanged_night(parent: Path, image: Path, chunks: int) -> CaptureResult:
    """Capture the disk against `parent`; nothing has changed since."""
    disk = image.with_name("disk")
    with disk.open("wb") as file:
        file.truncate(chunks * CHUNK)
    used = Extents.span(0, chunks * CHUNK)
    analysis = Analysis(_layout(chunks), used, Extents())

    def read(_: ChunkReader, run: ChunkRun) -> tuple[bytearray, list[tuple[int, int]]]:
        return bytearray(word(run.start // CHUNK)), []

    with (
        mock.patch("imager.capture_job.analyse", return_value=analysis),
        mock.patch.object(ChunkReader, "read", read),
    ):
        return capture(disk, image, CaptureOptions(parent=parent, threads=4))


def _layout(chunks: int) -> DiskLayout:
    return DiskLayout(chunks * CHUNK, 512, PartitionTable("none", None, (), Extents()), (), ())


def main() -> None:
    folder, chunks = Path(sys.argv[1]), int(sys.argv[2]) << 10
    images = [forge(folder / "0", chunks)]
    Path("/proc/self/clear_refs").write_text("5")  # only the nights' memory counts
    sizes, seconds = [], []
    for night in range(1, _NIGHTS + 1):
        begun = time.monotonic()
        result = unchanged_night(images[-1], folder / f"{night}", chunks)
        assert result.inherited == chunks * CHUNK and not result.parent_problem
        seconds.append(round(time.monotonic() - begun, 2))
        sizes.append(result.image.size)
        images.append(folder / f"{night}")
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+)", status)
    print(json.dumps({"sizes": sizes, "seconds": seconds, "peak": int(peak) >> 10}))


if __name__ == "__main__":
    main()
