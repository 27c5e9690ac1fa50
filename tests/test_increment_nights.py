"""Nights of a real ext4 file system: each restored, checked by e2fsck, compared file by file."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from imager.capture import CaptureOptions, capture
from imager.check import check
from imager.export import ExportFormat, export
from tests.command import imager, info, same_bytes
from tests.comparing import Tree, files_of
from tests.disks import MIB, run
from tests.loop import LoopDevice, mounted, sparse_file
from tests.sample_disk import write_and_delete, write_tree

NIGHTS = 5
SIZE = 192 * MIB


class Night(NamedTuple):
    image: Path
    size: int
    files: Tree


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> list[Night]:
    """A file system as it was on the evening of its making, and after each of some days."""
    folder = tmp_path_factory.mktemp("nights")
    found: list[Night] = []
    with LoopDevice(folder / "disk", SIZE) as device:
        run("mkfs.ext4", "-q", "-L", "nightly", device.path)
        for night in range(NIGHTS + 1):
            with mounted(device.path, folder / "day") as place:
                use(place, night)
            files = files_of(device.path, "ext4", folder)
            image = folder / f"{night}.img"
            parent = found[-1].image if found else None
            # Small chunks: many runs, and room for what is unchanged between them.
            options = CaptureOptions(chunk_size=1 << 18, parent=parent)
            result = capture(device.path, image, options)
            assert result.verdict == "ok"
            found.append(Night(image, result.image.size, files))
    return found


def use(place: Path, day: int) -> None:
    """What a day writes: rows in a database, lines in a log, files that come and go."""
    noise = random.Random(day)
    if day == 0:
        write_tree(place / "home", 24 * MIB, 1)
        write_and_delete(place)
    with closing(sqlite3.connect(place / "mail.db")) as database:
        database.execute("create table if not exists mail (id integer primary key, body blob)")
        for _ in range(300 if day == 0 else 20):
            row = (noise.randrange(400), noise.randbytes(3000))
            database.execute("insert or replace into mail values (?, ?)", row)
        database.commit()
    with (place / "log").open("a") as log:
        log.write(f"day {day}\n" * 40)
    if day == 2:
        write_tree(place / "new", 3 * MIB, day)
    if day == 3:
        run("rm", "-r", place / "new")
        (place / "log").rename(place / "log.1")
    if day == 4:
        write_tree(place / "other", MIB, day)


def test_a_night_costs_what_changed(nights: list[Night]) -> None:
    assert nights[1].size < nights[0].size // 20
    assert nights[5].size < nights[0].size // 20


@pytest.mark.parametrize("night", range(NIGHTS + 1))
def test_each_night_restores(nights: list[Night], night: int, tmp_path: Path) -> None:
    image = nights[night].image
    assert check(image).verdict == "ok"
    assert info(image)["broken"] is None and len(info(image)["chain"]) == night
    noise = random.Random(night).randbytes(MIB)
    target = tmp_path / "target"
    with target.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(noise)
    with LoopDevice(target) as device:
        imager("restore", "--yes", image, device.path)
        assert files_of(device.path, "ext4", tmp_path) == nights[night].files


@pytest.mark.parametrize("night", [0, 3, NIGHTS])
def test_exported_it_is_the_same(nights: list[Night], night: int, tmp_path: Path) -> None:
    raw, full = tmp_path / "raw", tmp_path / "full.img"
    export(nights[night].image, raw, ExportFormat.RAW)
    with LoopDevice(raw, read_only=True) as device:
        assert files_of(device.path, "ext4", tmp_path) == nights[night].files
    export(nights[night].image, full)
    run("sh", "-c", f"zstd -dc {full} | cmp - {raw}")
    assert info(full)["content_digest"] == info(nights[night].image)["content_digest"]


def test_qcow2(nights: list[Night], tmp_path: Path) -> None:
    raw, qcow2 = tmp_path / "raw", tmp_path / "disk.qcow2"
    imager("export", "--raw", nights[2].image, raw)
    imager("export", "--qcow2", nights[2].image, qcow2)
    run("qemu-img", "convert", "-O", "raw", qcow2, tmp_path / "back")
    assert same_bytes(raw, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "disk.qcow2", "raw"]


def test_only_changes_between_two_nights(nights: list[Night], tmp_path: Path) -> None:
    """From one night's disk to another's, writing little."""
    with LoopDevice(sparse_file(tmp_path / "target", SIZE)) as device:
        imager("restore", "--yes", nights[5].image, device.path)
        shown = imager("restore", "--yes", "--only-changes", nights[4].image, device.path).out
        assert "were right already" in shown
        assert files_of(device.path, "ext4", tmp_path) == nights[4].files


def test_the_disk_is_still_as_it_was(nights: list[Night], tmp_path: Path) -> None:
    disk = nights[0].image.with_name("disk")
    imager("check", "--against", disk, nights[NIGHTS].image)
    imager("check", "--against", disk, nights[NIGHTS - 1].image, status=8)
