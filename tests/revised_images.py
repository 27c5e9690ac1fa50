"""Revised images, written through the writer, and a reader of them that knows only docs/format.md."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import zstandard

from imager.extents import Extents
from imager.image.codec import ChunkEncoder
from imager.image.format import INCOMPATIBLE_REVISED
from imager.image.hashing import hash_algorithm
from imager.image.sink import FileSink, Sink
from imager.image.writer import ImageWriter
from imager.zero_runs import ZeroRuns
from tests.image_files import CHUNK, UUID, Disk, MemorySink, small_parts, walk

Round = dict[int, bytes]
"""New content of chunks, by number."""


@dataclass(frozen=True)
class History:
    """A disk as it was first read, and what was read again."""

    first: Disk
    rounds: tuple[Round, ...]

    @property
    def last(self) -> Disk:
        """The disk as the image has it: what was read again is in use as a whole."""
        content = bytearray(self.first.stored)
        again = Extents()
        for each in self.rounds:
            for number, chunk in each.items():
                start = number * CHUNK
                content[start : start + len(chunk)] = chunk
                again |= Extents.span(start, start + len(chunk))
        return replace(self.first, content=bytes(content), unused=self.first.unused - again)


def make_history(seed: int, rounds: int = 3, chunks: int = 150) -> History:
    """Data, zeros and unused space, of which some chunks change, in each round others."""
    rng = random.Random(seed)
    size = (chunks - 1) * CHUNK + 5 * 512

    def content(number: int) -> bytes:
        length = min(CHUNK, size - number * CHUNK)
        if rng.random() < 0.4:
            return bytes(length)
        return rng.randbytes(16).ljust(length, b"\0")

    first = b"".join(content(number) for number in range(chunks))
    unused = [(40 * CHUNK + 512, 60 * CHUNK), (99 * CHUNK, 140 * CHUNK)]
    made = []
    for _ in range(rounds):
        touched = [number for number in range(chunks) if rng.random() < 0.15]
        made.append({number: content(number) for number in [*touched, chunks - 1]})
    return History(Disk(first, Extents.of(unused)), tuple(made))


def write_revised(sink: Sink, history: History, split: bool = False) -> None:
    """Write the image: the first pass, and one revision after the other."""
    disk, algorithm = history.first, hash_algorithm("blake3")
    encoder = ChunkEncoder(algorithm, 3, CHUNK)
    head = replace(disk.head(split=split), incompatible=INCOMPATIBLE_REVISED)
    writer = ImageWriter(sink, head, UUID, algorithm, disk.unused, disk.excluded)
    zeros = ZeroRuns(writer, encoder, CHUNK)

    def add(start: int, chunk: bytes) -> None:
        if any(chunk):
            zeros.flush()
            frame = encoder.encode(memoryview(chunk))
            writer.add_data(frame, algorithm.digest(chunk), algorithm.frame_digest(frame))
        else:
            zeros.add(start, start + len(chunk), ())

    writer.begin()
    stored = disk.stored
    for start in range(0, disk.size, CHUNK):
        add(start, stored[start : start + CHUNK])
    zeros.flush()
    writer.end_chunks()
    unused = disk.unused
    for each in history.rounds:
        position = -1
        for number, chunk in each.items():
            unused -= Extents.span(number * CHUNK, number * CHUNK + len(chunk))
        for number, chunk in sorted(each.items()):
            start = number * CHUNK
            if start != position:
                zeros.flush()
                writer.revise(start, unused)
            add(start, chunk)
            position = start + CHUNK
        zeros.flush()
    writer.finish({"verdict": "ok", "unreadable_bytes": 0})
    writer.close()


def revised_bytes(history: History) -> bytes:
    """The image, as it comes from a pipe."""
    memory = MemorySink()
    write_revised(memory, history)
    return bytes(memory.data)


def write_revised_parts(path: Path, history: History, split: int) -> None:
    """The image in parts of at most `split` bytes."""
    with small_parts():
        sink = FileSink(path, split)
        write_revised(sink, history, split=True)
        sink.close()


def read_naively(image: bytes) -> bytes:
    """The disk: each segment's frames in the order of the file, the later ones over the earlier."""
    (size,) = (int(text) for text in _between(image, b'"disk_size":', b","))
    disk = bytearray(size)
    for frame in walk(image):
        if frame.name != "SEGM":
            continue
        _, entries, start = struct.unpack_from("<IIQ", image, frame.start + 32)
        for number in range(entries):
            place = frame.start + 64 + 72 * number
            offset, stored, chunks, kind = struct.unpack_from("<QIIB", image, place)
            end = min(start + chunks * CHUNK, size)
            data = image[offset : offset + stored]
            assert kind in (1, 2)
            disk[start:end] = zstandard.ZstdDecompressor().decompress(data)
            start = end
    return bytes(disk)


def _between(data: bytes, before: bytes, after: bytes) -> list[bytes]:
    return [data.split(before, 1)[1].split(after, 1)[0]]
