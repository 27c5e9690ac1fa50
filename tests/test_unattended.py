"""Unattended jobs on loop devices: what is done, what is said, and what is remembered."""

from __future__ import annotations

import os
import pty
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple
from unittest import mock

import pytest

from imager.check import check
from imager.disk.inventory import Disk
from imager.errors import ImageError, RefusedError, UsageError, WriteFailedError
from imager.rescue.consoles import Consoles, console_paths
from imager.rescue.journal import JOB_RESULT
from imager.rescue.kernel_line import Console
from imager.rescue.ledger import Ledger, Past
from imager.rescue.lock import working
from imager.rescue.media import MediaVolume
from imager.rescue.session import Machine
from imager.rescue.unattended import Clock, run_unattended
from imager.target_writer import TargetWriter
from tests.command import imager
from tests.comparing import digest
from tests.disks import put
from tests.loop import LoopDevice, mounted, run
from tests.small_disk import blkid, garbage
from tests.test_media import disks_of, mounts, volumes_of

MIB = 1 << 20
SIZE = 24 * MIB
JOB = "quiet imager.restore=auto imager.image=BACKUP:/a.img imager.target=serial:TARGET "
DONE = (True, "poweroff", 0)


def no_program(program: str, package: str, *arguments: str) -> CompletedProcess[str]:
    return CompletedProcess([program], 0, "", "")


class Ended(NamedTuple):
    """An outcome without its words."""

    done: bool
    after: str
    status: int


@dataclass
class Lab:
    """A machine of loop devices: a disk with the image, a target, a stick for data."""

    store: LoopDevice
    target: LoopDevice
    stick: LoopDevice
    state: Path
    place: Path
    said: list[str] = field(default_factory=list)
    with_stick: bool = True
    time: float = 0.0

    def disks(self) -> tuple[Disk, ...]:
        numbers = {str(self.target.path): "TARGET", str(self.store.path): "STORE"}
        return tuple(
            replace(
                disk,
                identity=replace(disk.identity, serial=numbers.get(disk.identity.path, "STICK")),
            )
            for disk in disks_of(self.target, self.store)
        )

    def data(self) -> MediaVolume | None:
        return volumes_of(self.stick)[0] if self.with_stick else None

    def machine(self) -> Machine:
        return Machine(
            state=self.state,
            disks=self.disks,
            volumes=lambda: volumes_of(self.store, self.stick, self.target),
            data=self.data,
            run=no_program,
        )

    def sleep(self, seconds: float) -> None:
        self.time += 5 * seconds

    def run(self, text: str = JOB) -> Ended:
        self.said.clear()
        (self.state / JOB_RESULT).unlink(missing_ok=True)
        clock = Clock(lambda: self.time, self.sleep)
        outcome = run_unattended(text, self.machine(), self._say, clock)
        assert mounts() == []
        told = (self.state / JOB_RESULT).exists()
        assert told == (outcome.after == "stay")
        return Ended(outcome.done, outcome.after, outcome.status)

    def _say(self, *lines: str) -> None:
        self.said += lines

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def on_store(self, action: Callable[[Path], object]) -> None:
        with mounted(self.store.path, self.place) as place:
            action(place)

    def logs(self) -> str:
        with mounted(self.stick.path, self.place, "ro") as place:
            return "".join(file.read_text() for file in sorted((place / "imager/logs").iterdir()))


@dataclass(frozen=True)
class Tiny:
    disk: Path
    image: Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A disk of 24 MiB with a GPT and an ext4, and its image."""
    folder = tmp_path_factory.mktemp("tiny")
    with LoopDevice(folder / "disk", SIZE) as device:
        run("sfdisk", device.path, stdin="label: gpt\n-\n")
        device.scan()
        run("mkfs.ext4", "-q", device.partition(1))
        with mounted(device.partition(1), folder / "place") as place:
            (place / "file").write_bytes(os.urandom(2 * MIB))
    imager("capture", folder / "disk", folder / "image")
    return Tiny(folder / "disk", folder / "image")


@pytest.fixture
def lab(tiny: Tiny, tmp_path: Path) -> Iterator[Lab]:
    garbage(tmp_path / "target", SIZE + 3 * MIB)
    with (
        LoopDevice(tmp_path / "store", 48 * MIB) as store,
        LoopDevice(tmp_path / "target") as target,
        LoopDevice(tmp_path / "stick", 32 * MIB) as stick,
    ):
        run("mkfs.ext4", "-q", "-L", "BACKUP", store.path)
        run("mkfs.ext4", "-q", "-L", "IMAGER_DATA", stick.path)
        lab = Lab(store, target, stick, tmp_path / "state", tmp_path / "place")
        lab.on_store(lambda place: shutil.copy(tiny.image, place / "a.img"))
        yield lab


def restored(lab: Lab, tiny: Tiny) -> bool:
    """Whether the target holds what the image does."""
    return check(tiny.image, against=lab.target.path).verdict == "ok"


def test_a_job_runs_once(lab: Lab, tiny: Tiny) -> None:
    store = digest(lab.store.file)
    assert lab.run() == DONE
    assert restored(lab, tiny) and blkid(lab.target.path) == "gpt"
    assert digest(lab.store.file) == store
    for words in ("Unattended restore: imager.image=", "Target  ", "read back and compared: equal"):
        assert words in lab.text
    assert lab.said[-1] == "This machine will power off."
    assert "The restore is finished" in lab.text and "verdict: ok" in lab.logs()
    after = digest(lab.target.file)
    assert lab.run(JOB) == Ended(False, "stay", RefusedError.exit_code)
    assert "this job has run already (finished: ok)" in lab.text
    assert digest(lab.target.file) == after


def test_other_words_are_another_job(lab: Lab) -> None:
    assert lab.run().done
    assert lab.run(JOB + "imager.job=again").done
    assert not lab.run(JOB + "imager.job=again").done
    assert lab.run(JOB + "imager.after=reboot") == Ended(True, "reboot", 0)


def test_another_image_is_another_job_but_for_the_newest(lab: Lab, tiny: Tiny) -> None:
    newest = JOB.replace("/a.img", "newest")
    assert lab.run().done and lab.run(newest).done

    def change(place: Path) -> None:
        imager("capture", tiny.disk, place / "b.img")
        shutil.copy(place / "b.img", place / "a.img")

    lab.on_store(change)
    assert lab.run().done
    assert not lab.run(newest).done


def test_recorded_before_the_first_write(lab: Lab) -> None:
    """At that moment the target is untouched and the record can be read."""
    before = digest(lab.target.file)
    seen: list[object] = []
    real = Ledger.begin

    def begin(self: Ledger, job: str, facts: dict[str, object]) -> None:
        real(self, job, facts)
        seen.append((digest(lab.target.file) == before, self.look(job)))

    with mock.patch.object(Ledger, "begin", begin):
        assert lab.run().done
    assert seen == [(True, Past(1, None))]


@pytest.mark.parametrize("after", ["reboot", "poweroff", "shell"])
def test_without_a_stick_it_does_not_restart(after: str, lab: Lab) -> None:
    lab.with_stick = False
    outcome = lab.run(JOB + f"imager.after={after}")
    assert outcome.done and outcome.after == ("stay" if after == "shell" else "poweroff")
    assert "could not be recorded (there is no partition for data" in lab.text


def test_with_a_full_stick_it_does_not_restart(lab: Lab) -> None:
    with mock.patch.object(Ledger, "begin", side_effect=WriteFailedError("it is full")):
        outcome = lab.run(JOB + "imager.after=reboot")
    assert outcome == DONE and "It does not restart" in lab.text and "it is full" in lab.text


def test_unreadable_stick_stops_it(lab: Lab) -> None:
    """It may remember that the job has run."""
    before = digest(lab.target.file)
    volume = lab.data()
    put(lab.stick.file, 1024 + 0x18, b"\xff" * 4)
    run("blockdev", "--flushbufs", lab.stick.path)
    with mock.patch.object(Lab, "data", lambda self: volume):
        outcome = lab.run()
    assert not outcome.done and outcome.after == "stay"
    assert digest(lab.target.file) == before


def flip(place: Path) -> None:
    size = (place / "a.img").stat().st_size
    put(place / "a.img", size // 2, b"damage" * 100)


FAILURES = {
    "missing": (JOB.replace("a.img", "b.img"), "b.img does not exist"),
    "no label": (JOB.replace("BACKUP", "OTHER"), "with the label OTHER"),
    "misspelt": (JOB + "imager.atfer=reboot", "is imager.after meant?"),
    "no job": ("quiet splash", "the kernel line has no job"),
    "no disk": (JOB.replace("TARGET", "T4RGET"), "no disk is serial:T4RGET"),
    "holds the image": (JOB.replace("TARGET", "STORE"), "holds the image"),
    "device name": (JOB.replace("serial:TARGET", "/dev/sda"), "may be another disk"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_touch_nothing(case: str, lab: Lab) -> None:
    text, words = FAILURES[case]
    before = digest(lab.target.file), digest(lab.store.file)
    outcome = lab.run(text + " imager.keymap=de")
    assert not outcome.done and outcome.after == "stay" and outcome.status != 0
    assert words in lab.text and "Nothing was written to any disk." in lab.text
    assert "does not restart by itself" in lab.said[-1]
    assert words in lab.logs()
    assert (digest(lab.target.file), digest(lab.store.file)) == before


def test_damaged_image_touches_nothing(lab: Lab) -> None:
    lab.on_store(flip)
    before = digest(lab.target.file)
    outcome = lab.run(JOB + "imager.after=reboot")
    assert outcome == Ended(False, "stay", ImageError.exit_code)
    assert "is damaged" in lab.text and digest(lab.target.file) == before
    assert lab.run(JOB + "imager.after=reboot").status == ImageError.exit_code, "not used up"


def test_two_disks_for_only_disk(lab: Lab) -> None:
    """Neither the store's, which holds the image, nor the target counts twice."""
    text = JOB.replace("serial:TARGET", "only-disk")
    (other,) = (disk for disk in lab.disks() if disk.identity.serial == "TARGET")
    before = digest(lab.target.file)
    with mock.patch.object(Lab, "disks", lambda self: (*real(self), other)):
        assert not lab.run(text).done
    assert "imager.target=only-disk, but there are 2 disks" in lab.text
    assert digest(lab.target.file) == before
    assert lab.run(text).done


real = Lab.disks


def test_small_target_and_other_sectors(lab: Lab, tmp_path: Path) -> None:
    for size, sector in ((16 * MIB, 512), (64 * MIB, 4096)):
        with LoopDevice(tmp_path / f"other-{sector}", size, sector) as device:
            with mock.patch.object(lab, "target", device):
                outcome = lab.run()
            assert not outcome.done and outcome.after == "stay"
            assert ("too small" if sector == 512 else "sectors of 4096 bytes") in lab.text


def test_failure_while_writing_is_said_and_remembered(lab: Lab) -> None:
    gone = WriteFailedError("the disk is gone")
    with mock.patch.object(TargetWriter, "write", side_effect=gone):
        outcome = lab.run(JOB + "imager.after=reboot")
    assert outcome == Ended(False, "stay", WriteFailedError.exit_code)
    assert "its old content is lost" in lab.text and "Nothing was written" not in lab.text
    assert not lab.run(JOB + "imager.after=reboot").done
    assert "has run already (failed: the disk is gone)" in lab.text


def test_fault_of_our_own_stops_it(lab: Lab) -> None:
    with mock.patch("imager.rescue.unattended.plan_restore", side_effect=KeyError("x")):
        outcome = lab.run(JOB + "imager.after=reboot")
    assert outcome == Ended(False, "stay", 1)
    assert "internal error (KeyError: 'x')" in lab.text


def killed_while_writing(lab: Lab) -> None:
    """The job in a child process that is killed once the target's ends are wiped."""

    def die(self: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            with mock.patch.object(TargetWriter, "write", die):
                lab.run()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    for left in mounts():  # a power cut would have ended them as well
        command = ("losetup", "--detach") if left.startswith("/dev/") else ("umount",)
        run(*command, left)


def test_power_cut_while_writing(lab: Lab, tiny: Tiny) -> None:
    """The target is blank then: the job is done again, and says so; but not for ever."""
    for _attempt in range(3):
        killed_while_writing(lab)
        assert blkid(lab.target.path) == ""
    assert not lab.run().done
    assert "has begun 3 times and never came to its end" in lab.text
    with mounted(lab.stick.path, lab.place) as place:
        (place / "imager/jobs").rename(place / "imager/looked-into")
    killed_while_writing(lab)
    assert lab.run() == DONE
    assert "is blank, as an interruption leaves it: the job is done again" in lab.text
    assert restored(lab, tiny)


def test_power_cut_before_the_end_was_noted(lab: Lab) -> None:
    """The target may be complete and in use since: it is left alone."""
    with mock.patch.object(Ledger, "end", side_effect=WriteFailedError("power")):
        assert lab.run() == DONE
    after = digest(lab.target.file)
    outcome = lab.run()
    assert not outcome.done and outcome.after == "stay"
    assert "is not blank: it may be complete, and in use since" in lab.text
    assert digest(lab.target.file) == after


def test_one_at_a_time(lab: Lab) -> None:
    before = digest(lab.target.file)
    with working(lab.state / "lock", "tty1: a restore"):
        outcome = lab.run()
    assert not outcome.done and "another console is at work (tty1: a restore)" in lab.text
    assert digest(lab.target.file) == before


def test_disks_that_appear_late_are_waited_for(lab: Lab) -> None:
    real_volumes = volumes_of(lab.store, lab.stick, lab.target)
    machine = replace(
        lab.machine(), volumes=lambda: real_volumes if lab.time > 30 else (), disks=lab.disks
    )
    with mock.patch.object(Lab, "machine", lambda self: machine):
        assert lab.run().done
    assert 30 < lab.time < 60


def test_consoles_say_it_all_and_none_blocks(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    active = tmp_path / "active"
    active.write_text("tty0 ttyS0\n")
    assert console_paths(Console("ttyS1", 9600), active) == (
        *(Path("/dev/tty0"), Path("/dev/ttyS0"), Path("/dev/ttyS1")),
    )
    assert console_paths(None, tmp_path / "none") == ()
    os.mkfifo(tmp_path / "nobody")
    paths = [tmp_path / "nobody", tmp_path / "none", Path(os.ttyname(follower))]
    with Consoles(paths, Console(paths[2].name, 9600)) as consoles:
        consoles.say("one\x1b[2J", "two")
    said = b""
    while not said.endswith(b"two\r\r\n"):  # each line may come by itself
        said += os.read(leader, 100)
    assert said == b"one?[2J\r\r\ntwo\r\r\n"
    os.close(leader)
    os.close(follower)


def test_usage_errors_have_their_status(lab: Lab) -> None:
    assert lab.run("imager.restore=now").status == UsageError.exit_code
