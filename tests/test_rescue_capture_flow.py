"""Saving a disk, checking images, shares and settings: the flows beside the restore."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from imager.capture import CaptureOptions, CaptureResult, capture
from imager.check import check
from imager.errors import ReadFailedError
from imager.pipeline import Progress
from imager.rescue import app, capture_flow, network_flow
from imager.rescue.capture_flow import CaptureFlow
from imager.rescue.check_flow import check_images
from imager.rescue.keyboard import choose_keyboard
from imager.rescue.network import Interface
from imager.rescue.network_flow import ShareFlow
from imager.rescue.screen import TerminalGoneError
from imager.rescue.shares import Share
from tests.comparing import digest
from tests.disks import put
from tests.loop import run
from tests.rescue_lab import HOST, Lab, lab, mounts_left
from tests.scripted_screen import ScriptedScreen
from tests.small_disk import Small

HEALTHY = json.dumps({"smart_status": {"passed": True}})
DYING = json.dumps(
    {
        "smart_status": {"passed": False},
        "ata_smart_attributes": {"table": [{"id": 197, "raw": {"value": 24}}]},
    }
)


@pytest.fixture
def smart() -> dict[tuple[str, ...], str]:
    return {("smartctl", "--json"): HEALTHY}


@pytest.fixture
def dead(tmp_path: Path, small: Small, smart: dict[tuple[str, ...], str]) -> Iterator[Lab]:
    with lab(tmp_path, small, smart) as made:
        yield made
        assert mounts_left(made.folder) == []


def saved(dead: Lab) -> list[str]:
    with dead.data() as place:
        return [file.name for file in (place / "images").iterdir()]


def test_save_a_disk(dead: Lab) -> None:
    before = digest(dead.old.path)
    screen = ScriptedScreen(
        ("Which disk shall be saved?", dead.old.path.name),
        "Where shall the image go?",
        ("What is the machine called?", "attic"),
        "The disk is only read.",
        "verdict: ok",
    )
    CaptureFlow(dead.session(screen)).run()
    assert screen.finished()
    assert "It says that it is healthy." in screen.boxes[3]
    assert "are needed, " in screen.boxes[3] and "are free there" in screen.boxes[3]
    assert "checked: ok" in screen.last
    with dead.data() as place:
        (image,) = (place / "images").glob(f"attic-{dead.old.path.name}-*.img")
        result = check(image)
        assert result.verdict == "ok"
        host = result.head.facts["host"]
        assert isinstance(host, dict) and host["name"] == "attic"
    assert digest(dead.old.path) == before


def test_too_little_room(dead: Lab) -> None:
    """Said before anything is saved, and not a second time on the way back from the name."""
    run("mkfs.ext4", "-q", "-F", "-L", "SMALL", dead.tiny.path)
    screen = ScriptedScreen(
        ("Which disk shall be saved?", dead.old.path.name),
        ("Where shall the image go?", dead.tiny.path.name),
        ("Files will be added to this file system", True),
        ("There is too little room", False),
        ("Where shall the image go?", dead.tiny.path.name),
        ("Files will be added to this file system", True),
        ("There is too little room", True),
        ("What is the machine called?", "big"),
        ("The plan", True),
        ("That did not work", None),
        ("Which disk shall be saved?", None),
    )
    CaptureFlow(dead.session(screen)).run()
    assert screen.finished()
    assert "are needed, " in screen.boxes[8] and "are free there" in screen.boxes[8]
    assert "The disk was only read." in screen.boxes[9]


def test_back_and_forth_when_saving(dead: Lab) -> None:
    names = saved(dead)
    screen = ScriptedScreen(
        ("Which disk shall be saved?", dead.old.path.name),
        ("Where shall the image go?", None),
        "Which disk shall be saved?",
        "Where shall the image go?",
        ("What is the machine called?", None),
        "Where shall the image go?",
        ("What is the machine called?", "../evil"),
        "Such a name",
        ("What is the machine called?", "good"),
        ("The plan", False),
        ("What is the machine called?", None),
        ("Where shall the image go?", None),
        ("Which disk shall be saved?", None),
    )
    CaptureFlow(dead.session(screen)).run()
    assert screen.finished()
    assert saved(dead) == names


def test_a_disk_is_not_saved_onto_itself(dead: Lab) -> None:
    screen = ScriptedScreen(
        ("Which disk shall be saved?", dead.stick.path.name),
        ("Where shall the image go?", None),
        ("Which disk shall be saved?", None),
    )
    CaptureFlow(dead.session(screen)).run()
    assert "this stick" not in screen.boxes[1] and dead.stick.path.name not in screen.boxes[1]


def test_a_place_on_another_disk_is_asked_for(dead: Lab) -> None:
    run("mkfs.ext4", "-q", "-F", "-L", "BACKUP", dead.new.path)
    screen = ScriptedScreen(
        ("Which disk shall be saved?", dead.tiny.path.name),
        ("Where shall the image go?", dead.new.path.name),
        ("Files will be added to this file system", False),
        ("Where shall the image go?", dead.new.path.name),
        ("Files will be added to this file system", True),
        ("What is the machine called?", "tiny"),
        "The plan",
        "verdict: ok",
    )
    CaptureFlow(dead.session(screen)).run()
    assert screen.finished()


@pytest.mark.parametrize("smart", [{("smartctl", "--json"): DYING}])
def test_a_dying_disk_is_read_past_its_errors(dead: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    real = capture

    def remembered(
        source: Path, image: Path, options: CaptureOptions, progress: Progress
    ) -> CaptureResult:
        asked.append(options.continue_on_read_error)
        return real(source, image, options, progress)

    monkeypatch.setattr(capture_flow, "capture", remembered)
    name = dead.old.path.name
    screen = ScriptedScreen(
        ("Which disk shall be saved?", name),
        ("This disk is dying", None),
        ("Which disk shall be saved?", name),
        "24 sectors waiting to be replaced",
        "Where shall the image go?",
        ("What is the machine called?", "dying"),
        "passed over, and listed",
        "verdict: ok",
    )
    CaptureFlow(dead.session(screen)).run()
    assert screen.finished()
    assert asked == [True]


def test_a_read_error_is_asked_about_and_gone_on_from(
    dead: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = capture
    asked: list[tuple[bool, bool]] = []

    def fails_once(
        source: Path, image: Path, options: CaptureOptions, progress: Progress
    ) -> CaptureResult:
        asked.append((options.continue_on_read_error, options.resume))
        if not options.continue_on_read_error:
            raise ReadFailedError(
                "/dev/sda: cannot read 512 bytes at byte 1024: input/output error"
            )
        assert options.resume
        return real(source, image, replace(options, resume=False), progress)

    monkeypatch.setattr(capture_flow, "capture", fails_once)
    steps: list[tuple[str, object] | str] = [
        ("Which disk shall be saved?", dead.old.path.name),
        "Where shall the image go?",
        ("What is the machine called?", "sick"),
    ]
    screen = ScriptedScreen(
        *steps,
        "The plan",
        ("input/output error", False),
        *steps,
        "The plan",
        ("input/output error", True),
        "verdict: ok",
    )
    CaptureFlow(dead.session(screen)).run()
    assert screen.finished()
    assert asked == [(False, False), (False, False), (True, True)]


def test_check_good_and_damaged(dead: Lab) -> None:
    with dead.data() as place:
        put(place / f"images/{HOST}.img", 3_000_000, b"damage")
    screen = ScriptedScreen(
        "Which image shall be checked?", "failed", ("Which image shall be checked?", None)
    )
    check_images(dead.session(screen))
    assert screen.finished()
    assert "lost: 1.0 MB in 1 places: partition" in screen.boxes[1]


@contextmanager
def no_mount(share: Share, state: Path, write: bool = False) -> Iterator[Path]:
    """A server that knows one password."""
    if share.password != "right":
        raise ReadFailedError(f"{share.address} cannot be mounted: mount error(13)")
    yield state


def test_a_share_with_a_wrong_password(dead: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_flow, "mounted_share", no_mount)
    monkeypatch.setattr(network_flow, "interfaces", lambda machine: (CONNECTED,))
    screen = ScriptedScreen(
        ("Where are the images?", "nonsense"),
        "is no address of a share",
        ("Where are the images?", "smb://nas/backup"),
        ("User name", None),
        "Where are the images?",
        ("User name", "WORK/anna"),
        ("Password of anna", None),
        ("User name", "WORK/anna"),
        ("Password of anna", "wrong"),
        "mount error(13)",
        "Where are the images?",
        "[WORK/anna]",
        ("Password of anna", "right"),
        "answers",
    )
    session = dead.session(screen)
    ShareFlow(session).run()
    assert screen.finished()
    assert [share.address for share in session.shares] == ["smb://nas/backup"]
    with dead.data() as place:
        kept = json.loads((place / "imager/answers.json").read_text())
    assert (kept["share"], kept["user"], kept["domain"]) == ("smb://nas/backup", "anna", "WORK")
    log = (dead.machine.state / "rescue.log").read_text()
    assert "right" not in json.dumps(kept) + log and "wrong" not in log


CONNECTED = Interface("eth0", False, True, ("192.168.1.5/24",))


def test_keyboard(dead: Lab, tmp_path: Path) -> None:
    for name in ("de.kmap.gz", "us.kmap.gz", "include/compose.kmap.gz", "dvorak.map"):
        file = tmp_path / "maps" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    screen = ScriptedScreen(("keyboard", "de"))
    session = dead.session(screen)
    choose_keyboard(session, [tmp_path / "maps"])
    assert screen.finished()
    assert "us  English (USA)" in screen.last and "compose" not in screen.last
    assert dead.commands[-1] == ("loadkeys", "--quiet", "--", "de")
    assert session.answers.keymap == "de"


def test_the_menu(dead: Lab) -> None:
    screen = ScriptedScreen(
        ("Rescue", "report"),
        "Secure Boot" if dead.machine.is_uefi else "BIOS",
        ("Rescue", "log"),
        "the rescue program was started",
        ("Save it", False),
        ("Rescue", "end"),
        ("Restart", "off"),
        ("Rescue", None),
    )
    app.run(dead.session(screen), leave=True)
    assert screen.finished()
    assert dead.commands[-1] == ("systemctl", "poweroff")


def test_the_menu_of_a_console_is_not_left(dead: Lab) -> None:
    def gone() -> object:
        raise TerminalGoneError("the terminal is gone")

    screen = ScriptedScreen(("Rescue", None), ("Rescue", None), ("Rescue", gone))
    with pytest.raises(TerminalGoneError):
        app.run(dead.session(screen))
    assert screen.finished()
