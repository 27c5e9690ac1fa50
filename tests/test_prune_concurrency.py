"""A capture and a prune at once, without locks and without a grace time, in any order of steps."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.check import check
from imager.disk import abi
from imager.image.reader import ImageReader
from imager.image.sink import FileSink
from imager.store import capture as store_capture
from imager.store import consolidate
from imager.store import prune as store_prune
from imager.store.catalog import State
from imager.store.retention import Candidate, Decision, Rules
from tests.disks import put
from tests.image_files import small_parts
from tests.small_store import CHUNK, DAY, SmallStore, require_content
from tests.steps import preceded

STEPS: tuple[tuple[object, str], ...] = (
    (Path, "rename"),
    (Path, "unlink"),
    (os, "pwrite"),
    (os, "fsync"),
    (abi, "punch_hole"),
    (ImageReader, "__init__"),
    (FileSink, "__init__"),
)
_CAPTURE, _PRUNE = "a capture", "a prune"


class Turns:
    """Lets two threads take one step each time it is their turn."""

    def __init__(self, order: Sequence[bool]) -> None:
        self._order = iter(order)
        self._changed = threading.Condition()
        self._running = {_CAPTURE, _PRUNE}
        self._turn = ""
        self._next()

    def step(self) -> None:
        """Wait for the turn; threads of another name do not take part."""
        me = threading.current_thread().name
        if me not in (_CAPTURE, _PRUNE):
            return
        with self._changed:
            self._changed.wait_for(lambda: self._turn == me)
            self._next()
            self._changed.notify_all()

    def end(self) -> None:
        """The thread has come to its end: the other goes on alone."""
        with self._changed:
            self._running.discard(threading.current_thread().name)
            self._next()
            self._changed.notify_all()

    def _next(self) -> None:
        wanted = _CAPTURE if next(self._order, True) else _PRUNE
        self._turn = wanted if wanted in self._running else next(iter(self._running), "")


@contextlib.contextmanager
def stepping(turns: Turns) -> Iterator[None]:
    """Each step of either thread waits for its turn."""

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, preceded(getattr(owner, name), turns.step))
        for module in (store_capture, store_prune):
            patch.setattr(module, "disk_lock", lambda folder: contextlib.nullcontext())
        yield


def cannot(fd: int, offset: int, length: int) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def give_up_all_but_the_oldest(
    images: Sequence[Candidate], rules: Rules, now: object
) -> tuple[Decision, ...]:
    ordered = sorted(images, key=lambda image: image.created, reverse=True)
    return tuple(Decision(image, ("oldest",) if image is ordered[-1] else ()) for image in ordered)


def give_up_all_but_the_newest(
    images: Sequence[Candidate], rules: Rules, now: object
) -> tuple[Decision, ...]:
    ordered = sorted(images, key=lambda image: image.created, reverse=True)
    return tuple(Decision(image, ("newest",) if image is ordered[0] else ()) for image in ordered)


def race(
    small: SmallStore,
    order: Sequence[bool],
    holes: bool = True,
    decide: object = give_up_all_but_the_oldest,
    other: Callable[[], object] | None = None,
) -> None:
    """Capture and prune (or something else) at once; AssertionError unless all that is left is good.

    Without `holes` the file system cannot punch any, and compact copies are made.
    """
    turns = Turns(order)
    failures: list[BaseException] = []

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)
        finally:
            turns.end()

    def prune_now() -> object:
        return small.prune(Rules(last=1), NO_GRACE)

    threads = [
        threading.Thread(target=run, args=(small.capture,), name=_CAPTURE),
        threading.Thread(target=run, args=(other or prune_now,), name=_PRUNE),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_prune, "decide", decide)
        if not holes:
            patch.setattr(abi, "punch_hole", cannot)
            patch.setattr(consolidate, "_LEAST", 1)
        with stepping(turns):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert not failures, failures
    for image in small.look().images:
        if image.state is State.COMPLETE:
            require_content(image.files.opened_as, small.digests[image.name])


NO_GRACE = store_prune.DEFAULT_GRACE * 0


def make_tempting(folder: Path, split: int | None = None) -> SmallStore:
    """The newest image is given up; the oldest, kept, borrows all of it but for chunks 2 to 6.

    The disk holds what it held when the newest was captured: the next capture needs them.
    """
    small = SmallStore(folder, chunks=8, split=split)
    small.now += 9 * DAY
    small.capture()
    before = small.disk.read_bytes()
    small.now -= 9 * DAY
    small.night(2, 3, 4, 5, 6, size=CHUNK - 20)
    small.now += 20 * DAY
    small.disk.write_bytes(before)
    small.write(1)
    return small


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 25)), max_size=12), st.booleans())
def test_no_order_of_steps_hurts(
    tmp_path_factory: pytest.TempPathFactory, order: list[tuple[bool, int]], holes: bool
) -> None:
    small = make_tempting(tmp_path_factory.mktemp("race"))
    race(small, [who for who, count in order for _ in range(count)], holes)
    shutil.rmtree(small.store.path.parent)


@pytest.mark.parametrize("before", range(0, 60, 2))
def test_a_whole_prune_at_each_point_of_a_capture(tmp_path: Path, before: int) -> None:
    race(make_tempting(tmp_path), [True] * before + [False] * 1000, holes=before % 4 == 0)


@pytest.mark.parametrize("first", [4, 6, 8])
@pytest.mark.parametrize("second", range(16))
def test_a_capture_that_has_chosen_goes_on_within_a_prune(
    tmp_path: Path, first: int, second: int
) -> None:
    order = [True] * first + [False] * second + [True] * 1000
    race(make_tempting(tmp_path), order, holes=second % 2 == 0)


def make_reaching(folder: Path) -> SmallStore:
    """The next capture's delta of chunk 1 is against the first image, which nobody else needs there.

    The fourth image has another chunk 1, stored whole; on the disk is nearly the first one's again.
    """
    small = SmallStore(folder, chunks=8)
    small.capture()
    before = small.disk.read_bytes()[CHUNK : 2 * CHUNK]
    small.night(5)
    small.night(6)
    small.night(1, size=CHUNK - 20)
    put(small.disk, CHUNK, before)
    small.write(1)
    return small


def test_a_capture_reaches_back(tmp_path: Path) -> None:
    """What the next test is about does happen."""
    done = make_reaching(tmp_path).capture()
    with ImageReader(done.image) as image:
        assert len(image.head.parents) == 2
        bases = [base for segment in image.segments() for base in getattr(segment, "bases", ())]
        assert [base.parent for base in bases] == [1]


@pytest.mark.parametrize("first", range(8, 12))
@pytest.mark.parametrize("second", range(15, 42, 3))
def test_an_older_image_is_given_up_meanwhile(tmp_path: Path, first: int, second: int) -> None:
    order = [True] * first + [False] * second + [True] * 1000
    race(make_reaching(tmp_path), order, decide=give_up_all_but_the_newest)


@pytest.mark.parametrize("first", range(0, 40, 2))
def test_a_whole_prune_while_a_capture_reaches_back(tmp_path: Path, first: int) -> None:
    order = [True] * first + [False] * 1000
    race(make_reaching(tmp_path), order, decide=give_up_all_but_the_newest)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=12))
def test_two_captures_at_once(
    tmp_path_factory: pytest.TempPathFactory, order: list[tuple[bool, int]]
) -> None:
    """From two machines whose locks do not meet: both build upon the same image, or one another."""
    small = SmallStore(tmp_path_factory.mktemp("two"), chunks=8)
    small.capture()
    small.write(2)
    later = small.now + DAY / 2

    def other() -> None:
        done = store_capture.capture_into(small.store, small.disk, small.options, later)
        small.digests[done.image.name] = done.result.image.content_digest

    race(small, [who for who, count in order for _ in range(count)], other=other)
    assert len(small.look().complete) == 3
    shutil.rmtree(small.store.path.parent)


# --- killed meanwhile ---


def capture_killed_when_named(small: SmallStore, stop: int) -> bool:
    """A capture that stands still before its step `stop` while all is pruned, and is killed when its
    image has got its name; whether it came so far as to stand still."""
    patch = pytest.MonkeyPatch()
    child = os.fork()
    if child == 0:
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                os.kill(os.getpid(), signal.SIGSTOP)

        rename = Path.rename

        def rename_and_die(path: Path, target: Path) -> None:
            rename(path, target)
            if target.name.endswith((".img", ".last")):
                os._exit(9)

        try:
            patch.setattr(Path, "rename", rename_and_die)
            for owner, name in STEPS:
                setattr(owner, name, preceded(getattr(owner, name), step))
            small.capture()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, os.WUNTRACED)
    stopped = os.WIFSTOPPED(status)
    if stopped:
        small.prune(Rules(last=1), NO_GRACE)
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    return stopped


@pytest.mark.parametrize(("split", "holes"), [(None, True), (4 * CHUNK, False)])
def test_killed_between_its_name_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: int | None, holes: bool
) -> None:
    """Wherever a prune comes in between, the image that has a name can be read."""
    for module in (store_capture, store_prune):
        monkeypatch.setattr(module, "disk_lock", lambda folder: contextlib.nullcontext())
    monkeypatch.setattr(store_prune, "decide", give_up_all_but_the_oldest)
    if not holes:
        monkeypatch.setattr(abi, "punch_hole", cannot)
        monkeypatch.setattr(consolidate, "_LEAST", 1)
    place = tmp_path / "store"
    with small_parts():
        home = make_tempting(tmp_path, split)
        shutil.copytree(home.store.path, tmp_path / "kept")
        stop = 0
        going = True
        while going:
            stop += 1
            shutil.rmtree(place)
            shutil.copytree(tmp_path / "kept", place)
            going = capture_killed_when_named(home, stop)
            for image in home.look().complete:
                assert check(image.files.opened_as, threads=1).verdict == "ok", stop
            done = home.capture()
            assert check(done.image, threads=1).verdict == "ok"
            home.now -= DAY
    assert stop > 10
