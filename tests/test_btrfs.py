"""btrfs on one device and on several: against btrfs-progs, and with all but the map overwritten."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from tests.btrfs_editor import Editor, add_block_group_tree
from tests.btrfs_images import (
    FIXED,
    MIB,
    SIZE,
    age,
    allocated,
    attached,
    contents,
    dump_of,
    filled,
    make,
    mounted_btrfs,
    reflinking,
    require_survival,
    small,
    synced,
    told,
    write_files,
)
from tests.command import imager
from tests.comparing import digest
from tests.loop import LoopDevice, mounted, run, sparse_file
from tests.small_disk import garbage

SINGLE = {
    "default": "",
    "mixed": "--mixed --csum xxhash",
    "small nodes": "--nodesize 4096 --csum sha256",
    "large nodes": "--nodesize 65536 --csum blake2",
    "one copy": "--metadata single -R quota",
    "old": "-O ^no-holes,^skinny-metadata,^extref -R ^free-space-tree",
}
"""Name to mkfs options."""


@pytest.mark.parametrize("name", SINGLE)
def test_one_device(name: str, tmp_path: Path) -> None:
    (image,) = filled(tmp_path, SINGLE[name])
    assert stored(image) == "exact"
    if name == "default":
        assert "FREE_SPACE_BITMAP" in dump_of("10", image)
    assert allocated(image).size == SIZE
    assert allocated(image).notes == ()
    require_survival([image], tmp_path)


CHUNKS = "its metadata is on other devices: kept all chunks of this one"
WHOLE = "its metadata is on other devices of the file system"

SEVERAL = {
    "raid0": ("-d raid0 -m raid1", 2),
    "raid10": ("-d raid10 -m raid1c4", 4),
    "raid10 all": ("-d raid10 -m raid10", 4),
    "raid5": ("-d raid5 -m raid1", 3),
    "raid6": ("-d raid6 -m raid1c3", 3),
    "raid0 all": ("-d raid0 -m raid0", 2),
    "single all": ("-d single -m single", 2),
    "mixed": ("--mixed -d raid1 -m raid1", 2),
}
"""Name to mkfs options and number of devices."""


def stored(image: Path, *others: Path) -> str:
    """How a device is stored; AssertionError where that is not what btrfs-progs tell."""
    by_progs = told(image, *others)
    try:
        allocation = allocated(image)
    except NotUnderstoodError as reason:
        assert str(reason) == WHOLE
        found = "whole"
    else:
        found = "chunks" if CHUNKS in allocation.notes else "exact"
        wanted = by_progs.chunks if found == "chunks" else by_progs.exact
        assert allocation.allocated == (wanted | FIXED).clip(0, allocation.size), image
    assert found == by_progs.stored
    return found


def all_stored(files: list[Path]) -> set[str]:
    """How the devices are stored."""
    return {stored(file, *(one for one in files if one != file)) for file in files}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_devices(name: str, tmp_path: Path) -> None:
    options, count = SEVERAL[name]
    files = filled(tmp_path, options, count)
    kinds = all_stored(files)
    if name in ("raid0", "raid10", "raid6", "mixed"):  # a copy of all metadata on each device
        assert kinds == {"exact"}
    else:
        assert kinds > {"whole"}
    require_survival(files, tmp_path)


def test_converted_with_another_uuid(tmp_path: Path) -> None:
    """An ext4 that became a btrfs: its chunks lie where the old system left room."""
    image = sparse_file(tmp_path / "image", SIZE)
    run("mkfs.ext4", "-q", "-b", "4096", image)
    with LoopDevice(image) as loop, mounted(loop.path, tmp_path / "at") as at:
        write_files(at, random.Random(6), 40)
    run("btrfs-convert", image)
    run("btrfstune", "-m", image)
    with attached(image) as loops, mounted_btrfs(loops, tmp_path / "at") as at:
        age(at)
    assert stored(image) == "exact"
    require_survival([image], tmp_path)


def test_first_device_removed(tmp_path: Path) -> None:
    first, second = make(tmp_path, "-d single -m raid1", 2)
    third = sparse_file(tmp_path / "device-3", SIZE)
    with attached(first, second, third) as loops, mounted_btrfs(loops[:2], tmp_path / "at") as at:
        age(at)
        run("btrfs", "device", "add", "-f", loops[2], at)
        run("btrfs", "device", "remove", loops[0], at)
    assert all_stored([second, third]) == {"exact"}
    assert allocated(third).notes == ("one of 2 devices of its file system (devid 3)",)
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
    (seed,) = filled(tmp_path, "--nodesize 4096")
    with attached(seed) as (loop,):
        run("btrfstune", "-S", "1", loop)
    sprout = sparse_file(tmp_path / "sprout", SIZE)
    with attached(seed, sprout) as loops, mounted_btrfs(loops[:1], tmp_path / "at") as at:
        run("btrfs", "device", "add", "-f", loops[1], at)
        run("mount", "-o", "remount,rw", at)
        (at / "new").write_bytes(random.Random(8).randbytes(MIB))
    assert stored(seed) == "exact"
    assert stored(sprout, seed) == "chunks"
    require_survival([sprout, seed], tmp_path, scrub=False)  # it takes a seed's UUID for an error


def test_crash_within_a_balance(tmp_path: Path) -> None:
    with reflinking(tmp_path) as place:
        (image,) = filled(place, size=320 * MIB)
        copies: list[Path] = []
        moving: list[Path] = []
        with attached(image) as loops, mounted_btrfs(loops, place / "at") as at:
            for number in range(2000):
                (at / "sub" / f"{number}.txt").write_bytes(b"x" * 1000)
            while not moving and len(copies) < 400:
                balance = subprocess.Popen(
                    ["btrfs", "balance", "start", "-f", "-m", "-s", at], stdout=subprocess.DEVNULL
                )
                while balance.poll() is None:
                    run("sync", "-f", at)
                    copies.append(place / f"copy-{len(copies)}")
                    run("cp", "--reflink=always", image, copies[-1])
                moving = [one for one in copies if "TREE_RELOC ROOT_ITEM" in dump_of("root", one)]
        assert stored(copies[0]) == stored(moving[0]) == "exact"
        require_survival(moving[:1], tmp_path, "skip_balance")


_WRITER = """
import os, random, sys
chance, at = random.Random(5), sys.argv[1]
while True:
    name = f"{at}/{chance.randrange(200)}"
    if chance.random() < 0.2 and os.path.exists(name):
        os.unlink(name)
        continue
    with open(name, "ab") as file:
        file.write(chance.randbytes(chance.randrange(40_000)))
        if chance.random() < 0.3:
            os.fsync(file.fileno())
        elif chance.random() < 0.02:
            os.system(f"sync -f {at}")
"""


def test_crashes_under_load(tmp_path: Path) -> None:
    """Each instant between two commits can be told, with what was synced."""
    with reflinking(tmp_path) as place:
        (image,) = filled(place)
        copies = [place / f"copy-{number}" for number in range(8)]
        with attached(image) as loops, mounted_btrfs(loops, place / "at") as at:
            writer = subprocess.Popen([sys.executable, "-c", _WRITER, at / "sub"])
            for copy in copies:
                time.sleep(0.2)
                run("cp", "--reflink=always", image, copy)
            writer.kill()
            writer.wait()
        assert {stored(copy) for copy in copies} == {"exact"}
        logged = [copy for copy in copies if allocated(copy).notes]
        assert logged
        for copy in logged[:2]:
            require_survival([copy], tmp_path)


def test_log(tmp_path: Path) -> None:
    crashed = synced(tmp_path)
    assert allocated(crashed).notes == ("log not replayed: kept what it refers to",)
    assert stored(crashed) == "exact"
    require_survival([crashed], tmp_path)


def test_log_is_all_that_knows_synced_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So `require_survival` is known to see what is missing."""
    crashed = synced(tmp_path)
    monkeypatch.setattr("imager.filesystems.btrfs.log._MAX_EXTENTS", 0)
    with pytest.raises(NotUnderstoodError, match="log is too large"):
        allocated(crashed)
    monkeypatch.setattr("imager.filesystems.btrfs.read_log", lambda *_: Extents())
    with pytest.raises(AssertionError):
        require_survival([crashed], tmp_path)


def test_block_group_tree(tmp_path: Path) -> None:
    image = small(tmp_path, "-m single", SIZE)
    editor = Editor(image)
    add_block_group_tree(editor)
    image.write_bytes(editor.data)
    with attached(image) as loops, mounted_btrfs(loops, tmp_path / "at") as at:
        age(at)
    assert "BLOCK_GROUP_ITEM" not in dump_of("extent", image)
    assert stored(image) == "exact"
    require_survival([image], tmp_path)


def test_many_tib(tmp_path: Path) -> None:
    (image,) = make(tmp_path, size=5 << 40)
    with attached(image) as loops, mounted_btrfs(loops, tmp_path / "at") as at:
        (at / "file").write_bytes(b"x" * MIB)
    assert stored(image) == "exact"
    assert allocated(image).allocated.covers(256 << 30, (256 << 30) + 4096)
    assert allocated(image).allocated.total < 8 * MIB


def test_space_behind_the_file_system_is_left_to_the_caller(tmp_path: Path) -> None:
    (image,) = make(tmp_path)
    with image.open("r+b") as file:
        file.truncate(SIZE + MIB)
    assert allocated(image).size == SIZE
    assert allocated(image).allocated.end <= SIZE


def test_capture_and_restore(tmp_path: Path) -> None:
    (image,) = filled(tmp_path)
    before = digest(image)
    with attached(image) as (loop,):
        imager("capture", loop, tmp_path / "image")
    assert digest(image) == before
    target = garbage(tmp_path / "target", SIZE)
    with attached(target) as (loop,):
        imager("restore", "--yes", tmp_path / "image", loop)
    assert (tmp_path / "image").stat().st_size < allocated(image).allocated.total
    assert contents([target], tmp_path / "look") == contents([image], tmp_path / "look")
