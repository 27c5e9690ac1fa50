"""Bringing a machine back, step by step and with wrong turns, on real loop devices and images."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.capture import CaptureOptions, capture
from imager.rescue import work
from imager.rescue.lock import working
from imager.rescue.restore_flow import RestoreFlow
from tests.comparing import digest, disk_facts
from tests.disks import MIB, put
from tests.loop import run
from tests.rescue_lab import HOST, Lab, lab, mounts_left
from tests.scripted_screen import ScriptedScreen
from tests.small_disk import SMALL_KINDS, SMALL_SIZE, Small


@pytest.fixture
def dead(tmp_path: Path, small: Small) -> Iterator[Lab]:
    with lab(tmp_path, small) as made:
        yield made
        assert mounts_left(made.folder) == []


def flow(dead: Lab, *steps: tuple[str, object] | str) -> ScriptedScreen:
    """Run the flow with a script, to its end."""
    screen = ScriptedScreen(*steps)
    RestoreFlow(dead.session(screen)).run()
    assert screen.finished()
    return screen


def test_the_common_case(dead: Lab) -> None:
    # Its own disk is preselected, and blank: it was replaced by one that tells the same serial.
    run("wipefs", "--all", "--quiet", dead.old.path)
    name = dead.old.path.name
    screen = flow(
        dead,
        "Which image",
        "Onto which disk",
        "The plan",
        ("The last question", name),
        ("verdict: ok", None),
    )
    assert f"1  {HOST}" in screen.boxes[0]
    assert "UNFINISHED" in screen.boxes[0]
    journal = (dead.machine.state / "rescue.log").read_text()
    assert f"restore of {HOST}" in journal and "verdict: ok" in journal
    with dead.data() as place:
        assert f'"machine": "{HOST}"' in (place / "imager/answers.json").read_text()


def test_restored_disk_is_the_imaged_one(dead: Lab, small: Small, tmp_path: Path) -> None:
    name = dead.new.path.name
    flow(
        dead,
        "Which image",
        ("Onto which disk", name),
        ("The plan", True),
        ("The last question", name),
        ("verdict: ok", "menu"),
    )
    dead.new.scan()
    assert disk_facts(dead.new, SMALL_KINDS, tmp_path) == small.facts


def test_escape_leads_one_step_back_and_never_writes(dead: Lab) -> None:
    before = digest(dead.new.path), digest(dead.old.path)
    name = dead.new.path.name
    flow(
        dead,
        "Which image",
        ("Onto which disk", None),
        "Which image",
        ("Onto which disk", name),
        ("The plan", None),
        ("Onto which disk", name),
        ("The plan", True),
        ("The last question", None),
        ("The plan", False),
        ("Onto which disk", None),
        ("Which image", None),
    )
    assert (digest(dead.new.path), digest(dead.old.path)) == before


def test_a_wrong_name_begins_nothing(dead: Lab) -> None:
    before = digest(dead.new.path)
    name = dead.new.path.name
    flow(
        dead,
        "Which image",
        ("Onto which disk", name),
        ("The plan", True),
        ("The last question", f"/dev/{name}"),
        "Not begun",
        ("The last question", ""),
        "Not begun",
        ("The last question", None),
        ("The plan", None),
        ("Onto which disk", None),
        ("Which image", None),
    )
    assert digest(dead.new.path) == before


def test_disks_that_cannot_be_used_say_why(dead: Lab) -> None:
    screen = flow(
        dead,
        "Which image",
        ("Onto which disk", dead.tiny.path.name),
        "is too small",
        ("Onto which disk", dead.stick.path.name),
        "holds the image",
        ("Onto which disk", None),
        ("Which image", None),
    )
    assert re.search(rf"{dead.tiny.path.name}  cannot be used  TOSHIBA", screen.boxes[1])


def test_a_target_that_is_used_meanwhile(dead: Lab) -> None:
    name = dead.new.path.name
    held: list[object] = []

    def hold() -> str:
        run("mkswap", dead.new.path)
        run("swapon", dead.new.path)
        held.append(name)
        return name

    try:
        screen = flow(
            dead,
            "Which image",
            ("Onto which disk", name),
            ("The plan", True),
            ("The last question", hold),
            "is in use",
            ("Which image", None),
        )
    finally:
        if held:
            run("swapoff", dead.new.path)
    assert "Nothing was written." in screen.boxes[-2]


def test_another_disk_under_the_same_name(dead: Lab) -> None:
    name = dead.new.path.name

    def swap() -> str:
        with dead.new.file.open("r+b") as file:
            file.truncate(dead.new.file.stat().st_size + (8 << 20))
        run("losetup", "--set-capacity", dead.new.path)
        return name

    screen = flow(
        dead,
        "Which image",
        ("Onto which disk", name),
        ("The plan", True),
        ("The last question", swap),
        "is another disk now",
        ("Which image", None),
    )
    assert "Nothing was written." in screen.boxes[-2]


def test_an_unfinished_image_is_only_salvaged(dead: Lab, small: Small) -> None:
    """What it holds is put onto the disk; the rest of the disk stays."""
    name = dead.new.path.name
    before = dead.new.path.read_bytes()
    with dead.data() as place:
        (place / f"images/{HOST}.img").unlink()
        cut = place / "images/unfinished.img.partial"
        cut.unlink()
        whole = place / "whole"
        capture(dead.old.path, whole, CaptureOptions(host=HOST, chunk_size=65536))
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
        whole.unlink()
    screen = flow(
        dead,
        ("Which image", "1"),
        ("The image is damaged", False),
        "Which image",
        ("The image is damaged", True),
        ("Onto which disk", name),
        ("The plan", True),
        ("The last question", name),
        ("verdict: failed", "menu"),
    )
    assert "its capture was interrupted" in screen.boxes[1]
    assert "damaged parts of the image are passed over" in screen.boxes[5]
    assert "What was intact of the image is on the disk" in screen.last
    after, source = dead.new.path.read_bytes(), small.disk.read_bytes()
    assert after[:1_000_000] == source[:1_000_000]
    assert any(after[at : at + MIB] == before[at : at + MIB] for at in range(0, SMALL_SIZE, MIB))


def test_an_image_of_which_nothing_is_left(dead: Lab) -> None:
    before = digest(dead.new.path)
    screen = flow(dead, ("Which image", "2"), "nothing can be restored", ("Which image", None))
    assert "Nothing was written." in screen.boxes[1]
    assert digest(dead.new.path) == before


def test_a_damaged_image_is_restored_only_to_salvage_it(
    dead: Lab, small: Small, tmp_path: Path
) -> None:
    name = dead.new.path.name
    before = digest(dead.new.path)
    with dead.data() as place:
        put(place / f"images/{HOST}.img", 3_000_000, b"damage")
    steps: tuple[tuple[str, object] | str, ...] = (
        "Which image",
        ("Onto which disk", name),
        ("The plan", True),
        ("The last question", name),
    )
    screen = flow(dead, *steps, ("The image is damaged", None), ("Which image", None))
    assert re.search(r"1\.0 MB of 126 MB cannot be .*; this hits partition 1 ", screen.boxes[4])
    assert "Nothing was written." in screen.boxes[4]
    assert digest(dead.new.path) == before
    screen = flow(
        dead,
        *steps,
        ("The image is damaged", True),
        ("The plan", None),
        ("The image is damaged", True),
        ("The plan", True),
        ("The last question", name),
        ("verdict: failed", "menu"),
    )
    assert "damaged parts of the image are passed over" in screen.boxes[-3]
    assert "What is intact of the image is put onto it" in screen.boxes[-2]
    whole = {2: "ext2", 4: "ext4"}
    wanted = {key: small.facts[key] for key in ("table", *whole)}
    assert disk_facts(dead.new, whole, tmp_path) == wanted


def test_an_image_that_has_gone(dead: Lab) -> None:
    def lose() -> str:
        with dead.data() as place:
            (place / f"images/{HOST}.img").unlink()
        return "1"

    flow(
        dead,
        ("Which image", lose),
        "is not the image it was",
        ("Which image", None),
    )


def test_no_image_at_all(dead: Lab) -> None:
    run("mkfs.ext4", "-q", "-F", dead.stick.path)
    flow(dead, "No image was found", ("No image was found", None))


def test_breaking_off_the_verification(dead: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(dead.new.path)
    name = dead.new.path.name
    screen = broken_off(dead, name, monkeypatch, "check")
    assert "Nothing was written." in screen.boxes[-2]
    assert digest(dead.new.path) == before


def test_breaking_off_the_writing(dead: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    name = dead.new.path.name
    screen = broken_off(dead, name, monkeypatch, "write")
    assert "The disk is half written" in screen.boxes[-2]
    assert run("blkid", "-p", "-o", "value", "-s", "PTTYPE", dead.old.path).strip() == "gpt"


def broken_off(dead: Lab, name: str, monkeypatch: pytest.MonkeyPatch, phase: str) -> ScriptedScreen:
    """Press Escape in `phase`, first without meaning it."""
    screen = ScriptedScreen(
        "Which image",
        ("Onto which disk", name),
        ("The plan", True),
        ("The last question", name),
        ("Break off the restore?", None),
        ("Break off the restore?", True),
        "The restore was broken off",
        ("Which image", None),
    )
    slow_down(monkeypatch, phase, screen)
    RestoreFlow(dead.session(screen)).run()
    assert screen.finished()
    return screen


def slow_down(monkeypatch: pytest.MonkeyPatch, phase: str, screen: ScriptedScreen) -> None:
    """Have the work wait in `phase` until Escape has been answered twice."""
    reached = threading.Event()
    meter = work.Meter.__call__

    def call(self: work.Meter, name: str, done: int, total: int) -> None:
        if name == phase and not reached.is_set():
            reached.set()
            assert self.stop.wait(30)
        meter(self, name, done, total)

    monkeypatch.setattr(work.Meter, "__call__", call)
    screen.on_gauge = reached.is_set


def test_another_console_is_at_work(dead: Lab) -> None:
    with working(dead.machine.state / "lock", "tty1: restoring onto sda, since 12:31"):
        screen = flow(dead, "Another console is at work")
    assert "tty1: restoring onto sda, since 12:31" in screen.last


def test_what_now(dead: Lab) -> None:
    name = dead.new.path.name
    screen = flow(
        dead,
        "Which image",
        ("Onto which disk", name),
        ("The plan", True),
        ("The last question", name),
        ("verdict: ok", "boot"),
        "started by a BIOS",
        ("What now?", "log"),
        ("Where shall the log go?", dead.stick.path.name),
        "It is saved",
        ("What now?", "restart"),
        ("What now?", None),
    )
    assert ("systemctl", "reboot") in dead.commands
    assert any("restarts" in notice for notice in screen.notices)
    with dead.data() as place:
        (log,) = (place / "imager/logs").iterdir()
        assert "verdict: ok" in log.read_text()
