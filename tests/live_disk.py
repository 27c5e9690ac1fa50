"""A disk with mounted file systems under a random workload, and what a capture of it must equal.

While everything is frozen the disk is copied byte by byte: the *frozen view*, with which the image is
then compared. Every file that the workload finishes begins with the hash of what follows.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from imager.image.format import RangeKind
from imager.image.index import Segment
from imager.image.reader import ImageReader, LostRange
from imager.live.superblocks import Superblocks
from tests.command import plain_zstd
from tests.disks import MIB
from tests.loop import LoopDevice, mounted, run, sparse_file

_WORKLOAD = """
import hashlib, os, random, sys, time
places, pause, seed = sys.argv[3:], float(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
def finish(place, name, size):
    data = rng.randbytes(size)
    temporary = f"{place}/{name}.tmp"
    with open(temporary, "wb") as file:
        file.write(hashlib.sha256(data).digest() + data)
        file.flush()
        if rng.random() < 0.5:
            os.fsync(file.fileno())
    os.rename(temporary, f"{place}/{name}")
big = []
for place in places:
    big.append(os.open(f"{place}/big", os.O_RDWR | os.O_CREAT))
    os.pwrite(big[-1], rng.randbytes(8 << 20), 0)
print("ready", flush=True)
while True:
    number = rng.randrange(len(places))
    place, what = places[number], rng.random()
    if what < 0.45:
        finish(place, rng.randrange(80), rng.randrange(1, 200_000))
    elif what < 0.6:
        try:
            os.unlink(f"{place}/{rng.randrange(80)}")
        except FileNotFoundError:
            pass
    elif what < 0.9:
        os.pwrite(big[number], rng.randbytes(rng.randrange(1, 30_000)), rng.randrange(8 << 20))
    else:
        os.fsync(big[number])
    time.sleep(pause * rng.random())
"""

MAKE = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q"), "btrfs": ("mkfs.btrfs", "-q")}
_MOUNT = {"ext4": (), "xfs": ("nouuid",), "btrfs": ()}


class LiveDisk:
    """A loop disk whose partitions, of the given kinds, are mounted; use it in a `with` statement."""

    def __init__(
        self, folder: Path, kinds: tuple[str, ...], mib: int = 320, mkfs: tuple[str, ...] = ()
    ) -> None:
        """Each partition has `mib` MiB, made with the options `mkfs`; some space behind is free."""
        self.folder = folder
        self.kinds = kinds
        self.size = (len(kinds) * mib + 24) * MIB
        self._mib = mib
        self._mkfs = mkfs
        self._stack = ExitStack()
        self.places: list[Path] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            disk = sparse_file(self.folder / "disk", self.size)
            run("sfdisk", disk, stdin="label: gpt\n" + f"size={self._mib}MiB\n" * len(self.kinds))
            self.device = stack.enter_context(LoopDevice(disk))
            self.device.scan()
            for number, kind in enumerate(self.kinds, 1):
                node = self.device.partition(number)
                run(*MAKE[kind], *self._mkfs, node)
                place = self.folder / f"mounted-{number}"
                stack.enter_context(mounted(node, place, fs_type=kind))
                self.places.append(place)
            self._require_own()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def path(self) -> Path:
        return self.device.path

    @contextmanager
    def workload(self, pause: float = 0.01, seed: int = 1) -> Iterator[None]:
        """Files come, change and go; `pause` (seconds, on average twice that) limits how fast."""
        words = [str(pause), str(seed), *map(str, self.places)]
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKLOAD, *words], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield
            assert process.poll() is None, "the workload has ended early"
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def copy(self, target: Path) -> None:
        """The disk's bytes as they are, past every cache."""
        run("dd", f"if={self.path}", f"of={target}", "bs=1M", "iflag=direct", "conv=sparse")
        os.truncate(target, self.size)

    def _require_own(self) -> None:
        """Nothing but what is mounted here may ever be frozen."""
        with Superblocks(self.path) as found:
            assert {Path(one.place) for one in found.all} == set(self.places)
            assert all(os.fstat(one.fd).st_dev != Path("/").stat().st_dev for one in found.all)


class View(NamedTuple):
    """The files of one file system: path to hash of the content."""

    files: dict[str, str]

    def finished(self) -> list[str]:
        return [name for name in self.files if name.isdecimal()]


def view(disk: Path, number: int, kind: str, folder: Path) -> View:
    """What is in a partition of a disk-image file, once it was mounted; AssertionError for a finished
    file that is not what was written.
    """
    files = {}
    with LoopDevice(disk) as device:
        device.scan()
        with mounted(device.partition(number), folder / "look", *_MOUNT[kind], fs_type=kind) as at:
            for path in sorted(at.iterdir()):
                if path.is_file():
                    data = path.read_bytes()
                    files[path.name] = hashlib.sha256(data).hexdigest()
                    if path.name.isdecimal():
                        assert hashlib.sha256(data[32:]).digest() == data[:32], path
        if kind == "ext4":
            run("e2fsck", "-fn", device.partition(number))
        elif kind == "xfs":
            run("xfs_repair", "-n", device.partition(number))
        else:
            run("btrfs", "check", "--readonly", device.partition(number))
    return View(files)


def unused_in(image: Path) -> list[tuple[int, int]]:
    """The ranges of the disk that an image says are not in use."""
    found: list[tuple[int, int]] = []
    reader = ImageReader(image)
    for segment in reader.segments():
        assert not isinstance(segment, LostRange)
        assert isinstance(segment, Segment)
        found += segment.map(RangeKind.UNUSED)
    reader.file.close()
    return found


def differences(restored: Path, frozen: Path, unused: list[tuple[int, int]]) -> list[int]:
    """Offsets of the 4 KiB pages in use in which two disks differ."""
    found = []
    with restored.open("rb") as one, frozen.open("rb") as other:
        offset = 0
        while piece := one.read(MIB):
            expected = other.read(MIB)
            if piece != expected:
                for place in range(0, len(piece), 512):
                    sector = offset + place
                    if piece[place : place + 512] != expected[place : place + 512] and not any(
                        start <= sector < end for start, end in unused
                    ):
                        found.append(sector // 4096 * 4096)
            offset += len(piece)
    return sorted(set(found))


def require_same(live: LiveDisk, restored: Path, frozen: Path, image: Path) -> None:
    """AssertionError unless the image is the frozen view: block by block, and file by file.

    The file systems must not be mounted any more.
    """
    assert restored.stat().st_size == frozen.stat().st_size == live.size
    assert differences(restored, frozen, unused_in(image)) == []
    for number, kind in enumerate(live.kinds, 1):
        ours = view(restored, number, kind, live.folder)
        assert ours == view(frozen, number, kind, live.folder)
        assert ours.finished()


def by_zstd(image: Path, folder: Path) -> Path:
    """The disk as zstd alone restores it."""
    return plain_zstd(image, folder)


def manifest(image: Path) -> dict[str, object]:
    """What the image says of its capture."""
    reader = ImageReader(image)
    assert reader.manifest is not None
    facts = json.loads(json.dumps(dict(reader.manifest.facts)))
    reader.file.close()
    assert isinstance(facts, dict)
    return facts


def settle(seconds: float = 1.0) -> None:
    """Let a workload get going."""
    time.sleep(seconds)
