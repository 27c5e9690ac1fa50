"""exFAT volumes from mkfs.exfat, filled and aged through FUSE, and the tests' own view of them."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from imager.extents import Extents
from imager.filesystems.exfat.boot import checksum
from tests.loop import LoopDevice, mounted, run

KIB, MIB = 1 << 10, 1 << 20


class Case(NamedTuple):
    size: int
    options: str = ""
    sector: int = 512


CASES = {
    "smallest": Case(MIB, "-b 4K -c 512"),
    "small clusters": Case(12 * MIB, "-c 512"),
    "usual": Case(40 * MIB, "-c 4K -L label"),
    "packed bitmap": Case(40 * MIB, "-c 4K --pack-bitmap"),
    "large clusters": Case(130 * MIB, "-c 1M"),
    "sectors of 4096": Case(48 * MIB, "-c 8K", 4096),
}


def make(path: Path, case: Case) -> Path:
    """A new, empty volume."""
    with LoopDevice(path, case.size, case.sector) as loop:
        run("mkfs.exfat", *case.options.split(), loop.path)
    return path


@contextmanager
def opened(path: Path, place: Path, case: Case) -> Iterator[Path]:
    """`path` mounted through FUSE: this kernel need not know exFAT."""
    with (
        LoopDevice(path, 0, case.sector) as loop,
        mounted(loop.path, place, fs_type="exfat-fuse"),
    ):
        yield place


def fill(place: Path, room: int, seed: int) -> None:
    """Files of many sizes in several directories, many of them deleted again; a file in the holes."""
    chance = random.Random(seed)
    folders = [
        place,
        place / "first",
        place / "first" / "a folder with a long name",
        place / "second",
    ]
    for folder in folders[1:]:
        folder.mkdir()
    files = []
    for number in range(60):
        size = chance.choice((0, 1, 511, 4096, 4097, chance.randrange(1, max(room // 60, 2))))
        files.append(folders[number % 4] / f"a file with a long name {number}.bin")
        files[-1].write_bytes(chance.randbytes(size))
    chance.shuffle(files)
    for file in files[:25]:
        file.unlink()
    (place / "in pieces").write_bytes(chance.randbytes(room // 12))
    os.truncate(files[30], room // 50)
    for file in files[40:48]:
        file.unlink()


def fsck(path: Path) -> bool:
    """Whether fsck.exfat finds the volume clean."""
    done = subprocess.run(["fsck.exfat", "-n", path], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "clean" in done.stdout


def content(place: Path) -> dict[str, bytes | None]:
    """Every file and directory below `place`."""
    return {
        str(item.relative_to(place)): item.read_bytes() if item.is_file() else None
        for item in sorted(place.rglob("*"))
    }


class Places(NamedTuple):
    """The tests' own view of a volume's layout; offsets and sizes in bytes."""

    sector: int
    fat: int
    heap: int
    cluster: int
    clusters: int
    root: int
    size: int
    bitmap: int
    up_case: int

    def offset(self, number: int) -> int:
        """Where a cluster begins."""
        return self.heap + (number - 2) * self.cluster


def places(image: bytes | bytearray) -> Places:
    """The layout of an image whose bitmap and table are in one run of clusters each."""
    length, fat, _fat_length, heap, clusters, root = struct.unpack_from("<QIIIII", image, 72)
    sector, cluster = 1 << image[108], 1 << image[108] + image[109]
    start = heap * sector + (root - 2) * cluster
    entries = {
        image[at]: struct.unpack_from("<I", image, at + 20)[0]
        for at in range(start, start + cluster, 32)
        if image[at] in (0x81, 0x82)
    }
    shape = Places(
        sector, fat * sector, heap * sector, cluster, clusters, root, length * sector, 0, 0
    )
    return shape._replace(bitmap=shape.offset(entries[0x81]), up_case=shape.offset(entries[0x82]))


def expected(image: bytes | bytearray) -> Extents:
    """What must be kept by the bitmap: all but the clusters whose bit is 0, looked at one by one."""
    at = places(image)
    free = [
        (at.offset(number + 2), at.offset(number + 3))
        for number in range(at.clusters)
        if not image[at.bitmap + number // 8] >> number % 8 & 1
    ]
    return Extents.of(free).complement(0, at.size)


def seal(image: bytearray) -> None:
    """Make both boot regions' checksums right again."""
    sector = 1 << image[108]
    for start in (0, 12 * sector):
        region = bytearray(image[start : start + 11 * sector])
        for volatile in (112, 107, 106):
            del region[volatile]
        total = checksum(bytes(region)).to_bytes(4, "little") * (sector // 4)
        image[start + 11 * sector : start + 12 * sector] = total


def fragmented(path: Path) -> Path:
    """One cluster in use of each 64, set in the bitmap."""
    run("mkfs.exfat", "-c", "32K", path)
    with path.open("r+b") as file:
        at = places(file.read(512 * MIB))
        file.seek(at.bitmap)
        size = -(-at.clusters // 8)
        own = file.read(size).rstrip(b"\0")
        file.seek(at.bitmap)
        file.write(own + (b"\1" + bytes(7)) * ((size - len(own)) // 8))
    return path
