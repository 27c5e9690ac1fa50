"""When a schedule runs, as systemd understands it."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
from collections.abc import Sequence
from itertools import pairwise

from imager.disk import programs
from imager.errors import UsageError

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_ELAPSE = re.compile(
    r"^ +(?:Next elapse|Iter\. #\d+|\(in UTC\)): \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC$",
    re.MULTILINE,
)
_ITERATIONS = 10


def daily(time: str) -> str:
    """Each day at "02:00"."""
    return f"*-*-* {_time(time)}"


def weekly(day: str, time: str) -> str:
    """Each week on a day such as "Sun", at a time."""
    name = day[:3].capitalize()
    if name not in _DAYS:
        raise UsageError(f"{day!r} is no day of the week such as Sun")
    return f"{name} *-*-* {_time(time)}"


def monthly(day: str, time: str) -> str:
    """Each month on a day from 1 to 28, which every month has, at a time."""
    if not day.isdecimal() or not 1 <= int(day) <= 28:
        raise UsageError(f"{day!r} is no day from 1 to 28")
    return f"*-*-{int(day):02} {_time(time)}"


HOURLY = "*-*-* *:00:00"


def upcoming(expressions: Sequence[str], after: datetime.datetime) -> tuple[datetime.datetime, ...]:
    """The next times at which one of the expressions says so, in order; empty if never again.

    Raises UsageError for an expression that systemd does not understand, MissingToolError where
    it is not installed.
    """
    program = programs.find("systemd-analyze", "systemd")
    every: set[datetime.datetime] = set()
    ends = []
    for expression in expressions:
        base = after.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        done = subprocess.run(
            [
                *(program, "calendar", f"--iterations={_ITERATIONS}", f"--base-time={base}"),
                *("--", expression),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
            check=False,
        )
        if done.returncode:
            raise UsageError(f"{expression!r} is not a time as systemd.time(7) describes it")
        times = {
            datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)
            for text in _ELAPSE.findall(done.stdout)
        }
        every |= times
        if len(times) == _ITERATIONS:
            ends.append(max(times))
    # Behind the end of the shortest list others may be missing.
    return tuple(sorted(time for time in every if not ends or time <= min(ends)))


def longest_gap(times: Sequence[datetime.datetime]) -> datetime.timedelta | None:
    """The longest time between two neighbours: how old the newest image may become."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return max(gaps, default=None)


def _time(text: str) -> str:
    match = _TIME.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no time of the day such as 02:00")
    return f"{int(match[1]):02}:{match[2]}:00"
