"""Schedules: their units as systemd reads them, and their runs as a timer makes them."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import re
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.capture import CaptureOptions
from imager.cli import build_parser
from imager.errors import ImagerError, RefusedError, UsageError, WriteFailedError
from imager.schedule import calendar
from imager.schedule.find_disk import find_disk
from imager.schedule.job import Job, default_name
from imager.schedule.metrics import Metric, metrics_text
from imager.schedule.notify import StatusNotifier
from imager.schedule.run import run_job
from imager.schedule.state import read_last_run
from imager.schedule.units import escape_path, make_units, quote, read_job, write_units
from imager.store.capture import capture_into
from imager.store.catalog import read_store
from imager.store.folder import create_store, open_store
from imager.store.retention import Rules, Span
from tests.command import failure, imager
from tests.disks import make_disk, put, run
from tests.loop import LoopDevice

MIB = 1 << 20
NOW = datetime.datetime(2026, 11, 27, 12, tzinfo=datetime.UTC)


def a_job(folder: Path, **more: Any) -> Job:
    """A job whose disk is a plain file with a GPT, and whose store is new."""
    disk = make_disk(folder / "disk", 4 * MIB)
    run("sgdisk", "--clear", "--new=1:2048:4095", disk)
    put(disk, MIB, os.urandom(MIB // 2))
    store = create_store(folder / "the store")
    table = run("sgdisk", "--print", disk)
    (guid,) = re.findall(r"Disk identifier \(GUID\): (\S+)", table)
    job = Job("test", f"gpt {guid.lower()}", str(disk), store.path, (calendar.daily("02:00"),))
    return replace(job, **more)


def systemd_words(line: str) -> list[str]:
    """An ExecStart line taken apart as systemd.service(5) says: quotes, C escapes, %% and $$."""
    words = []
    for match in re.finditer(r'"((?:[^"\\]|\\.)*)"', line):
        data = re.sub(
            rb"\\(x[0-9a-f]{2}|.)",
            lambda m: bytes((int(m[1][1:], 16),)) if m[1][:1] == b"x" else m[1],
            match[1].encode(),
        )
        words.append(os.fsdecode(data.replace(b"%%", b"%").replace(b"$$", b"$")))
    return words


# --- units ---


@pytest.mark.parametrize(
    "path",
    [
        "/mnt/backup",
        "/",
        "/mnt/my disk",
        "/media/50% off",
        '/m/"quoted"',
        "/m/a-b",
        "/m/ü",
        "/.x/.y",
    ],
)
def test_mount_units_are_named_as_systemd_does(path: str) -> None:
    assert escape_path(Path(path)) == run("systemd-escape", "--path", path).strip()


@settings(max_examples=300)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=4))
def test_any_words_survive_a_unit(words: list[str]) -> None:
    line = " ".join(quote(word) for word in words)
    assert "\n" not in line and line.isascii()
    assert systemd_words(line) == words


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    folder = tmp_path / 'a folder with 100% "quotes" and $HOME'
    folder.mkdir()
    job = a_job(
        folder,
        calendar=(calendar.daily("02:00"), calendar.weekly("sunday", "3:30"), "Mon..Fri 12:00"),
        wake=True,
        before="mount /mnt/50%",
        on_failure='echo "$IMAGER_MESSAGE"',
        check_within=Span(days=30),
    )
    units = tmp_path / "units"
    units.mkdir()
    made = make_units(job, ("/bin/true", folder.name), units, folder)
    service, timer = write_units(job, made, units)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", service, timer],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read_job("test", units) == job
    text = service.read_text()
    escaped = escape_path(folder).replace("%", "%%")
    assert f"After={escaped}.mount\n" in text and f"Wants={escaped}.mount\n" in text
    assert "SuccessExitStatus=10\n" in text
    for line in ("Persistent=true", "WakeSystem=true", "OnCalendar=Sun *-*-* 03:30:00"):
        assert f"{line}\n" in timer.read_text()


def test_a_schedule_is_not_overwritten(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    made = make_units(job, ("/bin/true",), tmp_path, None)
    write_units(job, made, tmp_path)
    with pytest.raises(RefusedError, match="the schedule test exists"):
        write_units(job, made, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"store": "', '"store": "relative/'),
        ('"daily": 7', '"daily": "7"'),
        ('"daily": 7', '"daily": true'),
        ('"wake": false', '"wake": 0'),
        ('"level": 3', '"level": 99'),
        ('"name": "test"', '"name": "other"'),
        ('"disk": ', '"disc": '),
        ('"check_within": null', '"check_within": "soon"'),
        ("Job=", "Work="),
        ('{"name"', '["name"'),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(tmp_path: Path, old: str, new: str) -> None:
    job = a_job(tmp_path)
    service, _ = write_units(job, make_units(job, ("/bin/true",), tmp_path, None), tmp_path)
    text = service.read_text()
    assert old in text
    service.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=r"holds no job that makes sense|holds the job of other"):
        read_job("test", tmp_path)


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "x/y", "ä", "%i"])
def test_names_that_no_unit_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a schedule"):
        a_job(tmp_path, name=name)


@given(st.text(min_size=1))
def test_any_disk_gives_a_name(text: str) -> None:
    Job(default_name(text), text, "/dev/sda", Path("/store"), ("daily",))


# --- times ---


def test_when_it_runs_next() -> None:
    times = calendar.upcoming((calendar.daily("02:00"),), NOW)
    assert times[0].astimezone().hour == 2
    assert len(times) == 10
    assert calendar.longest_gap(times) in (
        datetime.timedelta(hours=24),
        datetime.timedelta(hours=25),
    )


def test_several_times_are_merged() -> None:
    """Weekdays at noon: the weekend is the longest gap. With the 1st of a month: still."""
    times = calendar.upcoming(("Mon..Fri *-*-* 12:00:00 UTC",), NOW)
    assert calendar.longest_gap(times) == datetime.timedelta(days=3)
    both = calendar.upcoming(("Mon..Fri *-*-* 12:00:00 UTC", "Sat *-*-* 12:00:00 UTC"), NOW)
    assert calendar.longest_gap(both) == datetime.timedelta(days=2)


@pytest.mark.parametrize(
    "words", [("25:00",), ("2",), ("",), ("02:60",), ("02:00 daily",), ("٠٢:٠٠",)]
)
def test_what_is_no_time(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="no time of the day"):
        calendar.daily(*words)


def test_days_that_are_none() -> None:
    with pytest.raises(UsageError, match="no day of the week"):
        calendar.weekly("Someday", "02:00")
    with pytest.raises(UsageError, match="no day from 1 to 28"):
        calendar.monthly("31", "02:00")
    assert calendar.monthly("1", "02:00") == "*-*-01 02:00:00"
    with pytest.raises(UsageError, match=re.escape("systemd.time(7)")):
        calendar.upcoming(("every now and then",), NOW)


# --- runs ---


def test_the_units_command_runs_the_job(tmp_path: Path) -> None:
    """As systemd would: ExecStart's words, the environment that it gives, nothing else."""
    folder = tmp_path / '50% "a" $b'
    folder.mkdir()
    job = a_job(folder)
    units, state = tmp_path / "my units", tmp_path / "state"
    units.mkdir()
    imager(
        *("schedule", "add", job.device, "--store", job.store, "--daily", "02:00"),
        *("--name", "night", "--keep-last", "3", "--units", units, "--check-within", "30d"),
    )
    service = (units / "imager-night.service").read_text()
    (line,) = re.findall("^ExecStart=(.*)$", service, re.MULTILINE)
    done = subprocess.run(
        systemd_words(line),
        env={"PATH": os.environ["PATH"], "STATE_DIRECTORY": str(state)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"night: ok: \S+\.img, .*\(full: .*\); \d+ s\n", done.stdout)
    last = read_last_run(state, "night")
    assert last is not None and last.outcome == "ok" and last.last_success == last.when
    status = json.loads(imager("status", "--units", units, "--state", state, "--json").out)
    assert [(disk["light"], disk["word"]) for disk in status["disks"]] == [("green", "ok")]
    assert status["disks"][0]["next_run"]
    imager("schedule", "remove", "night", "--units", units)
    assert not list(units.iterdir())


def test_nights_with_a_schedule(tmp_path: Path) -> None:
    """Each captures what changed, prunes, and checks by turns."""
    job = a_job(tmp_path, rules=Rules(last=3), check_within=Span(days=4))
    state = tmp_path / "state"
    clock = Clock()
    for night in range(8):
        put(Path(job.device), MIB + night, b"x")
        result = run_job(job, state, clock=clock)
        assert (result.exit_code, result.warnings) == (0, ()), result
        clock.now += datetime.timedelta(days=1)
    (folder,) = read_store(open_store(job.store))
    assert len(folder.complete) >= 3
    assert all(image.parents for image in folder.complete)
    oldest = min(i.check.when if i.check else i.created for i in folder.complete)
    assert clock.now - oldest <= datetime.timedelta(days=5)


class Clock:
    def __init__(self) -> None:
        self.now = datetime.datetime(2026, 11, 1, 2, tzinfo=datetime.UTC)

    def __call__(self) -> datetime.datetime:
        return self.now


def test_an_absent_store_is_an_outcome_of_its_own(tmp_path: Path) -> None:
    job = a_job(tmp_path, on_failure="touch failed", after=f"touch '{tmp_path}/after'")
    job.store.rename(tmp_path / "elsewhere")
    result = run_job(job, tmp_path / "state")
    assert (result.outcome, result.exit_code) == ("absent", 10)
    assert "is not a store" in result.line
    assert (tmp_path / "after").exists()
    assert not Path("failed").exists()


def test_a_missing_disk_fails_and_says_so(tmp_path: Path) -> None:
    told = tmp_path / "told"
    job = a_job(tmp_path, on_failure=f"echo \"$IMAGER_OUTCOME $IMAGER_MESSAGE\" > '{told}'")
    Path(job.device).unlink()
    result = run_job(job, tmp_path / "state")
    assert (result.outcome, result.exit_code) == ("failed", RefusedError.exit_code)
    assert f"the disk {job.disk} is not connected" in result.line
    assert told.read_text() == f"failed {result.line}\n"


def test_a_failing_before_command_stops_the_run(tmp_path: Path) -> None:
    job = a_job(tmp_path, before="exit 3")
    result = run_job(job, tmp_path / "state")
    assert result.outcome == "failed" and "--before command failed with 3" in result.line
    assert not read_store(open_store(job.store))


def test_damage_found_is_said_and_healed(tmp_path: Path) -> None:
    """The check by turns finds it; the run fails; the next one stores the chunk again."""
    job = a_job(tmp_path, check_within=Span(days=2))
    state, clock = tmp_path / "state", Clock()
    run_job(job, state, clock=clock)
    (folder,) = read_store(open_store(job.store))
    image = folder.complete[0].files.path
    with image.open("r+b") as file:
        file.seek(MIB // 4)
        file.write(b"rotten")
    clock.now += datetime.timedelta(days=2)
    result = run_job(job, state, clock=clock)
    assert (result.outcome, result.exit_code) == ("failed", 4)
    assert "is damaged" in result.line
    clock.now += datetime.timedelta(days=1)
    result = run_job(job, state, clock=clock)
    assert any("stored again" in warning for warning in result.warnings)
    (folder,) = read_store(open_store(job.store))
    imager("check", folder.complete[0].files.opened_as)


def test_a_full_store_is_pruned_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the capture fails for want of space is the very reason to give some back."""
    job = a_job(tmp_path, rules=Rules(last=1))
    state, clock = tmp_path / "state", Clock()
    for night in range(2):
        put(Path(job.device), MIB + night, b"x")
        run_job(replace(job, rules=Rules(last=9)), state, clock=clock)
        clock.now += datetime.timedelta(days=1)

    def full(*words: object, **more: object) -> NoReturn:
        raise WriteFailedError("the disk is full")

    monkeypatch.setattr("imager.schedule.run.capture_into", full)
    result = run_job(job, state, clock=clock)
    assert (result.outcome, result.exit_code) == ("failed", 7)
    assert "1 given up" in result.line and "the disk is full" in result.line
    last = read_last_run(state, "test")
    assert last is not None and last.last_success == clock.now - datetime.timedelta(days=1)


def test_another_disks_images_are_not_pruned(tmp_path: Path) -> None:
    """A run applies its rules to its own disk, also if that is not there."""
    job = a_job(tmp_path, rules=Rules(last=1))
    other = make_disk(tmp_path / "other", MIB)
    store = open_store(job.store)
    for night in range(3):
        put(other, night, b"x")
        capture_into(store, other, CaptureOptions(), NOW + night * datetime.timedelta(days=1))
    run_job(job, tmp_path / "state")
    Path(job.device).unlink()
    run_job(job, tmp_path / "state")
    complete = [len(folder.complete) for folder in read_store(store)]
    assert sorted(complete) == [1, 3]


def test_schedules_are_listed_and_shown(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    where = ("--units", tmp_path)
    assert "no schedules" in imager("schedule", "list", *where).out
    words = ("schedule", "add", job.device, "--store", job.store, *where, "--name", "night")
    assert "say when" in failure(*words, status=2)
    assert "systemctl enable --now imager-night.timer" in imager(*words, "--daily", "2:00").out
    assert "the schedule night exists" in failure(*words, "--daily", "2:00", status=5)
    assert re.search(r"^night +gpt .*02:00$", imager("schedule", "list", *where).out, re.MULTILINE)
    (listed,) = json.loads(imager("schedule", "list", "--json", *where).out)
    assert listed["rules"]["daily"] == 7 and listed["calendar"] == ["*-*-* 02:00:00"]
    shown = imager("schedule", "show", "night", *where).out
    assert "OnCalendar=*-*-* 02:00:00" in shown and "ExecStart=" in shown
    assert "there is no schedule day" in failure("schedule", "run", "day", *where, status=2)


def test_a_timer_that_cannot_start_leaves_no_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd refuses WakeSystem= where no clock can wake the machine."""
    job = a_job(tmp_path)
    units = tmp_path / "units"
    units.mkdir()
    program = tmp_path / "systemctl"
    program.write_text(
        f"#!/bin/sh\necho $1 >> '{tmp_path}/done'\necho 1 >&2; echo No >&2; [ $1 != enable ]\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("imager.cli.schedule._is_live", lambda units: True)
    words = ["schedule", "add", job.device, "--store", str(job.store), "--daily", "02:00"]
    words += ["--wake", "--name", "night", "--units", str(units)]
    arguments = build_parser(("schedule",)).parse_args(words)
    with pytest.raises(ImagerError, match="enable failed: No; without --wake it may work"):
        arguments.run(arguments)
    assert not list(units.iterdir())
    done = (tmp_path / "done").read_text().split()
    assert done == ["daemon-reload", "enable", "disable", "daemon-reload"]


def test_metrics_and_ping(tmp_path: Path) -> None:
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        job = a_job(
            tmp_path,
            ping=f"http://127.0.0.1:{server.server_port}/here",
            metrics=str(tmp_path / "imager.prom"),
        )
        result = run_job(job, tmp_path / "state", clock=Clock())
        server.shutdown()
        thread.join()
    assert result.warnings == ()
    assert paths == ["/here"]
    lines = (tmp_path / "imager.prom").read_text().splitlines()
    assert 'imager_run_exit_status{schedule="test"} 0' in lines
    assert 'imager_image_timestamp_seconds{schedule="test"} 1793498400' in lines
    assert all(re.fullmatch(r'# .*|imager_\w+\{schedule="test"\} [\d.]+', line) for line in lines)


def test_a_ping_that_fails_is_only_a_warning(tmp_path: Path) -> None:
    job = a_job(tmp_path, ping="http://127.0.0.1:1/")
    result = run_job(job, tmp_path / "state")
    assert result.outcome == "ok"
    assert "was not reached" in result.warnings[0]


def test_labels_are_escaped() -> None:
    text = metrics_text([Metric("x", "X.", 1.5)], 'a"b\\c\nd')
    assert text.splitlines()[-1] == 'imager_x{schedule="a\\"b\\\\c\\nd"} 1.5'


def test_progress_goes_to_systemd(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        notifier = StatusNotifier(address)
        notifier("capture", 500_000_000, 1_000_000_000)
        notifier("capture", 600_000_000, 1_000_000_000)
        assert listener.recv(200) == b"STATUS=capture: 50% of 1.0 GB"
        notifier("check", 0, 0)
        assert listener.recv(200) == b"STATUS=check"
    notifier.say("nobody listens any more")


def test_a_disk_is_found_under_another_name(tmp_path: Path) -> None:
    """A loop device that was another one when the schedule was made."""
    job = a_job(tmp_path)
    with LoopDevice(Path(job.device)) as device:
        assert find_disk(job.disk, "/dev/loop-that-was") == device.path
        with LoopDevice(Path(job.device)) as other, pytest.raises(RefusedError, match="more than"):
            assert find_disk(job.disk, "/dev/loop-that-was") == other.path
