"""The allocation of clean XFS volumes, compared with xfs_db and partclone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imager.disk.source import SourceDevice
from imager.errors import NotUnderstoodError
from imager.filesystems import read_allocation
from imager.filesystems.xfs.checksum import seal
from imager.filesystems.xfs.superblock import CRC_AT
from tests.command import imager, info, volumes
from tests.loop import LoopDevice, run
from tests.loop import mounted as loop_mounted
from tests.oracles import allocated_by_partclone
from tests.small_disk import garbage
from tests.xfs_images import (
    MIB,
    SMALL,
    allocated,
    allocated_by_xfs_db,
    contents,
    fill,
    fragment,
    free_list,
    is_consistent,
    make,
    make_small,
    make_v4,
    mounted,
    write_files,
    xfs_db,
)

CONFIGURATIONS = {
    "plain": "-m reflink=0,finobt=0,inobtcount=0,bigtime=0 -i sparse=0",
    "default": "",
    "one-group": "-d agcount=1",
    "1k": "-b size=1024",
    "2k": "-b size=2048",
    "sectors-4096": "-s size=4096",
    "rmap": "-m rmapbt=1 -l size=16m,agnum=2",
    "large-counts": "-i nrext64=1",
    "stripe": "-d su=64k,sw=3 -l su=32k,size=16m",
    "log-stripe-256k": "-l su=256k,size=20m",
    "last-group-shorter": "-d agsize=20m",
    "large-inodes": "-i size=2048",
}
"""Name to mkfs.xfs options; all of these mount on any kernel with XFS."""

PARTCLONE = ("default", "1k")  # it sleeps for whole seconds

V4 = {
    "v4": "",
    "v4-512": "-b size=512",
    "v4-1k": "-b size=1024",
    "v4-sectors-4096": "-s size=4096",
    "v4-old": "-i projid32bit=0 -l version=1,lazy-count=0",
}
"""mkfs.xfs options of version 4, which many kernels do not mount any more."""


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_allocation_is_what_xfs_db_says(name: str, tmp_path: Path) -> None:
    image = make(tmp_path / "image", 97 * MIB, *CONFIGURATIONS[name].split())
    with mounted(image) as place:
        fill(place)
    allocation = allocated(image)
    assert allocation.allocated == allocated_by_xfs_db(image)
    assert allocation.size == 97 * MIB
    assert allocation.notes == ()
    if name in PARTCLONE:  # which leaves out free lists
        lists = sum(len(free_list(image, group)) for group in range(4))
        more = allocation.allocated - allocated_by_partclone("xfs", image, tmp_path)
        assert more.total == lists * (1024 if name == "1k" else 4096)


@pytest.mark.parametrize("name", V4)
def test_version_4(name: str, tmp_path: Path) -> None:
    image = make_v4(tmp_path, *V4[name].split())
    allocation = allocated(image)
    assert allocation.allocated == allocated_by_xfs_db(image)
    assert len(allocation.allocated) > 100
    assert allocation.notes == ()


def test_trees_of_three_levels(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64 * MIB, "-b", "size=1024", "-d", "agcount=1")
    with mounted(image) as place:
        fragment(place / "holes", 32 * MIB, 2048, 1024)
    levels = xfs_db(image, "agf 0", "p bnolevel cntlevel")
    assert levels.split() == ["bnolevel", "=", "3", "cntlevel", "=", "3"]
    allocation = allocated(image).allocated
    assert allocation == allocated_by_xfs_db(image)
    assert len(allocation) > 16_000


def test_smallest_and_just_made(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 16 * MIB)
    assert allocated(image).allocated == allocated_by_xfs_db(image)


def test_full(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 24 * MIB, "-d", "agcount=1")
    with mounted(image) as place, (place / "all").open("wb") as file:
        size = 24 * MIB
        while size >= 4096:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
            except OSError:
                size //= 2
    assert allocated(image).allocated == allocated_by_xfs_db(image)
    assert allocated(image).allocated.total > 22 * MIB


def test_shared_blocks_of_copies(tmp_path: Path) -> None:
    image = make_small(tmp_path / "image")
    with mounted(image) as place:
        for file in write_files(place, 10, 1):
            run("cp", "--reflink=always", file, f"{file}-copy")
            with file.open("r+b") as changed:
                changed.seek(8192)
                changed.write(b"new")
            if file.name.endswith("5"):
                file.unlink()
    assert allocated(image).allocated == allocated_by_xfs_db(image)


def test_another_uuid_than_the_metadata(tmp_path: Path) -> None:
    image = make_small(tmp_path / "image")
    run("xfs_admin", "-U", "generate", image)
    with mounted(image) as place:
        fill(place, 5)
    assert "META_UUID" in xfs_db(image, "version").upper()
    assert allocated(image).allocated == allocated_by_xfs_db(image)


def test_grown(tmp_path: Path) -> None:
    image = make_small(tmp_path / "image")
    os.truncate(image, 5 * SMALL + 5 * MIB)
    with mounted(image) as place:
        run("xfs_growfs", place)
        fill(place, 5)
    allocation = allocated(image)
    assert allocation.size == 5 * SMALL + 5 * MIB
    assert allocation.allocated == allocated_by_xfs_db(image)


def test_log_emptied_by_xfs_repair(tmp_path: Path) -> None:
    image = make_small(tmp_path / "image")
    with mounted(image) as place:
        fill(place, 5)
    run("xfs_repair", "-L", image)
    assert allocated(image).allocated == allocated_by_xfs_db(image)


def test_two_tebibytes(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 2 << 40, "-l", "size=16m", "-d", "agcount=8")
    with mounted(image) as place:
        for number in range(20):  # one folder after the other is put into another group
            (place / f"folder{number}").mkdir()
            write_files(place / f"folder{number}", 2, number, 20_000)
        fragment(place / "holes", 16 * MIB, 8192)
    allocation = allocated(image)
    assert allocation.size == 2 << 40
    assert allocation.allocated == allocated_by_xfs_db(image)
    assert allocation.allocated.end > 1 << 40
    assert allocation.allocated.total < 80 * MIB


def test_device_with_large_sectors(tmp_path: Path) -> None:
    image = make_small(tmp_path / "image", "-s", "size=4096")
    with LoopDevice(image, sector_size=4096) as device:
        with loop_mounted(device.path, tmp_path / "mounted", fs_type="xfs") as place:
            fill(place, 5)
        with SourceDevice(device.path) as source:
            found = read_allocation("xfs", source)
    assert found.allocated == allocated_by_xfs_db(image)


@pytest.mark.parametrize(
    ("options", "device", "reason"),
    [
        ("-l size=8m,logdev={}", "log", "log on another device"),
        ("-l size=8m -r rtdev={}", "realtime", "realtime section"),
    ],
)
def test_parts_on_other_devices(options: str, device: str, reason: str, tmp_path: Path) -> None:
    with LoopDevice(tmp_path / device, 32 * MIB) as other:
        words = options.format(other.path).split()
        image = make(tmp_path / "image", 48 * MIB, *words)
    with pytest.raises(NotUnderstoodError, match=reason):
        allocated(image)


def test_restored_file_system_is_the_same(tmp_path: Path) -> None:
    """Onto a disk full of something else; then every file is compared."""
    disk, image, size = tmp_path / "disk", tmp_path / "image", 96 * MIB
    make(disk, size)
    with mounted(disk) as place:
        fill(place)
        expected = contents(place)
    with LoopDevice(disk, read_only=True) as device:
        imager("capture", device.path, image)
    (volume,) = volumes(info(image))
    assert (volume["kind"], volume["stored"], volume["fs_size"]) == ("xfs", "used", size)
    assert volume["used"] == allocated_by_xfs_db(disk).total
    target = garbage(tmp_path / "target", size)
    imager("restore", "--yes", image, target)
    assert is_consistent(target)
    with mounted(target) as place:
        assert contents(place) == expected


def test_output_says_why_it_is_stored_whole(tmp_path: Path) -> None:
    image = make_small(tmp_path / "image")
    with image.open("r+b") as file:
        superblock = bytearray(file.read(512))
        superblock[219] |= 0x10  # in sb_features_incompat
        seal(superblock, CRC_AT)
        file.seek(0)
        file.write(superblock)
    done = imager("capture", "--dry-run", "--json", image, tmp_path / "target")
    assert "marked as needing repair" in json.dumps(json.loads(done.out))
