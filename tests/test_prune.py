"""Pruning a store: what goes, what stays readable, and what a crash at any step leaves."""

from __future__ import annotations

import datetime
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.check import check
from imager.disk import abi
from imager.errors import ImageError, RefusedError
from imager.extents import Extents
from imager.image.reader import ImageReader
from imager.image.sink import partial_path
from imager.store import consolidate
from imager.store.catalog import State, find_images
from imager.store.prune import prune
from imager.store.retention import Rules
from imager.store.revive import revive
from imager.store.sidecar import pin, unpin
from tests.command import zstd_refuses
from tests.disks import put
from tests.image_files import join, small_parts
from tests.small_store import CHUNK, DAY, SmallStore
from tests.steps import preceded

NO_GRACE = datetime.timedelta(0)
LAST = Rules(last=1)


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    return SmallStore(tmp_path)


def states(small: SmallStore) -> dict[str, State]:
    return {files.path.name: files.state for files in find_images(small.folder)}


def test_no_rule_means_no_prune(small: SmallStore) -> None:
    with pytest.raises(RefusedError, match="no --keep rule"):
        small.prune(Rules(daily=0))


def test_a_full_image_goes_in_two_steps(small: SmallStore) -> None:
    first = small.capture()
    second = small.capture(full=True)
    report = small.prune(LAST)
    assert report.expired == (first.image,)
    assert report.deleted == () and report.waiting == (first.image,)
    expired = first.image.with_name(first.image.name + ".expired")
    assert expired.exists() and zstd_refuses(expired)
    small.now += DAY
    report = small.prune(LAST)
    assert report.deleted == (first.image,)
    assert report.freed > CHUNK
    assert states(small) == {second.image.name: State.COMPLETE}


@pytest.mark.parametrize("split", [None, 4 * CHUNK])
def test_an_image_given_up_can_be_had_back_as_long_as_it_is_whole(
    tmp_path: Path, split: int | None
) -> None:
    small = SmallStore(tmp_path, split=split)
    first = small.capture()
    small.night(*range(8), size=CHUNK - 10)
    before = join(first.result.image.files)
    small.prune(LAST)
    (expired,) = (image.files for image in small.look().images if image.state is State.EXPIRED)
    result = check(expired.opened_as)
    assert "a prune has given it up" in result.problems[0].message
    assert not result.lost
    assert revive(expired.opened_as) == first.image
    assert join(first.result.image.files) == before
    assert len(small.require_good()) == 2
    assert not small.prune(LAST).expired
    unpin(first.image)
    small.prune(LAST, NO_GRACE)
    with pytest.raises(ImageError, match="bytes of the disk are gone from it already"):
        revive(expired.opened_as)
    with pytest.raises(RefusedError, match="was not given up"):
        revive(small.look().complete[0].files.path)


def test_what_a_kept_image_borrows_survives(small: SmallStore) -> None:
    """Chunks 0 to 9 were rewritten since the full image: only these are given back."""
    first = small.capture()
    small.night(*range(10), size=CHUNK - 10)
    third = small.night(20)
    small.prune(LAST)
    small.now += DAY
    report = small.prune(LAST)
    assert report.borrowed and not report.deleted
    assert 9 * CHUNK < report.freed < 11 * CHUNK
    assert small.require_good() == [third.image.name]
    expired = first.image.with_name(first.image.name + ".expired")
    assert check(expired).lost.total == 10 * CHUNK
    # Nothing is left to do, and a later night builds upon what stayed.
    assert small.prune(LAST).freed == 0
    fourth = small.night(2, 21)
    small.require_good()
    assert fourth.parent == third.image


def test_deltas_that_reach_back_need_nothing_between(small: SmallStore) -> None:
    """The fifth image's delta is against the first's chunk: those of the nights between can go."""
    small.capture()
    for _ in range(3):
        small.night(1, size=CHUNK // 4)
    last = small.night(1, size=CHUNK // 4)
    with ImageReader(last.image) as reader:
        assert len(reader.head.parents) == 2
    small.prune(LAST)
    small.now += DAY
    small.prune(LAST)
    assert small.require_good() == [last.image.name]
    between = [i for i in small.look().images if i.state is State.EXPIRED and i.parents]
    assert len(between) == 3
    for image in between:
        assert check(image.files.opened_as).lost == Extents.span(CHUNK, 2 * CHUNK)


def test_nothing_reaches_back_to_an_image_that_was_given_up(small: SmallStore) -> None:
    """What a capture would borrow from it may go at any moment."""
    small.capture()
    for _ in range(3):
        small.night(1)
    small.prune(LAST)
    last = small.night(1)
    with ImageReader(last.image) as reader:
        assert len(reader.head.parents) == 1
    small.require_good()


def test_a_chain_goes_when_nothing_refers_to_it(small: SmallStore) -> None:
    small.capture()
    small.night(1)
    small.night(2)
    small.capture(full=True)
    small.prune(LAST)
    small.now += DAY
    assert len(small.prune(LAST).deleted) == 3
    assert len(small.require_good()) == 1


def test_a_pin_keeps_an_image(small: SmallStore) -> None:
    first = small.capture()
    small.capture(full=True)
    pin(first.image, "before the upgrade")
    assert not small.prune(LAST).expired
    unpin(first.image)
    assert small.prune(LAST).expired == (first.image,)


def test_an_unfinished_capture_counts_as_a_reader(small: SmallStore) -> None:
    """It refers to an image that is given up: nothing of that goes."""
    first = small.capture()
    child = small.night(1)
    small.capture(full=True)
    child.image.rename(partial_path(child.image))
    partial = partial_path(child.image)
    with partial.open("r+b") as file:
        file.truncate(partial.stat().st_size // 2)
    os.utime(partial, (small.now.timestamp(), small.now.timestamp()))
    small.prune(LAST, NO_GRACE)
    report = small.prune(LAST, NO_GRACE)
    assert report.borrowed == (first.image,) and report.freed == 0


def test_abandoned_captures_are_deleted_after_a_day(small: SmallStore) -> None:
    first = small.capture()
    left = partial_path(small.folder / "2026-11-01T03-00-00Z.img")
    left.write_bytes(b"begun")
    os.utime(left, (small.now.timestamp(), small.now.timestamp()))
    assert not small.prune(LAST).deleted
    small.now += DAY
    assert small.prune(LAST).deleted == (left.with_suffix(""),)
    assert states(small) == {first.image.name: State.COMPLETE}


def test_what_a_crash_left_of_a_small_file_is_deleted(small: SmallStore) -> None:
    small.capture()
    fresh, old = (small.folder / f".x.img.json.{number}.new" for number in (1, 2))
    for path, age in ((fresh, DAY / 2), (old, DAY)):
        path.touch()
        os.utime(path, times=((small.now - age).timestamp(),) * 2)
    small.prune(LAST)
    assert fresh.exists() and not old.exists()


def test_nothing_is_given_back_while_an_image_cannot_be_read(small: SmallStore) -> None:
    """It may refer to anything."""
    small.capture()
    small.capture(full=True)
    (small.folder / "odd.img").write_bytes(b"no image")
    small.prune(LAST)
    small.now += DAY
    report = small.prune(LAST)
    assert not report.deleted
    assert any("odd.img does not tell what it needs" in note for note in report.notes)


def test_a_dry_run_changes_nothing(small: SmallStore) -> None:
    small.capture()
    small.night(1)
    before = states(small)
    report = prune(small.store, LAST, small.now, dry_run=True)
    assert [each.kept for each in report.disks[0].decisions] == [True, False]
    assert states(small) == before


def test_a_folder_at_work_is_left_alone(small: SmallStore) -> None:
    from imager.store.folder import disk_lock

    small.capture()
    small.night(1)
    with disk_lock(small.folder):
        report = small.prune(LAST)
    assert not report.expired
    assert "is being worked on by another" in report.notes[0]


def cannot(fd: int, offset: int, length: int) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.fixture
def without_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot punch holes; small copies are worth their while."""
    monkeypatch.setattr(abi, "punch_hole", cannot)
    monkeypatch.setattr(consolidate, "_LEAST", 1)


@pytest.mark.parametrize("split", [None, 4 * CHUNK])
def test_where_no_hole_can_be_punched_a_compact_copy_is_made(
    tmp_path: Path, without_holes: None, split: int | None
) -> None:
    """Half of the full image was rewritten since: the copy has the other half."""
    small = SmallStore(tmp_path, split=split)
    first = small.capture()
    small.night(*range(12), size=CHUNK - 10)
    with small_parts():
        small.prune(LAST, NO_GRACE)
    small.require_good()
    (expired,) = (image for image in small.look().images if image.state is State.EXPIRED)
    assert expired.name == first.image.name.replace(".img", "-c1.img")
    assert 11 * CHUNK < expired.files.size() < 13 * CHUNK
    assert expired.content_digest == small.digests[first.image.name]
    assert all(zstd_refuses(file) for file in expired.files.files[:1])
    assert check(expired.files.opened_as).lost.total == 12 * CHUNK
    # Nothing more is to be had, until somebody needs still less of it.
    assert small.prune(LAST, NO_GRACE).freed == 0
    small.night(*range(12, 20), size=CHUNK - 10)
    with small_parts():
        assert small.prune(LAST, NO_GRACE).freed > 7 * CHUNK
    small.require_good()


def test_a_copy_that_gives_back_little_is_not_made(tmp_path: Path, without_holes: None) -> None:
    small = SmallStore(tmp_path)
    small.capture()
    small.night(*range(5), size=CHUNK - 10)
    assert small.prune(LAST, NO_GRACE).freed == 0
    small.require_good()


def test_a_damaged_image_is_not_copied(tmp_path: Path, without_holes: None) -> None:
    """A frame that is needed has rotted: what a copy would say of it is not proved."""
    small = SmallStore(tmp_path)
    first = small.capture()
    small.night(*range(12), size=CHUNK - 10)
    put(first.image, first.image.stat().st_size * 3 // 4, b"rotten")
    small.prune(LAST, NO_GRACE)
    assert [path.name for path in small.folder.glob("*.expired")] == [first.image.name + ".expired"]


# --- crashes ---


MUTATORS = (
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (os, "pwrite"),
    (os, "fsync"),
    (abi, "punch_hole"),
)


def run_until_step(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that is gone before its `number`th change; whether it came so far."""
    child = os.fork()
    if child == 0:
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            if count == number:
                os._exit(9)

        try:
            for owner, name in MUTATORS:
                setattr(owner, name, preceded(getattr(owner, name), step))
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("split", [None, 5 * CHUNK])
@pytest.mark.parametrize("holes", [True, False])
def test_killed_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: int | None, holes: bool
) -> None:
    """After each, all kept images are good, and the next prune comes to the same end."""
    if not holes:
        monkeypatch.setattr(abi, "punch_hole", cannot)
        monkeypatch.setattr(consolidate, "_LEAST", 1)
    with small_parts():
        expected = kill_at_every_step(tmp_path, split)
    assert any("-c1.img" in name for name in expected) != holes


def kill_at_every_step(tmp_path: Path, split: int | None) -> dict[str, State]:
    """The names and states to which the last prune came."""
    small = SmallStore(tmp_path, split=split)
    small.capture()
    for night in range(4):
        small.night(night, night + 1, *range(9, 23), size=CHUNK - 10)
    small.capture(full=True)
    small.night(1)
    small.prune(Rules(last=4))
    small.now += DAY
    small.capture(full=True)
    home = tmp_path / "home"
    shutil.copytree(small.store.path, home)

    def start_over() -> None:
        shutil.rmtree(small.store.path)
        shutil.copytree(home, small.store.path)

    rules = Rules(last=2)
    small.prune(rules)
    expected = states(small)
    kept = small.require_good()
    assert 1 < len(kept) < len(expected)
    number = 0
    going = True
    while going:
        number += 1
        start_over()
        going = run_until_step(number, lambda: small.prune(rules))
        assert set(kept) <= set(small.require_good())
        small.prune(rules)
        assert states(small) == expected
        assert small.require_good() == kept
    assert number > 10
    return expected


# --- histories ---

RULES = st.builds(
    Rules,
    st.one_of(st.none(), st.integers(1, 3)),
    st.none(),
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(1, 2)),
).filter(lambda rules: not rules.absent)


class Night(NamedTuple):
    """A capture after these chunks have changed."""

    chunks: set[int]
    size: int


class Prune(NamedTuple):
    """A prune by these rules."""

    rules: Rules
    grace: datetime.timedelta


NIGHTS = st.builds(
    Night, st.sets(st.integers(0, 11), max_size=4), st.sampled_from((50, CHUNK - 20))
)
PRUNES = st.builds(Prune, RULES, st.sampled_from((NO_GRACE, DAY, 3 * DAY)))
OTHERS = st.sampled_from(("full", "pin", "lose"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(NIGHTS, NIGHTS, PRUNES, OTHERS), min_size=3, max_size=12), st.data())
def test_any_history_leaves_what_is_kept_readable(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Night | Prune | str], data: st.DataObject
) -> None:
    small = SmallStore(tmp_path_factory.mktemp("history"), chunks=12)
    small.capture()
    for step in steps:
        if isinstance(step, Night):
            small.night(*step.chunks, size=step.size)
        elif isinstance(step, Prune):
            decided = {
                each.image.name
                for disk in prune(small.store, step.rules, small.now, dry_run=True).disks
                for each in disk.decisions
                if each.kept
            }
            small.prune(step.rules, step.grace)
            assert set(small.require_good()) == decided
        elif step == "full":
            small.capture(full=True)
        elif step == "pin":
            pin(data.draw(st.sampled_from(small.look().complete)).files.path)
        else:
            for file in small.folder.glob("*.json"):
                file.unlink()
    assert small.require_good()
    shutil.rmtree(small.store.path.parent)
