"""ext2/3/4 images for tests: made and filled by the system's own tools, judged by them too."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from tests.volumes import FileVolume

MIB = 1 << 20


def run(*command: str | Path) -> str:
    """The standard output of a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make(path: Path, size: int, *options: str) -> Path:
    """A sparse file of `size` bytes with a new file system."""
    with path.open("wb") as file:
        file.truncate(size)
    run("mke2fs", "-q", "-F", *options, path)
    return path


def copy(image: Path, name: str) -> Path:
    """A copy beside `image`, as sparse as can be."""
    target = image.with_name(name)
    run("cp", "--sparse=always", image, target)
    return target


@contextmanager
def mounted(image: Path, options: str = "") -> Iterator[Path]:
    """The directory where the kernel has mounted `image`, writable."""
    point = image.with_name(image.name + ".mnt")
    point.mkdir()
    run("mount", "-o", f"loop,{options}" if options else "loop", image, point)
    try:
        yield point
    finally:
        run("umount", point)
        point.rmdir()


def write_files(folder: Path, count: int, seed: int) -> list[Path]:
    """`count` files of up to 200 KB of noise."""
    noise = random.Random(seed)
    files = [folder / f"{seed}-{number}" for number in range(count)]
    for file in files:
        file.write_bytes(noise.randbytes(noise.randrange(200_000)))
    return files


def fill(image: Path, files: int = 60) -> None:
    """Files, folders, a sparse file, and holes where files were deleted."""
    with mounted(image) as point:
        folder = point / "folder"
        folder.mkdir()
        written = write_files(folder, files, 1)
        with (point / "sparse").open("wb") as sparse:
            for place in (0, 3 * MIB, 70 * MIB):
                sparse.seek(place)
                sparse.write(b"x" * 5000)
        (point / "link").symlink_to("folder/" + "n" * 200)
        for file in written[::3]:
            file.unlink()


def crash(
    image: Path, options: str, change: Callable[[Path], None], good: Callable[[Path], bool]
) -> Path:
    """A copy of `image` as it lies on disk while mounted and changed.

    The kernel may write everything back at any time, and does when anyone calls sync(2); so this
    tries again until the copy is what the test wants.
    """
    options = f"commit=300,{options}" if options else "commit=300"
    for _ in range(10):
        with mounted(image, options) as point:
            change(point)
            crashed = copy(image, "crashed")
        if good(crashed):
            return crashed
    raise AssertionError("the kernel wrote everything back each time")


def commits(image: Path) -> list[int]:
    """The places in the journal of the commit blocks that would be replayed, in order of time."""
    log = run("debugfs", "-c", "-R", "logdump", image)
    return [int(at) for at in re.findall(r"\(commit block\) at block (\d+)", log)]


def sync(file: Path) -> None:
    """Write one file to disk, as a database does after a transaction."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocated(image: Path, kind: str = "ext4") -> Allocation:
    """What the reader under test says of `image`."""
    return read_allocation(kind, FileVolume(image))


def allocated_by_dumpe2fs(image: Path) -> Extents:
    """All that dumpe2fs does not call free.

    With bigalloc it names the first block of the last cluster of a free range, not the last block.
    It complains about checksums where a crash left bitmaps and descriptors of different ages.
    """
    done = subprocess.run(["dumpe2fs", image], capture_output=True, text=True, check=False)
    assert not done.returncode or "checksum does not match" in done.stderr, done.stderr
    text = done.stdout
    block = _field(text, "Block size")
    last = _field(text, "Cluster size") if "Cluster size" in text else block
    free = [
        (int(match[1]) * block, int(match[2] or match[1]) * block + last)
        for line in re.findall(r"^  Free blocks: (.+)$", text, re.MULTILINE)
        for match in re.finditer(r"(\d+)(?:-(\d+))?", line)
    ]
    return Extents.span(0, _field(text, "Block count") * block) - Extents.of(free)


def debugfs(image: Path, *requests: str) -> None:
    """Change `image` with debugfs; its journal requests need one another's state."""
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", image],
        input="\n".join(requests),
        capture_output=True,
        text=True,
        check=True,
    )
    complaints: Sequence[str] = done.stderr.splitlines()[1:]
    assert not complaints, complaints


def digest(image: Path) -> bytes:
    """A hash of the image's content."""
    return blake3().update_mmap(image).digest()


def _field(text: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    assert match is not None
    return int(match[1])
