"""A schedule's two systemd units: what runs, and when. They are all that a schedule is made of.

The job itself stands as JSON in a section of the service's that systemd ignores, so that no list of
schedules can differ from the units that run them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imager.errors import ImagerError, RefusedError, StoreAbsentError, UsageError
from imager.image.head import load
from imager.schedule.job import Job
from imager.store.files import write_durably

SYSTEM_UNITS = Path("/etc/systemd/system")
_SECTION = "[X-Imager]"
_PREFIX = "imager-"
_SAFE_IN_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.]")


class Units(NamedTuple):
    """The texts of both units."""

    service: str
    timer: str


def unit_name(job_name: str, kind: str) -> str:
    """The name of a schedule's "service" or "timer"."""
    return f"{_PREFIX}{job_name}.{kind}"


def make_units(
    job: Job, program: Sequence[str], directory: Path, mount_point: Path | None
) -> Units:
    """The units of a schedule, to lie in `directory`; they run `program` with "schedule run NAME".

    `mount_point` is what the store lies on, to be mounted first where systemd knows how. It is only
    wanted, not required: if it cannot be had, the run says so itself, in one line.
    """
    description = f"Back up {job.disk} to {job.store}"
    mount = ""
    if mount_point is not None and mount_point != Path("/"):
        unit = f"{escape_path(mount_point)}.mount"
        mount = f"Wants={escape_specifiers(unit)}\nAfter={escape_specifiers(unit)}\n"
    where = () if directory == SYSTEM_UNITS else ("--units", str(directory))
    command = " ".join(quote(word) for word in (*program, "schedule", "run", job.name, *where))
    service = f"""\
# Made by imager schedule add; imager schedule remove {job.name} removes it.
[Unit]
Description={escape_text(description)}
Documentation=man:imager(8)
{mount}
[Service]
Type=oneshot
ExecStart={command}
NotifyAccess=main
# The store is not there, say, a USB disk that is not connected: no failure of the machine's.
SuccessExitStatus={StoreAbsentError.exit_code}
TimeoutStartSec=infinity
KillMode=mixed
StateDirectory=imager
IOSchedulingClass=idle
CPUSchedulingPolicy=idle
Nice=19

{_SECTION}
Job={json.dumps(job.to_json())}
"""
    when = "".join(f"OnCalendar={escape_specifiers(one)}\n" for one in job.calendar)
    timer = f"""\
# Made by imager schedule add; imager schedule remove {job.name} removes it.
[Unit]
Description=When to {escape_text(description[0].lower() + description[1:])}
Documentation=man:imager(8)

[Timer]
{when}Persistent=true
RandomizedDelaySec={job.delay_minutes}min
{"WakeSystem=true" if job.wake else "WakeSystem=false"}

[Install]
WantedBy=timers.target
"""
    return Units(service, timer)


def write_units(job: Job, units: Units, directory: Path) -> tuple[Path, Path]:
    """Write both into `directory`, the timer last; RefusedError where the schedule exists."""
    service = directory / unit_name(job.name, "service")
    timer = directory / unit_name(job.name, "timer")
    if service.exists() or timer.exists():
        raise RefusedError(
            f"the schedule {job.name} exists: imager schedule remove {job.name}, or choose another "
            "--name"
        )
    write_durably(service, units.service)
    write_durably(timer, units.timer)
    return service, timer


def remove_units(name: str, directory: Path) -> None:
    """Delete both, the timer first."""
    for kind in ("timer", "service"):
        (directory / unit_name(name, kind)).unlink(missing_ok=True)


def read_job(name: str, directory: Path) -> Job:
    """The job of a schedule; UsageError where there is no such schedule."""
    path = directory / unit_name(name, "service")
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"there is no schedule {name} in {directory}") from None
    try:
        place = lines.index(_SECTION)
        key, _, text = lines[place + 1].partition("=")
        if key != "Job":
            raise ValueError("no job")
        job = Job.from_json(load(text.encode(), "job"))
    except (ValueError, IndexError, KeyError, TypeError, ImagerError) as error:
        raise UsageError(f"{path} holds no job that makes sense: {error}") from None
    if job.name != name:
        raise UsageError(f"{path} holds the job of {job.name}")
    return job


def schedule_names(directory: Path) -> tuple[str, ...]:
    """The schedules whose units are in `directory`."""
    try:
        found = sorted(directory.glob(f"{_PREFIX}*.service"))
    except OSError:
        return ()
    return tuple(
        path.name[len(_PREFIX) : -len(".service")]
        for path in found
        if _SECTION in path.read_text("utf-8", "replace").splitlines()
    )


def quote(word: str) -> str:
    """A word of a command line (systemd.service(5)): quoted, specifiers and variables disarmed."""
    return f'"{escape_specifiers(_c_escape(word)).replace("$", "$$")}"'


def escape_specifiers(text: str) -> str:
    """systemd.unit(5): a percent sign that means itself."""
    return text.replace("%", "%%")


def escape_text(text: str) -> str:
    """Free text in one line of a unit."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return escape_specifiers(line.rstrip("\\"))


def escape_path(path: Path) -> str:
    """A path as the name of a mount unit, as systemd-escape --path makes it."""
    data = "/".join(part for part in str(path).split("/") if part).encode(
        "utf-8", "surrogateescape"
    )
    name = ""
    for place, byte in enumerate(data):
        letter = chr(byte)
        if letter == "/":
            name += "-"
        elif _SAFE_IN_UNIT_NAME.fullmatch(letter) and not (letter == "." and place == 0):
            name += letter
        else:
            name += f"\\x{byte:02x}"
    return name or "-"


def _c_escape(word: str) -> str:
    found = ""
    for byte in word.encode("utf-8", "surrogateescape"):
        letter = chr(byte)
        if letter in '\\"':
            found += "\\" + letter
        elif 0x20 <= byte < 0x7F:
            found += letter
        else:
            found += f"\\x{byte:02x}"
    return found
