"""XFS volumes that were not unmounted: what the log will change is kept, before and after."""

from __future__ import annotations

import os
import random
import re
import struct
import threading
import time
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Allocation
from tests.command import imager
from tests.ext_images import copy
from tests.loop import LoopDevice, run
from tests.small_disk import garbage
from tests.xfs_images import (
    MIB,
    SMALL,
    allocated,
    allocated_by_xfs_db,
    contents,
    crash,
    fill,
    fragment,
    is_consistent,
    make,
    make_small,
    mounted,
    recovered,
    spoil,
    sync,
    write_files,
)
from tests.xfs_log import BTREE, CANCEL, GROUP, SECTOR, Buffer, HandMade, LogShape, buffer_item

NOTE = ("log not replayed: kept what is in use before and after",)


def require_all_kept(image: Path) -> Allocation:
    """AssertionError unless what the reader says is in use is all that mounting needs.

    All else is overwritten; then the log is replayed by the kernel, and every file compared.
    """
    allocation = allocated(image)
    after = recovered(image)
    assert not allocated_by_xfs_db(after) - allocation.allocated
    with mounted(after) as place:
        expected = contents(place)
    spoil(image, allocation)
    with mounted(image) as place:
        assert contents(place) == expected
    assert is_consistent(image)
    return allocation


def churn(place: Path, seed: int, rounds: int) -> None:
    """Files come and go, are punched and copied; some of it is forced into the log meanwhile."""
    rng = random.Random(seed)
    for step in range(rounds):
        what = rng.random()
        files = [path for path in place.iterdir() if path.is_file()]
        if what < 0.5:
            write_files(place, rng.randrange(20, 200), step, rng.choice((100, 5000, 30_000)))
        elif what < 0.7:
            for file in files:
                if rng.random() < 0.5:
                    file.unlink()
        elif what < 0.8:
            fragment(place / "holes", rng.randrange(1, 6) * MIB, 8192)
        elif what < 0.9:
            for file in files[:3]:
                run("cp", "--reflink=auto", file, f"{file}-copy")
        else:
            sync(place)


CRASHES = {
    "default": ("", ""),
    "one-group": ("-d agcount=1", ""),
    "rmap-1k": ("-b size=1024 -m rmapbt=1", "logbsize=256k"),
    "log-stripe": ("-l su=32k,size=16m", "logbsize=64k"),
    "sectors-4096": ("-s size=4096", "logbsize=128k"),
    "plain": ("-m reflink=0,finobt=0,inobtcount=0,bigtime=0", ""),
}
"""Name to options of mkfs.xfs and mount."""


@pytest.mark.parametrize("name", CRASHES)
def test_after_a_crash(name: str, tmp_path: Path) -> None:
    made, options = CRASHES[name]
    image = make(tmp_path / "image", 96 * MIB, *made.split())
    seed = sorted(CRASHES).index(name)
    with mounted(image, *options.split()) as place:
        churn(place, seed, 12)
        sync(place)
        write_files(place, 20, 99)
        crash(place, flush=seed % 2 == 0)
    assert require_all_kept(image).notes == NOTE


def test_after_a_crash_with_a_log_that_went_round(tmp_path: Path) -> None:
    """So much was logged that parts of it are in their places, and others are not."""
    image = make_small(tmp_path / "image", "-i", "size=2048")

    def goes_round() -> bool:
        told = re.search(r"tail: (\d+) head: (\d+)", run("xfs_logprint", "-t", image))
        return told is not None and int(told[1]) > int(told[2])

    with mounted(image) as place:
        for number in range(60):
            for file in write_files(place, 100, number % 2, 1500):
                os.setxattr(file, "user.filler", b"v" * 1500)
            if number % 3 == 2:
                fragment(place / "holes", 2 * MIB, 8192)
            sync(place)
            if number > 5 and goes_round():
                break
        crash(place)
    assert goes_round()
    assert require_all_kept(image).notes == NOTE


def test_at_any_instant(tmp_path: Path) -> None:
    """Copies of a file system at work that the one below it makes at one instant each."""
    instants, refused = 4, 0
    outer = make(tmp_path / "outer", 1 << 30, "-l", "size=16m")
    with mounted(outer) as below:
        image = make(below / "image", 192 * MIB, "-l", "size=12m")
        with mounted(image) as place:
            worker = threading.Thread(target=churn, args=(place, 7, 25))
            worker.start()
            for number in range(instants):
                time.sleep(0.3)
                run("cp", "--reflink=always", image, below / f"instant{number}")
            worker.join()
        for number in range(instants):
            try:
                require_all_kept(below / f"instant{number}")
            except NotUnderstoodError as doubt:
                assert str(doubt) == "its log has a gap"  # records were under way
                refused += 1
    assert refused < instants


def test_what_was_freed_just_before_is_kept(tmp_path: Path) -> None:
    """It is in use on disk, and free once the log has been replayed."""
    image = make_small(tmp_path / "image")
    with mounted(image) as place:
        files = write_files(place, 20, 1)
    before = allocated(image).allocated
    with mounted(image) as place:
        for file in files:
            (place / file.name).unlink()
        sync(place)
        crash(place)
    after = allocated_by_xfs_db(recovered(image))
    assert before - after
    assert allocated(image).allocated == before | after


def test_files_deleted_while_open(tmp_path: Path) -> None:
    """Mounting frees their blocks after the replay."""
    image = make_small(tmp_path / "image")
    with mounted(image) as place:
        files = write_files(place, 10, 1)
        sync(place)
        held = [file.open("rb") for file in files]
        for file in files:
            file.unlink()
        crash(place)
        for open_file in held:
            open_file.close()
    assert require_all_kept(image).notes == NOTE


def test_frozen(tmp_path: Path) -> None:
    """A freeze leaves a log that is not clean, but all maps in their places."""
    image = make_small(tmp_path / "image")
    with mounted(image) as place:
        fill(place, 10)
        (place / "folder" / "1-1").unlink()
        run("fsfreeze", "--freeze", place)
        try:
            frozen = copy(image, "frozen")
        finally:
            run("fsfreeze", "--unfreeze", place)
    assert "DIRTY" in run("xfs_logprint", "-t", frozen)
    allocation = allocated(frozen)
    assert allocation.allocated == allocated_by_xfs_db(recovered(frozen))
    assert allocation.notes == ()


def test_restored_after_a_crash(tmp_path: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image"
    make_small(disk)
    with mounted(disk) as place:
        fill(place, 20)
        sync(place)
        expected = contents(place)
        crash(place)
    with LoopDevice(disk, read_only=True) as device:
        done = imager("capture", device.path, image)
    assert NOTE[0] in done.out
    target = garbage(tmp_path / "target", 2 * SMALL)
    imager("restore", "--yes", image, target)
    with mounted(target) as place:
        assert contents(place) == expected
    assert is_consistent(target)


def test_growth_in_the_log(tmp_path: Path) -> None:
    image = make_small(tmp_path / "image")
    os.truncate(image, 4 * SMALL)
    with mounted(image) as place:
        run("xfs_growfs", place)
        crash(place)
    with pytest.raises(NotUnderstoodError, match="its log changes the file system's layout"):
        allocated(image)


FAR = (2000, 2001, 4000)
EARLIER = 3000
FORMATS = {"v5": "", "v5-1k": "-b size=1024", "v4": "-m crc=0", "v4-512": "-m crc=0 -b size=512"}
"""Name to mkfs.xfs options."""
SHAPES = {
    "plain": LogShape(),
    "small-records": LogShape(room=600),
    "large-records": LogShape(size=256 << 10, room=200_000),
    "round": LogShape(at=16_380, room=600),
    "round-in-a-header": LogShape(at=16_381, size=256 << 10, room=200_000),
}


def by_kernel(made: HandMade) -> Extents:
    """What mounting adds to what was in use; the reader's answer where the kernel has no version 4."""
    if not made.layout.checksums:
        return made.extra()
    return allocated_by_xfs_db(recovered(made.image)) - made.before


@pytest.fixture(params=FORMATS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> HandMade:
    return HandMade(tmp_path, *FORMATS[request.param].split())


class TestHandMadeLogs:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_all_transactions_count(self, made: HandMade, shape: str) -> None:
        made.log(EARLIER)
        made.log(*FAR)
        made.write(SHAPES[shape])
        assert made.extra() == by_kernel(made) == made.expected(EARLIER, *FAR)
        assert allocated(made.image).notes == NOTE

    def test_uncommitted_does_not_count(self, made: HandMade) -> None:
        made.log(*FAR)
        made.log(EARLIER, commit=False)
        made.write()
        assert made.extra() == by_kernel(made) == made.expected(*FAR)

    def test_mixed_transactions(self, made: HandMade) -> None:
        """The one that is committed later counts, wherever it began."""
        old, new = made.take(EARLIER), made.take(*FAR)
        whole = [buffer._replace(old=None) for buffer in new]
        later, earlier = made.add(*whole), made.add(*old)
        made.mix(later, earlier)
        made.write(LogShape(room=600))
        assert made.extra() == by_kernel(made) == made.expected(EARLIER, *FAR)

    def test_what_was_given_up_does_not_count(self, made: HandMade) -> None:
        """A block that was part of the trees for a while, and holds something else since."""
        place = made.layout.group_start(GROUP) + 2000 * made.layout.block_size
        content = made.image.read_bytes()[place : place + made.layout.block_size]
        (_, tree, _) = made.take()
        made.add(Buffer(place, tree.new, BTREE))
        made.log(2000)
        made.add(Buffer(place, content, CANCEL))
        made.write()
        assert made.extra() == by_kernel(made) == made.expected(2000)

    def test_torn_last_record(self, made: HandMade) -> None:
        """Of several writes under way the later one arrived, or its first half."""
        made.log(EARLIER)
        first = made.write(LogShape(room=600))
        made.log(*FAR)
        end = made.write(LogShape(room=600))
        start, _ = made.layout.log_range()
        old = (4).to_bytes(4, "big").ljust(SECTOR, b"\0")
        assert end > first + 1
        made.patch(start + (end - 1) * SECTOR, old)
        assert made.extra() == by_kernel(made) == made.expected(EARLIER)

    def test_partly_in_place(self, made: HandMade) -> None:
        """AGF and trees on disk are of different ages."""
        made.log(EARLIER)
        made.log(*FAR)
        made.write()
        made.checkpoint(0, 1)
        assert made.extra() == made.expected(EARLIER, *FAR)

    def test_trees_that_have_moved(self, made: HandMade) -> None:
        """Where they were there is something else, so that on disk nothing is known to be free."""
        moved = (2000, 2001)
        agf, *trees = made.take(*moved)
        header = bytearray(agf.new)
        struct.pack_into(">II", header, 16, *moved)
        made.add(
            agf._replace(new=bytes(header)),
            *(made.moved(tree, block) for tree, block in zip(trees, moved, strict=True)),
        )
        made.write()
        assert made.extra() == by_kernel(made) == made.expected(*moved)
        made.patch(trees[0].start, bytes(made.layout.block_size))
        assert by_kernel(made) - made.extra() == Extents()
        length = made.layout.group_length(GROUP)
        assert made.extra() == made.expected(*range(length)) - made.before

    def test_without_a_log(self, made: HandMade) -> None:
        assert made.extra() == Extents()


def test_newer_block_is_not_set_back(tmp_path: Path) -> None:
    """One that was written after the log's transaction, as its LSN says."""
    made = HandMade(tmp_path)
    made.log(EARLIER)
    made.take(*FAR)
    for index in range(3):
        made.set_lsn(index, 5 << 32 | LogShape.at + 1)
    made.checkpoint(0, 1, 2)
    made.write()
    assert made.extra() == by_kernel(made) == made.expected(EARLIER, *FAR)


def test_log_of_version_1(tmp_path: Path) -> None:
    """Which only version 4 of the file system can have."""
    made = HandMade(tmp_path, "-m", "crc=0", "-l", "version=1")
    made.log(EARLIER)
    made.log(*FAR)
    made.write(LogShape(version=1, checksum=False))
    assert made.extra() == made.expected(EARLIER, *FAR)


def test_unknown_items(tmp_path: Path) -> None:
    made = HandMade(tmp_path)
    buffers = made.take(*FAR)
    item = buffer_item(buffers[0])
    made.add_items([b"\x50\x12\x01\x00" + bytes(12)], item)
    made.write()
    with pytest.raises(NotUnderstoodError, match="items of the unknown kind 0x1250"):
        made.extra()


def test_more_transactions_than_can_be_under_way(tmp_path: Path) -> None:
    made = HandMade(tmp_path)
    made.begin(5000)
    made.write()
    with pytest.raises(NotUnderstoodError, match="too large transactions, or too many"):
        made.extra()


def test_records_of_another_machine(tmp_path: Path) -> None:
    made = HandMade(tmp_path)
    made.log(*FAR)
    made.write(LogShape(checksum=False, format=2))
    with pytest.raises(NotUnderstoodError, match="its log is of another kind of machine"):
        made.extra()
