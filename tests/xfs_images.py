"""XFS images for tests: made and filled by the system's own tools, judged by them too."""

from __future__ import annotations

import ctypes
import os
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from tests.ext_images import copy
from tests.loop import LoopDevice, run, sparse_file
from tests.loop import mounted as loop_mounted
from tests.volumes import FileVolume

MIB = 1 << 20
SMALL = 24 * MIB

_PUNCH_HOLE = 0x2 | 0x1  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)


def make(path: Path, size: int, *options: str) -> Path:
    """A sparse file of `size` bytes with a new file system, which may be smaller than is sensible."""
    run("mkfs.xfs", "--unsupported", "-q", *options, sparse_file(path, size))
    return path


def make_small(path: Path, *options: str) -> Path:
    """A file system of a few MiB in use, with two groups, made within a tenth of a second."""
    return make(path, 2 * SMALL, "-d", "agcount=2", "-l", "size=8m,agnum=0", *options)


def small_volume(folder: Path, crashed: bool = False) -> Path:
    """A file system as small as it can be, with some files, for fuzzing; with `crashed` its log is dirty."""
    image = make(folder / "xfs", 16 * MIB, "-b", "size=1024")
    with mounted(image) as place:
        fragment(place / "holes", 2 * MIB, 8192)
        for file in write_files(place, 12, 1, 20_000)[::2]:
            sync(place)
            file.unlink()
        if crashed:
            sync(place)
            crash(place)
    return image


@contextmanager
def mounted(image: Path, *options: str) -> Iterator[Path]:
    """The directory where the kernel has mounted `image`, writable."""
    place = image.with_name(image.name + ".mnt")
    with LoopDevice(image) as device, loop_mounted(device.path, place, *options, fs_type="xfs"):
        yield place


def sync(place: Path) -> None:
    """Have everything in the log, though not in its place."""
    run("sync", "-f", place)


def crash(place: Path, flush: bool = True) -> None:
    """Have the kernel write nothing any more, as after a power cut; with `flush` once the log is out."""
    run("xfs_io", "-x", "-c", "shutdown -f" if flush else "shutdown", place)


def write_files(folder: Path, count: int, seed: int, most: int = 200_000) -> list[Path]:
    """`count` files of up to `most` bytes of noise."""
    noise = random.Random(seed)
    files = [folder / f"{seed}-{number}" for number in range(count)]
    for file in files:
        file.write_bytes(noise.randbytes(noise.randrange(most)))
    return files


def fragment(path: Path, size: int, step: int, hole: int = 4096) -> None:
    """A new file of `size` bytes, never written, of which `hole` bytes are freed every `step`."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for at in range(0, size, step):
            done = _libc.fallocate(
                file.fileno(), _PUNCH_HOLE, ctypes.c_int64(at), ctypes.c_int64(hole)
            )
            assert done == 0, os.strerror(ctypes.get_errno())


def fill(place: Path, files: int = 40) -> None:
    """Files, folders, a sparse file, and holes where files were deleted."""
    folder = place / "folder"
    folder.mkdir()
    written = write_files(folder, files, 1)
    with (place / "sparse").open("wb") as sparse:
        for at in (0, 3 * MIB, 700 * MIB):
            sparse.seek(at)
            sparse.write(b"x" * 5000)
    (place / "link").symlink_to("folder/" + "n" * 200)
    os.setxattr(place / "sparse", "user.large", b"v" * 9000)
    for file in written[::3]:
        file.unlink()
    fragment(place / "holes", 4 * MIB, 8192)


def contents(place: Path) -> dict[str, bytes]:
    """Every file below a directory and what is in it."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.stat().st_size < 64 * MIB
    }


def allocated(image: Path) -> Allocation:
    """What the reader under test says of `image`."""
    return read_allocation("xfs", FileVolume(image))


def xfs_db(image: Path, *commands: str) -> str:
    """What xfs_db answers."""
    words = [word for command in commands for word in ("-c", command)]
    return run("xfs_db", "-r", *words, image)


def allocated_by_xfs_db(image: Path) -> Extents:
    """All that xfs_db does not find in the trees of free extents; it calls free lists free as well."""
    numbers = xfs_db(image, "sb 0", "p blocksize dblocks agblocks agcount")
    block, blocks, group, count = (int(number) for number in re.findall(r"= (\d+)", numbers))
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+)$", xfs_db(image, "freesp -d"), re.MULTILINE)
    free = Extents.of(
        ((int(agno) * group + int(at)) * block, (int(agno) * group + int(at) + int(size)) * block)
        for agno, at, size in rows
    )
    kept = Extents.of(
        ((number * group + at) * block, (number * group + at + 1) * block)
        for number in range(count)
        for at in free_list(image, number)
    )
    return Extents.span(0, blocks * block) - free | kept


def free_list(image: Path, group: int) -> list[int]:
    """The blocks of a group's free list, as xfs_db shows it."""
    ends = xfs_db(image, f"agf {group}", "p flfirst fllast flcount")
    first, last, count = (int(number) for number in re.findall(r"= (\d+)", ends))
    entries = re.findall(r"(\d+):(\d+|null)", xfs_db(image, f"agfl {group}", "p bno"))
    ring = {int(at): block for at, block in entries}
    found = [int(ring[(first + index) % len(ring)]) for index in range(count)]
    assert not count or (first + count - 1) % len(ring) == last
    return found


def recovered(image: Path) -> Path:
    """A copy after the kernel has replayed its log."""
    after = copy(image, image.name + ".recovered")
    with mounted(after):
        pass
    return after


def spoil(image: Path, allocation: Allocation) -> None:
    """Put something else wherever the reader says that nothing is in use."""
    with image.open("r+b") as file:
        for start, end in allocation.allocated.complement(0, allocation.size):
            file.seek(start)
            for at in range(start, end, MIB):
                file.write(b"\xa5" * min(MIB, end - at))


def is_consistent(image: Path) -> bool:
    """Whether xfs_repair finds nothing to repair."""
    return (
        subprocess.run(
            ["xfs_repair", "-n", "-o", "force_geometry", image], capture_output=True, check=False
        ).returncode
        == 0
    )


def make_v4(folder: Path, *options: str, files: int = 300) -> Path:
    """A file system of version 4, which many kernels no longer mount, with scattered free blocks.

    mkfs copies small files into it; every second one is then broken and xfs_repair frees its blocks.
    """
    (folder / "one").write_bytes(b"x" * 5000)
    rows = [f"f{number} ---644 0 0 {folder / 'one'}" for number in range(files)]
    proto = folder / "proto"
    proto.write_text("\n".join(["/dev/null", "0 0", "d--755 0 0", *rows, "$"]) + "\n")
    image = make_small(folder / "image", "-m", "crc=0", "-p", str(proto), *options)
    listed = xfs_db(image, "path /", "ls")
    inodes = re.findall(r"^\d+ +(\d+) +regular", listed, re.MULTILINE)[::2]
    words = [w for number in inodes for w in ("-c", f"inode {number}", "-c", "write core.mode 0")]
    run("xfs_db", "-x", *words, image)
    run("xfs_repair", "-o", "force_geometry", image)
    return image
