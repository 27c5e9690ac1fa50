"""A freeze ends whatever happens to the capture; on real file systems, each of them the test's own."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imager.capture import CaptureOptions, capture
from imager.disk.source import SourceDevice
from imager.errors import RefusedError
from imager.extents import Extents
from imager.live import abi
from imager.live.disk import LiveDisk as Followed
from imager.live.freezer import FreezeError, Freezer
from imager.live.patches import Patches, Reading
from imager.live.precopy import TooBusyError
from imager.live.superblocks import Superblocks
from tests.command import ROOT, failure, imager
from tests.live_disk import MAKE, LiveDisk
from tests.loop import LoopDevice, mounted, run, sparse_file

_FREEZES = """
import sys, time
from pathlib import Path
from imager.live.freezer import Freezer
from imager.live.superblocks import Superblocks
with Superblocks(Path(sys.argv[1])) as found, Freezer(found.all, float(sys.argv[2])) as freezer:
    assert len(found.all) == int(sys.argv[3])
    with freezer.frozen():
        print(freezer.watchdog, flush=True)
        time.sleep(1000)
"""


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def live(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiveDisk]:
    with LiveDisk(tmp_path, (request.param,)) as disk:
        yield disk


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[LiveDisk]:
    with LiveDisk(tmp_path, ("ext4",)) as disk:
        yield disk


@contextmanager
def frozen_by_another(
    live: LiveDisk, limit: float, first: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A process of ours that keeps all of the disk frozen; it runs the code `first` before."""
    words = [str(live.path), str(limit), str(len(live.places))]
    process = subprocess.Popen(
        [sys.executable, "-c", first + _FREEZES, *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        watchdog = Path("/proc") / process.stdout.readline().strip()
        assert watchdog.is_dir() and watchdog != Path("/proc")
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    deadline = time.monotonic() + 60
    while watchdog.exists():  # it has the file systems open
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_frozen(place: Path) -> bool:
    """Whether it is; if it was not, it is not afterwards either."""
    fd = os.open(place, os.O_RDONLY)
    try:
        abi.freeze(fd)
    except OSError as error:
        assert error.errno == errno.EBUSY
        return True
    else:
        with contextlib.suppress(OSError):  # the watchdog, which goes on for a while, was first
            abi.thaw(fd)
        return False
    finally:
        os.close(fd)


def becomes_writable(live: LiveDisk) -> bool:
    """Whether a file can be written everywhere before long."""
    deadline = time.monotonic() + 60
    while any(is_frozen(place) for place in live.places):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    for place in live.places:
        (place / "written").write_text("x")
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_within_the_freeze_thaws(live: LiveDisk, number: signal.Signals) -> None:
    with frozen_by_another(live, 1000) as process:
        assert all(is_frozen(place) for place in live.places)
        process.send_signal(number)
        process.wait(60)
        assert becomes_writable(live)


def test_an_exception_within_the_freeze_thaws(live: LiveDisk) -> None:
    def fail() -> None:
        assert all(is_frozen(place) for place in live.places)
        raise ZeroDivisionError

    image = live.folder / "image"
    with pytest.raises(ZeroDivisionError):
        capture(live.path, image, CaptureOptions(inside_freeze=fail, max_pause=50))
    assert becomes_writable(live)
    assert not list(live.folder.glob("image*"))


def test_one_that_hangs_is_thawed_and_its_capture_discarded(live: LiveDisk) -> None:
    def hang() -> None:
        deadline = time.monotonic() + 60
        while is_frozen(live.places[0]):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    image = live.folder / "image"
    with pytest.raises(FreezeError, match="before everything was read"):
        capture(live.path, image, CaptureOptions(inside_freeze=hang, max_pause=3))
    assert becomes_writable(live)
    assert not list(live.folder.glob("image*"))


def test_a_freeze_that_is_complete_only_when_the_time_is_up_is_thawed(
    ext4: LiveDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that stalls while the file system writes out what it has."""
    freeze = abi.freeze

    def stall(fd: int) -> None:
        time.sleep(2)
        freeze(fd)

    with Superblocks(ext4.path) as found, Freezer(found.all, 0.5) as freezer:
        monkeypatch.setattr(abi, "freeze", stall)
        with pytest.raises(FreezeError, match="went on before"), freezer.frozen():
            monkeypatch.undo()
            assert becomes_writable(ext4)


def test_one_killed_when_its_time_was_up_leaves_nothing_frozen(ext4: LiveDisk) -> None:
    late = "import time\nfrom imager.live import abi\nfreeze = abi.freeze\n"
    late += "abi.freeze = lambda fd: (time.sleep(1), freeze(fd))\n"
    with frozen_by_another(ext4, 0.2, late) as process:
        process.kill()
        process.wait()
        assert becomes_writable(ext4)


def test_a_disk_that_stalls_within_the_freeze_holds_nobody_up(
    ext4: LiveDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last sectors do not come: the file system goes on, and nothing is kept."""
    stalled: list[int] = []
    read = SourceDevice.readinto

    def readinto(device: SourceDevice, offset: int, view: memoryview) -> None:
        if stalled:
            deadline = time.monotonic() + 60
            while is_frozen(ext4.places[0]):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        read(device, offset, view)

    hold = Patches.hold

    def stall(patches: Patches, ranges: Extents) -> Reading:
        stalled.append(1)
        return hold(patches, ranges)

    monkeypatch.setattr(SourceDevice, "readinto", readinto)
    monkeypatch.setattr(Patches, "hold", stall)
    image = ext4.folder / "image"
    hook = f"echo late > {ext4.places[0]}/late"
    with pytest.raises(TooBusyError, match="took too long to give its last sectors"):
        capture(ext4.path, image, CaptureOptions(before_freeze=hook, max_pause=2))
    assert stalled and becomes_writable(ext4)
    assert not list(ext4.folder.glob("image*"))


def test_stopped_process_is_thawed(live: LiveDisk) -> None:
    with frozen_by_another(live, 1) as process:
        process.send_signal(signal.SIGSTOP)
        assert becomes_writable(live)


def test_thawed_by_somebody_else_is_discarded(ext4: LiveDisk) -> None:
    def thaw() -> None:
        run("fsfreeze", "--unfreeze", ext4.places[0])

    with pytest.raises(FreezeError, match="went on before everything was read"):
        capture(ext4.path, ext4.folder / "image", CaptureOptions(inside_freeze=thaw, max_pause=50))
    assert becomes_writable(ext4)


def test_frozen_by_somebody_else_is_refused_and_left_so(tmp_path: Path) -> None:
    with LiveDisk(tmp_path, ("ext4", "xfs")) as live:
        # The first one freezes, the second one is held: the first has to go on.
        held = live.places[1]
        with Superblocks(live.path) as found:
            order = [Path(one.place) for one in found.all]
            assert order == [live.places[0], held]
            run("fsfreeze", "--freeze", held)
            try:
                with Freezer(found.all, 50) as freezer:
                    refused = pytest.raises(RefusedError, match="frozen by another program")
                    with refused, freezer.frozen():
                        raise AssertionError("it is not")
                    assert not is_frozen(live.places[0])
                assert is_frozen(held)
            finally:
                run("fsfreeze", "--unfreeze", held)
        assert becomes_writable(live)


def test_the_watchdog_must_be_there(ext4: LiveDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Superblocks(ext4.path) as found, pytest.raises(FreezeError, match="does not start"):
        Freezer(found.all, 1).__enter__()


def test_mounts_of_other_namespaces_are_frozen(tmp_path: Path) -> None:
    script = f"mount {{}} {tmp_path} && echo mounted && exec sleep 1000"
    with LoopDevice(sparse_file(tmp_path / "disk", 64 << 20)) as device:
        run(*MAKE["ext4"], device.path)
        hidden = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script.format(device.path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert hidden.stdout is not None and hidden.stdout.readline() == "mounted\n"
            with Superblocks(device.path) as found:
                (only,) = found.all
                assert f"process {hidden.pid}" in only.place or "as seen by" in only.place
                freezer = Freezer(found.all, 50)
                busy = pytest.raises(OSError, match="busy")
                with freezer, freezer.frozen(), busy:
                    abi.freeze(only.fd)
        finally:
            hidden.kill()
            hidden.wait()
            if hidden.stdout is not None:
                hidden.stdout.close()


def test_each_superblock_is_found_once_and_inner_ones_first(tmp_path: Path) -> None:
    with LiveDisk(tmp_path, ("btrfs", "ext4")) as live:
        outer = live.places[0]
        run("btrfs", "subvolume", "create", outer / "sub")
        again = tmp_path / "again"
        with (
            mounted(live.device.partition(1), again, "subvol=sub", fs_type="btrfs"),
            LoopDevice(sparse_file(live.places[1] / "inner", 64 << 20)) as inner,
        ):
            run(*MAKE["ext4"], inner.path)
            bound = tmp_path / "bound"
            bound.mkdir()
            run("mount", "--bind", live.places[1], bound)
            try:
                with (
                    mounted(inner.path, tmp_path / "in-file"),
                    Superblocks(live.path) as found,
                ):
                    places = [Path(one.place) for one in found.all]
                    waves = dict(zip(places, (one.wave for one in found.all), strict=True))
                    assert waves == {tmp_path / "in-file": 0, outer: 0, live.places[1]: 1}
                    assert places[-1] == live.places[1]
                    with Freezer(found.all, 50) as freezer, freezer.frozen():
                        pass
                    assert freezer.pause.seconds > 0
            finally:
                run("umount", bound)


def test_a_mount_below_another_cannot_be_held_still(ext4: LiveDisk) -> None:
    run("mount", "-t", "tmpfs", "none", ext4.places[0])
    try:
        with pytest.raises(RefusedError, match="hidden below another"):
            Superblocks(ext4.path)
    finally:
        run("umount", ext4.places[0])


def test_what_is_mounted_meanwhile_spoils_the_capture(ext4: LiveDisk, tmp_path: Path) -> None:
    """Here a file system within one of the disk's files; it is frozen by nobody."""
    inner = LoopDevice(sparse_file(ext4.places[0] / "inner", 64 << 20))
    image = tmp_path / "image"
    with inner:
        run(*MAKE["ext4"], inner.path)
        place = tmp_path / "late"
        place.mkdir()
        hook = f"mount {inner.path} {place}"
        try:
            message = failure(
                "capture", ext4.path, image, "--before-freeze", hook, "--max-pause", "50", status=11
            )
            assert "late was mounted while the disk was captured" in message
        finally:
            run("umount", place)
    assert not list(tmp_path.glob("image*"))


def refuse_freeze(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the file system at `place` be of a kind that cannot be frozen, as vfat is."""
    device = os.stat(place).st_dev
    freeze: Callable[[int], None] = abi.freeze

    def answer(fd: int) -> None:
        if os.fstat(fd).st_dev == device:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        freeze(fd)

    monkeypatch.setattr(abi, "freeze", answer)


def test_ext_without_a_journal_is_stored_whole_unless_it_was_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveDisk(tmp_path, ("ext4",), 96, ("-O", "^has_journal")) as live:
        refuse_freeze(live.places[0], monkeypatch)
        result = capture(live.path, tmp_path / "image", CaptureOptions(max_pause=50))
    (volume,) = result.layout.volumes
    assert (volume.stored, volume.reason) == ("raw", "file system was not cleanly unmounted")


def test_one_that_cannot_freeze_is_read_until_it_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveDisk(tmp_path, ("ext4", "ext4")) as live:
        (live.places[0] / "late").write_text("before")
        refuse_freeze(live.places[0], monkeypatch)
        writes = iter(range(3))
        waits = Followed.idle

        def idle(self: Followed) -> bool:
            """Something is written while all is read, three times."""
            for number in writes:
                fd = os.open(live.places[0] / "late", os.O_RDWR | os.O_DSYNC)
                os.write(fd, b"changed %d" % number)
                os.close(fd)
                break
            return waits(self)

        monkeypatch.setattr(Followed, "idle", idle)
        image = tmp_path / "image"
        result = capture(live.path, image, CaptureOptions(max_pause=50))
        assert result.verdict == "ok"
        assert list(writes) == []
    imager("restore", "--yes", image, tmp_path / "disk")
    with LoopDevice(tmp_path / "disk") as device:
        device.scan()
        with mounted(device.partition(1), tmp_path / "look") as place:
            assert (place / "late").read_text() == "changed 2"
