"""A store on other file systems: with holes and without, and where no file may be large."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imager.disk.mounts import Mount
from imager.image.sink import MAX_PART
from imager.store import consolidate, folder
from imager.store.catalog import State, read_store
from imager.store.folder import disk_lock, open_store
from imager.store.prune import prune
from imager.store.retention import Rules
from tests.command import imager
from tests.disks import MIB, run
from tests.loop import LoopDevice
from tests.loop import mounted as loop_mounted
from tests.small_disk import garbage
from tests.small_store import CHUNK, DAY, SmallStore
from tests.ssh_server import PASSWORD, USER, ssh_server

MOUNT = {
    "ext4": ("mount", "-t", "ext4"),
    "xfs": ("mount", "-t", "xfs"),
    "btrfs": ("mount", "-t", "btrfs"),
    "ntfs": ("ntfs-3g",),
    "exfat": ("mount.exfat-fuse",),
}
MAKE = {
    "ext4": ("mkfs.ext4", "-q"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ntfs": ("mkfs.ntfs", "-q", "-F"),
    "exfat": ("mkfs.exfat",),
}
SIZE = {"xfs": 320 * MIB, "btrfs": 160 * MIB}


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Path]:
    with LoopDevice(folder / "backing", SIZE.get(kind, 96 * MIB)) as device:
        run(*MAKE[kind], device.path)
        place = folder / "mnt"
        place.mkdir()
        run(*MOUNT[kind], device.path, place)
        try:
            yield place
        finally:
            run("umount", place)


@pytest.mark.parametrize("kind", sorted(MOUNT))
def test_nights_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the full image is no longer needed, and comes back, in one way or the other."""
    monkeypatch.setattr(consolidate, "_LEAST", 1)
    monkeypatch.setattr(consolidate, "_SPARE", MIB)
    with mounted(kind, tmp_path) as place:
        work = place / "work"
        work.mkdir()
        small = SmallStore(work)
        small.capture()
        small.night(*range(12), size=CHUNK - 10)
        small.night(1)
        small.prune(Rules(last=1))
        assert len(small.require_good()) == 1
        small.now += DAY
        report = small.prune(Rules(last=1))
        assert report.notes == ()
        assert report.freed > 11 * CHUNK
        small.night(2)
        assert len(small.require_good()) == 2


@contextmanager
def share(port: int, place: Path) -> Iterator[Path]:
    """One machine's view of a folder on a server: locks end here."""
    place.mkdir()
    options = "password_stdin,dir_cache=no,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"
    run("sshfs", "-p", str(port), f"{USER}@127.0.0.1:/", place, "-o", options, text=f"{PASSWORD}\n")
    try:
        yield place
    finally:
        run("umount", place)


def test_two_machines_share_a_store_whose_locks_do_not_meet(tmp_path: Path) -> None:
    """Each at work in the folder that the other has locked: both see what the other one made."""
    served = tmp_path / "served"
    served.mkdir()
    with (
        ssh_server(served) as port,
        share(port, tmp_path / "one") as one,
        share(port, tmp_path / "two") as two,
    ):
        small = SmallStore(one)
        small.capture()
        other = open_store(two / "store")
        (locked,) = other.disk_folders()
        with disk_lock(locked):
            second = small.night(*range(12), size=CHUNK - 10)
        with disk_lock(small.folder):
            first = prune(other, Rules(last=1), small.now)
            small.now += DAY
            later = prune(other, Rules(last=1), small.now)
        assert (len(first.expired), first.notes, later.notes) == (1, (), ())
        assert small.require_good() == [second.image.name]
        third = small.night(1)
        assert third.parent == second.image
        assert len(small.require_good()) == 2


def test_fat_gets_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel names a FAT file system in its table of mounts."""
    fat = Mount(1, 1, "/", frozenset(), "vfat", "/dev/sdb1", frozenset(("rw",)))
    monkeypatch.setattr(folder, "mount_of", lambda path, mounts: fat)
    small = SmallStore(tmp_path)
    assert small.store.part_size() == MAX_PART
    first = small.capture()
    assert [path.name for path in first.result.image.files] == [f"{first.image.name}.0001.last"]
    second = small.night(1)
    assert second.parent == first.image
    small.prune(Rules(last=1))
    states = {image.name: image.state for image in small.look().images}
    assert states == {first.image.name: State.EXPIRED, second.image.name: State.COMPLETE}
    assert (small.folder / f"{first.image.name}.0001.expired").exists()
    small.require_good()


def test_a_real_file_system_comes_back_from_a_pruned_store(tmp_path: Path) -> None:
    """Nights of ordinary changes; all but the newest given up; restored, checked, compared."""
    disk, store, place = tmp_path / "disk", tmp_path / "store", tmp_path / "home"
    imager("store", "init", store)
    noise = random.Random(5)
    with LoopDevice(disk, 64 * MIB) as device:
        run("mkfs.ext4", "-q", device.path)
        for night in range(5):
            with loop_mounted(device.path, place):
                for number in range(30):
                    (place / f"{number % 11} of {night}").write_bytes(noise.randbytes(20_000))
                (place / "log").open("a").write("a line\n" * 500)
                if night:
                    (place / f"3 of {night - 1}").unlink()
            imager("capture", device.path, "--store", store)
            imager("prune", store, "--keep-last", 1, "--grace", "0h", "-q")
        expected = run("debugfs", "-R", "ls -l /", device.path)
    (folder,) = read_store(open_store(store))
    (newest,) = folder.complete
    assert len([image for image in folder.images if image.state is State.EXPIRED]) == 4
    target = garbage(tmp_path / "target", 64 * MIB)
    imager("restore", "--yes", newest.files.path, target)
    run("e2fsck", "-fn", target)
    assert run("debugfs", "-R", "ls -l /", target) == expected
    imager("check", newest.files.path, "--against", disk)
