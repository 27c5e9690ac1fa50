"""Checks by turns: when which images are checked, and that what they share is read once."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.check import check
from imager.errors import ImagerError
from imager.image.format import ChunkKind, Entry
from imager.image.index import Segment
from imager.image.reader import ImageReader
from imager.store.checking import check_family, due_for_check, families
from imager.store.retention import Rules
from tests.disks import put
from tests.small_store import CHUNK, DAY, FIRST, SmallStore

HOUR = datetime.timedelta(hours=1)


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    return SmallStore(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(2, 60), st.integers(1, 3))
def test_each_image_is_checked_within_the_time(
    sizes: list[int], within_days: int, interval_days: int
) -> None:
    """A model: the same families for a year, checked whenever it is their turn."""
    within, interval = within_days * DAY, interval_days * DAY
    if interval * 2 > within:
        return
    groups = [[Waiting(FIRST - number * HOUR) for _ in range(n)] for number, n in enumerate(sizes)]
    most = checked = 0
    now = FIRST
    while now < FIRST + 365 * DAY:
        due = due_for_check(groups, now, within, interval)
        most = max(most, len(due))
        for family in due:
            for image in family:
                image.check = Waiting(now)
                checked += 1
        now += interval
        assert all(now - image.last <= within for family in groups for image in family)
    share = len(sizes) * interval / within
    assert most <= 2 * share + 1 or most <= len(sizes)
    # None is checked twice within half of the time.
    assert checked <= sum(sizes) * (2 * 365 * DAY / within + 2)


class Waiting:
    """An image, or the record of its check, as far as its turn depends on it."""

    def __init__(self, moment: datetime.datetime) -> None:
        self.created = self.when = moment
        self.check: Waiting | None = None

    @property
    def last(self) -> datetime.datetime:
        return self.check.when if self.check else self.created


def test_after_an_interruption_the_rest_is_checked() -> None:
    """One of three was checked yesterday, when the machine was switched off; the newest never was."""
    oldest, older, newest = (Waiting(FIRST + days * DAY) for days in (0, 1, 28))
    oldest.check = Waiting(FIRST + 29 * DAY)
    family = [newest, older, oldest]
    (due,) = due_for_check([family], FIRST + 30 * DAY, 30 * DAY, DAY)
    assert list(due) == [newest, older]


def test_images_that_share_a_full_one_are_a_family(small: SmallStore) -> None:
    nights = [small.capture(), small.night(1), small.night(2)]
    later = [small.capture(full=True), small.night(3)]
    small.prune(Rules(last=4))
    folder = small.look()
    found = [{image.name for image in family} for family in families(folder, folder.complete)]
    assert found == [{each.image.name for each in later}, {each.image.name for each in nights[1:]}]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_chain_shares_is_read_once(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Ten images checked together: each one's frames are read once, but for the bases of deltas."""
    full = small.capture()
    for night in range(9):
        small.night(night, size=CHUNK - 10)  # stored whole, so that no delta reads its base
    if damaged:
        put(full.image, full.image.stat().st_size - 40_000 - 3 * CHUNK, b"rotten")
    frames = 0
    real = ImageReader.read_frames

    def counted(reader: ImageReader, entries: Sequence[Entry]) -> list[memoryview | ImagerError]:
        nonlocal frames
        frames += len(entries)
        return real(reader, entries)

    monkeypatch.setattr(ImageReader, "read_frames", counted)
    folder = small.look()
    (family,) = families(folder, folder.complete)
    alone = [check(image.files.opened_as, threads=1) for image in family]
    frames = 0
    verdicts = [verdict for _, verdict, _ in check_family(family, lambda: small.now)]
    assert verdicts == [result.verdict for result in alone]
    assert ("failed" in verdicts) == damaged
    assert frames == 24 + 9 + 9 * damaged
    assert [image.check and image.check.lost for image in small.look().complete] == [
        result.lost for result in alone
    ]


def test_zeros_of_which_a_child_needs_a_part_are_still_proved(small: SmallStore) -> None:
    """The child does not look at the frame of the whole run, so its parent's check has to."""
    small.disk.write_bytes(small.random.randbytes(4 * CHUNK) + bytes(20 * CHUNK))
    full = small.capture()
    child = small.night(10)
    with ImageReader(full.image) as image:
        segment = next(image.segments())
        assert isinstance(segment, Segment)
        zeros = segment.entries[-1]
    assert zeros.kind == ChunkKind.ZERO
    put(full.image, zeros.offset + 20, b"!")
    folder = small.look()
    newest_first = [folder.complete[0], folder.complete[1]]
    assert newest_first[0].files.path == child.image
    verdicts = [verdict for _, verdict, _ in check_family(newest_first, lambda: small.now)]
    assert verdicts == ["ok", "failed"]
