"""The real program on a real terminal, driven key by key through the real `dialog`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.capture import CaptureOptions, capture
from tests.comparing import digest, disk_facts
from tests.console import CONTROL_C, DOWN, ENTER, ESCAPE, UP, Console
from tests.loop import LoopDevice, mounted, run
from tests.rescue_lab import HOST, Lab, lab, mounts_left
from tests.small_disk import SMALL_KINDS, SMALL_SIZE, Small, garbage

SLOW = 1.0
MOST_KEYS = 6


@pytest.fixture
def dead(tmp_path: Path, small: Small) -> Iterator[Lab]:
    with lab(tmp_path, small) as made:
        yield made
        assert mounts_left(made.folder) == []


def console(dead: Lab, seconds: float = 0) -> Console:
    return Console([sys.executable, "-m", "tests.rescue_program", str(dead.folder), str(seconds)])


def to_the_last_question(screen: Console, target: LoopDevice) -> None:
    """From the menu to the question for the name of `target`."""
    screen.wait_for("Rescue", "Bring this machine back")
    screen.press(ENTER)
    screen.wait_for("Which image", HOST)
    screen.press(ENTER)
    screen.wait_for("Onto which disk")
    move_to(screen, target)
    screen.press(ENTER)
    screen.wait_for("The plan", f"Target {target.path.name}")
    screen.press(ENTER)
    screen.wait_for("The last question", f"Type {target.path.name}")


def move_to(screen: Console, target: LoopDevice) -> None:
    """Move the cursor in the list of disks, which begins at the disk that was imaged, to `target`."""
    found = re.findall(r"(loop\d+) +(?:can|cannot) be used +(\w+)", screen.text())
    here = [model for _, model in found].index("Samsung")
    lines = [name for name, _ in found].index(target.path.name) - here
    screen.press(*[DOWN if lines > 0 else UP] * abs(lines))


def journal(dead: Lab) -> str:
    return (dead.machine.state / "rescue.log").read_text()


def test_the_common_restore(dead: Lab, small: Small, tmp_path: Path) -> None:
    run("dd", "if=/dev/zero", f"of={dead.old.path}", "bs=1M", "count=8", "conv=fsync")
    with console(dead) as screen:
        to_the_last_question(screen, dead.old)
        assert screen.keys <= MOST_KEYS
        screen.type(dead.old.path.name)
        assert "read back and compared: equal" in screen.wait_for("What now?", "verdict: ok")
        screen.press(ESCAPE)
        screen.wait_for("Rescue", "Hardware report")
        screen.press(ESCAPE)
        assert screen.ends() == 0
    dead.old.scan()
    assert disk_facts(dead.old, SMALL_KINDS, tmp_path) == small.facts


@pytest.mark.parametrize("key", [ESCAPE, CONTROL_C])
def test_back_from_every_screen(dead: Lab, key: str) -> None:
    before = digest(dead.new.path), digest(dead.old.path)
    with console(dead) as screen:
        to_the_last_question(screen, dead.new)
        for words in ("The plan", "Onto which disk", "Which image", "Hardware report"):
            screen.press(key)
            screen.wait_for(words)
        screen.press(ESCAPE)
        assert screen.ends() == 0
    assert (digest(dead.new.path), digest(dead.old.path)) == before


def test_a_wrong_name(dead: Lab) -> None:
    before = digest(dead.new.path)
    with console(dead) as screen:
        to_the_last_question(screen, dead.new)
        screen.type(dead.old.path.name)
        screen.wait_for("Nothing was written; you can try again")
        screen.press(ENTER)
        screen.wait_for("The last question")
        screen.press(ESCAPE)
        screen.wait_for("The plan")
    assert digest(dead.new.path) == before


def test_a_disk_that_is_too_small(dead: Lab) -> None:
    with console(dead) as screen:
        screen.wait_for("Bring this machine back")
        screen.press(ENTER)
        screen.wait_for("Which image")
        screen.press(ENTER)
        screen.wait_for("Onto which disk", "TOSHIBA")
        move_to(screen, dead.tiny)
        screen.wait_for("too small: 10485760 bytes")
        screen.press(ENTER)
        screen.wait_for("This disk cannot be used", "are needed")
        screen.press(ENTER)
        screen.wait_for("Onto which disk")


def test_a_disk_that_is_in_use(dead: Lab, tmp_path: Path) -> None:
    with console(dead) as screen:
        to_the_last_question(screen, dead.old)
        with mounted(dead.old.partition(1), tmp_path / "used"):
            screen.type(dead.old.path.name)
            screen.wait_for("That did not work", "is in use", "Nothing was written")
        screen.press(ENTER)
        screen.wait_for("Which image")


@pytest.mark.parametrize(
    ("phase", "then"), [("Checking", "Nothing was written"), ("Writing", "half written")]
)
def test_an_image_that_vanishes(dead: Lab, tmp_path: Path, phase: str, then: str) -> None:
    """The disk with the image goes away, in the middle of one that is too large for read-ahead."""
    noise = tmp_path / "noise"
    garbage(noise, SMALL_SIZE)
    with dead.data() as place:
        (place / f"images/{HOST}.img").unlink()
        capture(noise, place / f"images/{HOST}.img", CaptureOptions(host=HOST, chunk_size=65536))
    with console(dead, SLOW / 15) as screen:
        to_the_last_question(screen, dead.new)
        screen.type(dead.new.path.name)
        screen.catch(phase, "%")
        with dead.stick.file.open("r+b") as file:
            file.truncate(0)
        # The second reading would find all in memory.
        Path("/proc/sys/vm/drop_caches").write_text("1")
        screen.wait_for("That did not work", then)
        screen.press(ENTER)
        screen.wait_for("No image was found")


@pytest.mark.parametrize("key", [ESCAPE, CONTROL_C])
def test_breaking_off_asks_first(dead: Lab, key: str) -> None:
    before = digest(dead.new.path)
    with console(dead, SLOW) as screen:
        to_the_last_question(screen, dead.new)
        screen.type(dead.new.path.name)
        screen.wait_for("Checking", "Escape: break off")
        screen.press(key)
        screen.wait_for("Break off the restore?")
        screen.press(ENTER)
        screen.wait_for("Checking", "Escape: break off")
        screen.press(key)
        screen.wait_for("Break off the restore?")
        screen.press("B", ENTER)
        screen.wait_for("The restore was broken off", "Nothing was written")
    assert digest(dead.new.path) == before


def test_a_terminal_that_hangs_up_while_restoring(dead: Lab, small: Small, tmp_path: Path) -> None:
    screen = console(dead, SLOW / 10)
    to_the_last_question(screen, dead.new)
    screen.type(dead.new.path.name)
    screen.catch("Checking")  # which may never come to rest
    screen.hang_up()
    assert screen.ends() == 1  # there is nobody to show the result to
    assert "verdict: ok" in journal(dead)
    dead.new.scan()
    assert disk_facts(dead.new, SMALL_KINDS, tmp_path) == small.facts


def test_labels_that_play_tricks(dead: Lab) -> None:
    run("mkfs.ext4", "-q", "-F", "-L", "--and-w\\nx\\Z1", dead.new.path)
    with console(dead) as screen:
        screen.wait_for("Bring this machine back")
        screen.press(ENTER)
        screen.wait_for("Which image")
        screen.press(ENTER)
        screen.wait_for("Onto which disk")
        move_to(screen, dead.new)
        screen.wait_for("--and-w\\nx\\Z1")
        screen.press(ENTER)
        screen.wait_for("The plan", "ext4 --and-w\\nx\\Z1")


def test_it_wants_a_terminal_and_root() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imager", "rescue"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "imager: the dialogs need a terminal: run it on a console\n"
