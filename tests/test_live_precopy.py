"""The rounds, against a simulated disk that is written all the time while it is read.

A write is queued, lands some steps later, and completes still later; a read in between sees it or
not. Only completion is recorded. After the freeze the copy must be the disk, whatever the order was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.extents import Extents
from imager.live.patches import READ_ACROSS, Patches
from imager.live.precopy import Limits, Precopy, Speed, TooBusyError

PAGE = 4096
PAGES = 96
LIMITS = Limits(0.02, 5.0)


@dataclass
class Write:
    page: int
    data: bytes
    landed: bool = False


@dataclass
class Disk:
    """A disk with a writer; also the record of writes, and the clock."""

    seed: int
    rate: float
    """Writes that are queued in a step, on average; below 1."""
    recorded: Callable[[Write, str], bool] = lambda write, stage: stage == "completed"
    pages: list[bytes] = field(default_factory=lambda: [bytes(PAGE)] * PAGES)
    frozen: bool = False
    time: float = 0.0
    late: int = 0
    """Writes that no freeze stops."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.pending: list[Write] = []
        self.dirty: set[int] = set()
        self.used = set(range(0, PAGES, 2))

    def step(self) -> None:
        """A moment passes."""
        self.time += 0.001
        rng = self.random
        if self.frozen:
            if self.late and rng.random() < 0.5:
                self.late -= 1
                self._queue()
                self._finish()
            return
        if rng.random() < self.rate:
            self._queue()
        for write in self.pending:
            if not write.landed and rng.random() < 0.3:
                self._land(write)
        for write in list(self.pending):
            if write.landed and rng.random() < 0.3:
                self._complete(write)

    def freeze(self) -> None:
        """All that is under way completes, nothing new begins."""
        self._finish()
        self.frozen = True

    def readinto(self, offset: int, view: memoryview) -> None:
        for place in range(0, len(view), PAGE):
            self.step()
            view[place : place + PAGE] = self.pages[(offset + place) // PAGE]

    def clock(self) -> float:
        return self.time

    def take(self) -> Extents:
        for _ in range(3):
            self.step()
        ranges, self.dirty = self.waiting(), set()
        return ranges

    def waiting(self) -> Extents:
        return Extents.of((page * PAGE, (page + 1) * PAGE) for page in self.dirty)

    def idle(self) -> bool:
        return not self.pending

    def verify(self) -> None:
        """Nothing is ever lost here."""

    def allocated(self) -> Extents:
        return Extents.of((page * PAGE, (page + 1) * PAGE) for page in self.used)

    def _queue(self) -> None:
        page = self.random.randrange(PAGES)
        self.used.add(page)
        write = Write(page, self.random.randbytes(PAGE))
        self.pending.append(write)
        self._record(write, "queued")

    def _land(self, write: Write) -> None:
        write.landed = True
        self.pages[write.page] = write.data

    def _complete(self, write: Write) -> None:
        self.pending.remove(write)
        self._record(write, "completed")

    def _finish(self) -> None:
        for write in list(self.pending):
            if not write.landed:
                self._land(write)
            self._complete(write)

    def _record(self, write: Write, stage: str) -> None:
        if self.recorded(write, stage):
            self.dirty.add(write.page)


def copied(disk: Disk, patches: Patches, first: dict[int, bytes]) -> dict[int, bytes]:
    """What the copy has of each page that was read at all."""
    found = dict(first)
    for page in range(PAGES):
        for offset, data in patches.within(page * PAGE, (page + 1) * PAGE):
            assert offset == page * PAGE
            found[page] = data
    return found


def run(disk: Disk, limits: Limits = LIMITS) -> tuple[list[int], bool]:
    """A whole capture; the rounds, and whether the copy has all pages in use as they are."""
    patches = Patches(disk.readinto, None, threads=1, clock=disk.clock)
    disk.take()
    looked_at = disk.allocated()
    first = {}
    for start, end in looked_at:
        for page in range(start // PAGE, end // PAGE):
            view = bytearray(PAGE)
            disk.readinto(page * PAGE, memoryview(view))
            first[page] = bytes(view)
    precopy = Precopy(disk, patches, limits, Speed(PAGE * 1000.0, 0.0), 0.0, disk.clock)
    precopy.run()
    precopy.round()
    precopy.require_short()
    disk.freeze()
    precopy.instant(lambda: disk.allocated() - looked_at - patches.covered)
    copy = copied(disk, patches, first)
    patches.close()
    return precopy.rounds, all(copy.get(page) == disk.pages[page] for page in disk.used)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.6))
def test_copy_is_the_disk_at_the_instant(seed: int, rate: float) -> None:
    _, same = run(Disk(seed, rate))
    assert same


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_writes_that_no_freeze_stops_are_read_until_they_end(seed: int, late: int) -> None:
    disk = Disk(seed, 0.3, late=late)
    _, same = run(disk)
    assert same
    assert disk.late == 0 or disk.frozen


def failures(recorded: Callable[[Write, str], bool]) -> int:
    """In how many of 40 captures the copy is not the disk."""
    return sum(not run(Disk(seed, 0.4, recorded))[1] for seed in range(40))


def test_wrong_ways_to_record_are_seen() -> None:
    """So the property above is known to see what it should."""
    assert failures(lambda write, stage: False) == 40
    assert failures(lambda write, stage: stage == "queued") > 0
    assert failures(lambda write, stage: stage == "completed") == 0


def test_a_set_that_is_emptied_after_reading_is_seen() -> None:
    class Late(Disk):
        """Empties the set only when the next round begins, so loses what came while it was read."""

        def take(self) -> Extents:
            ranges = self.waiting()
            for _ in range(8):
                self.step()
            self.dirty = set()
            return ranges

    assert any(not run(Late(seed, 0.4))[1] for seed in range(40))


def test_a_quiet_disk_takes_one_round() -> None:
    rounds, same = run(Disk(1, 0.0))
    assert same
    assert len(rounds) == 3  # one, the one before the freeze, the one inside
    assert rounds[:2] == [0, 0]


def test_a_writer_faster_than_the_reader_is_never_frozen() -> None:
    class Fast(Disk):
        def step(self) -> None:
            super().step()
            self.dirty |= set(range(0, PAGES, 5))

    disk = Fast(1, 0.9)
    with pytest.raises(TooBusyError, match=r"after \d+ rounds .* are left, a pause of about"):
        run(disk, Limits(0.0001, 0.01))
    assert not disk.frozen


def test_what_does_not_stop_inside_the_freeze_is_given_up() -> None:
    class Endless(Disk):
        def step(self) -> None:
            super().step()
            if self.frozen:
                self._queue()
                self._finish()

    disk = Endless(1, 0.3)
    with pytest.raises(TooBusyError, match=r"does not stop|at a quieter time"):
        run(disk, Limits(0.05, 0.5))


def test_too_much_that_was_never_read_is_not_begun_inside_the_freeze() -> None:
    disk = Disk(1, 0.0)
    patches = Patches(disk.readinto, None, threads=1, clock=disk.clock)
    precopy = Precopy(disk, patches, Limits(0.01, 0.02), Speed(PAGE * 1000.0, 0), 0, disk.clock)
    with pytest.raises(TooBusyError, match="had to be read while everything stands still"):
        precopy.instant(lambda: Extents.span(0, PAGES * PAGE))
    assert disk.time < 0.02


def test_rounds_go_on_while_they_shrink() -> None:
    rounds, same = run(Disk(3, 0.5), Limits(0.0001, 5.0))
    assert same
    assert 3 <= len(rounds) <= 30


def test_the_expected_pause_follows_what_was_seen() -> None:
    speed = Speed(1e6)
    speed.saw(100 * PAGE, 100, 100 * PAGE / 1e6 + 1.0)
    assert speed.piece == pytest.approx(0.01)
    near = Extents.of((n * 2 * PAGE, n * 2 * PAGE + PAGE) for n in range(10))
    assert len(Patches(lambda offset, view: None, None).to_read(near)) == 1
    apart = Extents.of((n * 10 * READ_ACROSS, n * 10 * READ_ACROSS + PAGE) for n in range(10))
    assert speed.expect(apart) == pytest.approx(0.1 + 10 * PAGE / 1e6)
    speed.saw(1 << 25, 32, (1 << 25) / 4e6)
    assert speed.rate == pytest.approx(4e6)


ranges = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40)), max_size=8)


@settings(deadline=None)
@given(st.lists(ranges, max_size=4), st.integers(1, 64))
def test_patches_come_back_as_they_were_read(
    rounds: list[list[tuple[int, int]]], step: int
) -> None:
    """Whatever ranges the rounds have, and in whatever pieces they are asked for."""
    now = 0
    disk = bytearray(512 * 1024)

    def readinto(offset: int, view: memoryview) -> None:
        view[:] = bytes([now]) * len(view)

    with_memory = Patches(readinto, None, threads=1)
    for now, made in enumerate(rounds, 1):
        extents = Extents.of((start * 1024, (start + size) * 1024) for start, size in made)
        extents = extents.clip(0, len(disk))
        reading = with_memory.read(extents, memory=4096)
        joined = extents.without_gaps(READ_ACROSS)
        assert reading.size == joined.total
        for start, end in joined:
            disk[start:end] = bytes([now]) * (end - start)
    for _ in range(2):
        with_memory.rewind()
        again = bytearray(len(disk))
        for start in range(0, len(disk), step * 1024):
            for offset, data in with_memory.within(start, min(start + step * 1024, len(disk))):
                again[offset : offset + len(data)] = data
        assert again == disk
    with_memory.close()
