"""Images changed at random: only errors of ours, nothing unnoticed, no wrong byte on a target."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from imager.check import check
from imager.errors import ImagerError
from imager.image.origin import FileOrigin
from imager.image.stream import ImageStream
from imager.restore import RestoreOptions, plan_restore, restore
from tests.forgery import record
from tests.image_files import CHUNK, Disk, image_bytes, rich_disk, walk

HUGE = (1 << 64) - 1


def mutated(data: bytes, noise: random.Random) -> bytes:
    """`data` with some bytes changed, moved, cut out or put in."""
    out = bytearray(data)
    for _ in range(noise.randint(1, 4)):
        start = noise.randrange(len(out))
        end = min(len(out), start + noise.choice([1, 2, 4, 8, 100, 4096]))
        match noise.randrange(6):
            case 0:
                out[start] ^= 1 << noise.randrange(8)
            case 1:
                out[start:end] = noise.randbytes(end - start)
            case 2:
                out[start:end] = bytes(end - start)
            case 3:
                del out[start:end]
            case 4:
                out[start:start] = out[noise.randrange(len(out)) :][: end - start]
            case _:
                other = noise.randrange(len(out))
                out[start:end] = out[other : other + end - start].ljust(end - start, b"\0")
        if not out:
            break
    return bytes(out)


def resealed(data: bytes, noise: random.Random) -> bytes:
    """`data` with a number in one of its records changed, and the record's hash set right."""
    out = bytearray(data)
    frames = [f for f in walk(data) if f.name not in ("DATA", "TEXT", "GUARD", "SEEK")]
    frame = noise.choice(frames)
    payload = bytearray(out[frame.start + 32 : frame.end - 32])
    width = noise.choice([1, 2, 4, 8])
    place = noise.randrange(min(len(payload), 600) // width) * width
    number = noise.choice(
        [0, 1, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, HUGE, noise.getrandbits(64)]
    )
    payload[place : place + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    out[frame.start : frame.end] = record(frame.name.encode(), bytes(payload))
    return bytes(out)


def exercise(folder: Path, data: bytes, stored: bytes, changed: bool) -> None:
    """Whatever it is, only errors of ours come, and no wrong byte is taken for a right one."""
    path, target = folder / "fuzz.img", folder / "target"
    path.write_bytes(data)
    try:
        assert check(path, threads=1).verdict == ("failed" if changed else "degraded")
    except ImagerError:
        assert changed
    try:
        with path.open("rb") as file:
            stream = ImageStream(file.fileno())
            for _ in stream.segments():
                pass
            list(stream.segments_again())
            stream.close()
    except ImagerError:
        pass
    target.write_bytes(b"\xaa" * len(stored))
    try:
        origin = FileOrigin(path)
        try:
            options = RestoreOptions(salvage=True, threads=1, read_back=False)
            restore(origin, plan_restore(origin, target, options))
        finally:
            origin.close()
    except ImagerError:
        pass
    content = target.read_bytes()
    assert len(content) == len(stored)
    for start in range(0, len(stored), 512):
        sector = content[start : start + 512]
        assert sector in (stored[start : start + 512], b"\xaa" * len(sector), bytes(len(sector)))


RICH = rich_disk(excluded=False)
FUZZ_DISK = Disk(
    RICH.content[: 80 * CHUNK], RICH.unused.clip(0, 80 * CHUNK), unreadable=RICH.unreadable
)
FUZZ_SECONDS = float(os.environ.get("IMAGER_FUZZ_SECONDS", "5"))


@pytest.mark.timeout(FUZZ_SECONDS + 300)
def test_fuzz(tmp_path: Path) -> None:
    data = image_bytes(FUZZ_DISK)
    seed = int.from_bytes(os.urandom(4), "little")
    noise = random.Random(seed)
    tried = 0
    until = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < until:
        change = noise.choice([mutated, mutated, resealed])
        image = change(data, noise)
        try:
            exercise(tmp_path, image, FUZZ_DISK.stored, image != data)
        except BaseException:
            print(f"seed {seed}, try {tried}")
            raise
        tried += 1
    assert tried > 5
