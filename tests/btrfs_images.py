"""btrfs for tests: made and filled by the kernel, on one device or several, and told by btrfs-progs."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from tests.comparing import Tree, tree_of
from tests.loop import LoopDevice, mounted, run, sparse_file
from tests.small_disk import garbage
from tests.volumes import FileVolume

MIB = 1 << 20
SIZE = 160 * MIB
STRIPE = 64 << 10
FIXED = Extents.of([(0, MIB), (64 * MIB, 64 * MIB + 4096), (256 << 30, (256 << 30) + 4096)])
"""Kept whatever is in use: what boot loaders may have, and the superblocks."""


@contextmanager
def attached(*files: Path) -> Iterator[list[Path]]:
    """Loop devices over files; afterwards the kernel knows none of them as a device of a btrfs."""
    with ExitStack() as stack:
        loops = [stack.enter_context(LoopDevice(file)).path for file in files]
        try:
            yield loops
        finally:
            for loop in loops:
                subprocess.run(
                    ["btrfs", "device", "scan", "--forget", loop], capture_output=True, check=False
                )


@contextmanager
def mounted_btrfs(devices: Sequence[Path], place: Path, *options: str) -> Iterator[Path]:
    """A file system with all of its devices."""
    words = [*options, *(f"device={device}" for device in devices)]
    with mounted(devices[0], place, *words, fs_type="btrfs") as at:
        yield at


def make(folder: Path, options: str = "", count: int = 1, size: int = SIZE) -> list[Path]:
    """Files with the devices of a new file system."""
    files = [sparse_file(folder / f"device-{number}", size) for number in range(1, count + 1)]
    with attached(*files) as loops:
        run("mkfs.btrfs", "-q", "-f", *options.split(), *loops)
    return files


def small(folder: Path, options: str = "--mixed -d single -m single", size: int = 24 * MIB) -> Path:
    """A volume with some files, made in a moment and without the kernel.

    By default all is there once, and the extent tree has two levels.
    """
    source = folder / "small-source"
    source.mkdir()
    for number in range(150):
        (source / f"{number}").write_bytes(bytes((number,)) * 2500)
    image = sparse_file(folder / "small", size)
    run("mkfs.btrfs", "-q", "-f", *options.split(), "--rootdir", source, image)
    shutil.rmtree(source)
    return image


def write_files(place: Path, chance: random.Random, count: int) -> None:
    """Files of up to 100 KB of noise, some so small that they are kept in the tree."""
    for number in range(count):
        size = chance.choice((200, 5000, 30_000, 100_000))
        (place / f"{number}").write_bytes(chance.randbytes(chance.randrange(size)))


def age(place: Path, rounds: int = 3, seed: int = 1) -> None:
    """What a file system goes through: subvolumes, snapshots, clones, holes, compression, deletes."""
    chance = random.Random(seed)
    run("btrfs", "subvolume", "create", place / "sub")
    splinters = [place / f"splinter-{number}" for number in range(200)]
    for splinter in splinters:
        splinter.write_bytes(chance.randbytes(5000))
    (place / "nocow").touch()
    run("chattr", "+C", place / "nocow")
    (place / "nocow").write_bytes(chance.randbytes(300_000))
    run("fallocate", "--length", "700000", place / "reserved")
    (place / "text").write_text("the same again\n" * 20_000)
    run("btrfs", "filesystem", "defragment", "-czstd", place / "text")
    for number in range(rounds):
        write_files(place / "sub", chance, 30)
        run("btrfs", "subvolume", "snapshot", place / "sub", place / f"snapshot-{number}")
        run("cp", "--reflink=always", place / "sub" / "1", place / f"clone-{number}")
        with (place / "nocow").open("r+b") as file:
            file.seek(chance.randrange(200_000))
            file.write(chance.randbytes(50_000))
        with (place / "holes").open("r+b" if number else "wb") as file:
            for _ in range(20):
                file.seek(chance.randrange(256) * 4096)
                file.write(chance.randbytes(4096))
        run("sync", "-f", place)
        for splinter in splinters[number::4]:
            splinter.unlink()
        for victim in range(number, 30, 4):
            (place / "sub" / f"{victim}").unlink()
    run("btrfs", "subvolume", "delete", "--commit-after", place / "snapshot-0")


def filled(folder: Path, options: str = "", count: int = 1, size: int = SIZE) -> list[Path]:
    """As `make`, with an aged content."""
    files = make(folder, options, count, size)
    with attached(*files) as loops, mounted_btrfs(loops, folder / "at") as place:
        age(place)
    return files


@contextmanager
def reflinking(folder: Path) -> Iterator[Path]:
    """A place where a file can be copied in one instant while it is written to."""
    outer = sparse_file(folder / "outer", 2048 * MIB)
    with LoopDevice(outer) as loop:
        run("mkfs.xfs", "-q", loop.path)
        with mounted(loop.path, folder / "reflinking", fs_type="xfs") as place:
            yield place


def synced(folder: Path, options: str = "") -> Path:
    """A volume as it is while mounted, with files that an fsync has saved and nothing else."""
    crashed = folder / "crashed"
    with reflinking(folder) as place:
        (image,) = filled(place, options)
        instant = place / "instant"
        for _attempt in range(10):
            with attached(image) as loops, mounted_btrfs(loops, place / "at", "commit=300") as at:
                chance = random.Random(7)
                for number in range(20):
                    with (at / "sub" / f"synced-{number}").open("wb") as file:
                        file.write(chance.randbytes(90_000))
                        file.flush()
                        os.fsync(file.fileno())
                run("cp", "--reflink=always", image, instant)
            if allocated(instant).notes:
                run("cp", "--sparse=always", instant, crashed)
                return crashed
    raise AssertionError("the kernel committed each time")


def allocated(image: Path) -> Allocation:
    """What the reader under test says."""
    return read_allocation("btrfs", FileVolume(image))


class Told(NamedTuple):
    """What btrfs-progs tell of a device."""

    exact: Extents
    """Bytes of the device that extents are in, those of the log included."""
    chunks: Extents
    """Bytes of the device that are in chunks."""
    stored: str
    """What can be known from this device alone: "exact", "chunks", or nothing: "whole"."""


def told(image: Path, *others: Path) -> Told:
    """What dump-tree tells of the device `image` of a file system with `others`."""
    with attached(image, *others) as devices:
        dump = run("btrfs", "inspect-internal", "dump-tree", "--noscan", *devices)
        superblock = run("btrfs", "inspect-internal", "dump-super", devices[0])
    devid = _number(r"^dev_item\.devid\s+(\d+)", superblock)
    nodesize = _number(r"^nodesize\s+(\d+)", superblock)
    blocks: dict[str, list[tuple[int, int]]] = {}
    used: list[tuple[int, int]] = []
    stripes: list[_Stripe] = []
    parts = re.split(r"^(?:leaf|node) (\d+) .* owner (\S+)$", dump, flags=re.MULTILINE)
    for number, owner, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        block = (int(number), int(number) + nodesize)
        blocks.setdefault(owner, []).append(block)
        if owner == "EXTENT_TREE":
            for start, kind, size in re.findall(r"key \((\d+) (\w+)_ITEM (\d+)\)", body):
                if kind in ("EXTENT", "METADATA"):
                    length = int(size) if kind == "EXTENT" else nodesize
                    used.append((int(start), int(start) + length))
        elif owner == "TREE_LOG":
            used.append(block)
            for start, size in re.findall(r"disk byte (\d+) nr (\d+)", body):
                used.append((int(start), int(start) + int(size)))
        elif owner == "CHUNK_TREE":
            stripes += _stripes(body, devid)
    exact = [piece for stripe in stripes for one in used for piece in stripe.pieces(*one)]
    chunks = [(stripe.offset, stripe.offset + stripe.size) for stripe in stripes]
    exact += [whole for whole, stripe in zip(chunks, stripes, strict=True) if stripe.parity]

    def is_here(owner: str) -> bool:
        return all(any(stripe.holds(*one) for stripe in stripes) for one in blocks[owner])

    stored = "whole"
    if is_here("CHUNK_TREE"):
        exactly = all(map(is_here, ("ROOT_TREE", "DEV_TREE", "EXTENT_TREE")))
        stored = "exact" if exactly else "chunks"
    return Told(Extents.of(exact), Extents.of(chunks), stored)


class _Stripe(NamedTuple):
    """A chunk's stripe on the device in question."""

    start: int
    length: int
    offset: int
    column: int
    columns: int
    parity: int

    @property
    def size(self) -> int:
        return self.length // self.columns

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where logical addresses are, dealt out piece by piece as the documents have it."""
        if self.parity or not self.start <= start < self.start + self.length:
            return
        start, end = start - self.start, end - self.start
        while start < end:
            stop = end if self.columns == 1 else min((start // STRIPE + 1) * STRIPE, end)
            row, found = divmod(start // STRIPE, self.columns)
            if self.columns == 1:
                yield self.offset + start, self.offset + stop
            elif found == self.column:
                place = self.offset + row * STRIPE + start % STRIPE
                yield place, place + stop - start
            start = stop

    def holds(self, start: int, end: int) -> bool:
        """Whether all of a logical range is in this stripe."""
        return sum(b - a for a, b in self.pieces(start, end)) == end - start


def _stripes(leaf: str, devid: int) -> Iterator[_Stripe]:
    """The device's stripes in a dumped leaf of the chunk tree."""
    for start, length, kind, body in re.findall(
        r"CHUNK_ITEM (\d+)\).*\n\s+length (\d+) owner .* type (\S+)\n((?:\s+(?!item).*\n)+)", leaf
    ):
        found = re.findall(r"devid (\d+) offset (\d+)", body)
        profile = kind.rpartition("|")[2]
        copies = {"RAID0": 1, "RAID10": 2, "RAID5": 1, "RAID6": 1}.get(profile, len(found))
        parity = {"RAID5": 1, "RAID6": 2}.get(profile, 0)
        columns = (len(found) - parity) // copies
        for index, (device, offset) in enumerate(found):
            if int(device) == devid:
                yield _Stripe(
                    int(start), int(length), int(offset), index // copies, columns, parity
                )


def dump_of(tree: str, *files: Path) -> str:
    """The text of a tree of the file system in files."""
    with attached(*files) as loops:
        return run("btrfs", "inspect-internal", "dump-tree", "--noscan", "-t", tree, *loops)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, pattern
    return int(match[1])


def kept_only(image: Path, target: Path) -> Path:
    """A copy of `image` in which nothing but what is allocated is left: the rest is garbage."""
    garbage(target, image.stat().st_size)
    try:
        kept = allocated(image).allocated
    except NotUnderstoodError:
        kept = Extents.span(0, image.stat().st_size)
    with image.open("rb") as source, target.open("r+b") as copy:
        for start, end in kept:
            source.seek(start)
            copy.seek(start)
            copy.write(source.read(end - start))
    return target


def contents(files: Sequence[Path], place: Path, *options: str, scrub: bool = True) -> Tree:
    """All files of a file system that passes its check, and a scrub of each checksum.

    The check looks for further devices on the whole machine, and any other's may be in its way: it is
    left out where there are several.
    """
    with attached(*files) as loops:
        if len(loops) == 1:
            run("btrfs", "check", "--readonly", loops[0])
        with mounted_btrfs(loops, place, *options) as at:
            found = tree_of(at)
            if scrub:
                run("btrfs", "scrub", "start", "-B", "-r", at)
    return found


def require_survival(
    files: Sequence[Path], folder: Path, *options: str, scrub: bool = True
) -> None:
    """AssertionError unless all is there when all that is not allocated has become garbage."""
    copies = [folder / f"{file.name}.before" for file in files]
    for file, copy in zip(files, copies, strict=True):
        run("cp", "--sparse=always", file, copy)
    before = contents(copies, folder / "look", *options, scrub=scrub)
    kept = [kept_only(file, folder / f"{file.name}.kept") for file in files]
    assert contents(kept, folder / "look", *options, scrub=scrub) == before
    assert before
