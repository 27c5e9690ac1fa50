"""btrfs on one device and on several: against btrfs-progs, and with all but the map overwritten."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from tests.btrfs_images import (
    FIXED,
    MIB,
    SIZE,
    age,
    allocated,
    attached,
    dump_of,
    filled,
    make,
    mounted_btrfs,
    require_survival,
    told,
)
from tests.loop import LoopDevice, mounted, run, sparse_file

SINGLE = {
    "default": "",
    "mixed": "--mixed",
    "nodes-4k": "--nodesize 4096",
    "nodes-64k": "--nodesize 65536",
    "xxhash": "--csum xxhash",
    "sha256": "--csum sha256",
    "blake2": "--csum blake2",
    "no-copies": "--metadata single",
    "all-twice": "--data dup",
    "cache-v1": "-R ^free-space-tree",
    "old": "-O ^no-holes,^skinny-metadata,^extref -R ^free-space-tree",
    "quota": "-R quota",
}
"""Name to mkfs options."""


@pytest.mark.parametrize("name", SINGLE)
def test_one_device(name: str, tmp_path: Path) -> None:
    (image,) = filled(tmp_path, SINGLE[name])
    allocation = allocated(image)
    expected = told(image).exact
    assert allocation.allocated == (expected | FIXED).clip(0, allocation.size)
    assert allocation.size == image.stat().st_size
    assert allocation.notes == ()
    require_survival([image], tmp_path)


CHUNKS = "its metadata is on other devices: kept all chunks of this one"
WHOLE = "its metadata is on other devices of the file system"

SEVERAL = {
    "raid0": ("-d raid0 -m raid1", "exact exact"),
    "raid1": ("-d raid1 -m raid1", "exact exact"),
    "raid10": ("-d raid10 -m raid10", "chunks chunks whole whole"),
    "raid10-of-6": ("-d raid10 -m raid1c4", "exact exact exact exact exact exact"),
    "raid1c3": ("-d raid1c3 -m raid1c3", "exact exact exact"),
    "raid5": ("-d raid5 -m raid1", "exact exact exact"),
    "raid6": ("-d raid6 -m raid1c3", "exact exact exact"),
    "raid5-all": ("-d raid5 -m raid5", "exact exact exact"),
    "raid0-all": ("-d raid0 -m raid0", "exact exact"),
    "single-all": ("-d single -m single", "exact exact"),
    "mixed": ("--mixed -d raid1 -m raid1", "exact exact"),
}
"""Name to mkfs options, and how each device is to be stored: exactly, by its chunks, or whole.

That depends on whether the device has copies of the extent tree's blocks, and of the chunk tree's.
"""


def stored(image: Path, *others: Path) -> str:
    """How a device is stored; AssertionError where that is not what btrfs-progs tell."""
    try:
        allocation = allocated(image)
    except NotUnderstoodError as reason:
        assert str(reason) == WHOLE
        return "whole"
    by_progs = told(image, *others)
    wanted = by_progs.chunks if CHUNKS in allocation.notes else by_progs.exact
    assert allocation.allocated == (wanted | FIXED).clip(0, allocation.size), image
    return "chunks" if CHUNKS in allocation.notes else "exact"


def all_stored(files: list[Path]) -> str:
    """How each device is stored."""
    return " ".join(stored(file, *(one for one in files if one != file)) for file in files)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_devices(name: str, tmp_path: Path) -> None:
    options, expected = SEVERAL[name]
    files = filled(tmp_path, options, len(expected.split()))
    require_survival(files, tmp_path)
    assert all_stored(files) == expected


def test_first_device_removed(tmp_path: Path) -> None:
    first, second = make(tmp_path, "-d single -m raid1", 2)
    third = sparse_file(tmp_path / "device-3", SIZE)
    with attached(first, second, third) as loops, mounted_btrfs(loops[:2], tmp_path / "at") as at:
        age(at)
        run("btrfs", "device", "add", "-f", loops[2], at)
        run("btrfs", "device", "remove", loops[0], at)
    assert all_stored([second, third]) == "exact exact"
    require_survival([second, third], tmp_path)


def test_device_replaced(tmp_path: Path) -> None:
    (image,) = filled(tmp_path)
    target = sparse_file(tmp_path / "target", SIZE + MIB)
    with attached(image, target) as loops, mounted_btrfs(loops[:1], tmp_path / "at") as at:
        run("btrfs", "replace", "start", "-B", "-f", "1", loops[1], at)
    assert stored(target) == "exact"
    assert allocated(target).size == SIZE
    require_survival([target], tmp_path)


def test_seed_device(tmp_path: Path) -> None:
    """What is on the seed only cannot be followed from the other device; its chunks can."""
    (seed,) = filled(tmp_path)
    with attached(seed) as (loop,):
        run("btrfstune", "-S", "1", loop)
    sprout = sparse_file(tmp_path / "sprout", SIZE)
    with attached(seed, sprout) as loops, mounted_btrfs(loops[:1], tmp_path / "at") as at:
        run("btrfs", "device", "add", "-f", loops[1], at)
        run("mount", "-o", "remount,rw", at)
        (at / "new").mkdir()
        age(at / "new", 1)
    assert stored(seed) == "exact"
    print(stored(sprout, seed))
    require_survival([sprout, seed], tmp_path, scrub=False)  # it takes a seed's UUID for an error


@contextmanager
def reflinking(folder: Path) -> Iterator[Path]:
    """A place where a file can be copied in one instant while it is written to."""
    outer = sparse_file(folder / "outer", 1024 * MIB)
    with LoopDevice(outer) as loop:
        run("mkfs.xfs", "-q", loop.path)
        with mounted(loop.path, folder / "reflinking", fs_type="xfs") as place:
            yield place


def test_crash_within_a_balance(tmp_path: Path) -> None:
    with reflinking(tmp_path) as place:
        (image,) = filled(place)
        copies: list[Path] = []
        with attached(image) as loops, mounted_btrfs(loops, place / "at") as at:
            for number in range(2000):
                (at / "sub" / f"{number}.txt").write_bytes(b"x" * 1000)
            for _attempt in range(20):
                balance = subprocess.Popen(
                    ["btrfs", "balance", "start", "-f", "-m", "-s", at], stdout=subprocess.DEVNULL
                )
                while balance.poll() is None:
                    run("sync", "-f", at)
                    copies.append(place / f"copy-{len(copies)}")
                    run("cp", "--reflink=always", image, copies[-1])
                moving = [one for one in copies if "TREE_RELOC ROOT_ITEM" in dump_of("root", one)]
                if moving:
                    break
        for copy in {copies[0], moving[0]}:
            assert stored(copy) == "exact"
        require_survival(moving[:1], place, "skip_balance")


def synced(folder: Path) -> Path:
    """A volume as it is while mounted, with files that an fsync has saved and nothing else."""
    (image,) = filled(folder)
    for _attempt in range(10):
        with attached(image) as loops, mounted_btrfs(loops, folder / "at", "commit=300") as at:
            chance = random.Random(7)
            for number in range(20):
                with (at / "sub" / f"synced-{number}").open("wb") as file:
                    file.write(chance.randbytes(90_000))
                    file.flush()
                    os.fsync(file.fileno())
            crashed = folder / "crashed"
            run("cp", "--sparse=always", image, crashed)
        if allocated(crashed).notes:
            return crashed
    raise AssertionError("the kernel committed each time")


def test_log(tmp_path: Path) -> None:
    crashed = synced(tmp_path)
    allocation = allocated(crashed)
    assert allocation.notes == ("log not replayed: kept what it refers to",)
    print((allocation.allocated - told(crashed).exact).total)
    require_survival([crashed], tmp_path)
