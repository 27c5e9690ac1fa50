"""`imager schedule`: backups that happen by themselves."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from imager.cli.arguments import partition_list
from imager.cli.stores import add_rules, add_units, known_jobs, rules_of, span_argument
from imager.cli.text import format_table, say
from imager.disk.identity import resolve
from imager.disk.mounts import all_mounts, mount_of
from imager.disk.source import SourceDevice
from imager.errors import EXIT_OK, ImagerError, UsageError
from imager.schedule import calendar
from imager.schedule.job import Job, default_name
from imager.schedule.notify import StatusNotifier
from imager.schedule.run import local_clock, run_job
from imager.schedule.state import state_directory
from imager.schedule.units import (
    SYSTEM_UNITS,
    make_units,
    read_job,
    remove_units,
    unit_name,
    write_units,
)
from imager.store.disk_key import key_of_device
from imager.store.folder import open_store
from imager.store.retention import DEFAULT_RULES

_EPILOG = """\
examples:
  imager schedule add /dev/sda --store /mnt/backup --daily 02:00
  imager schedule list               all schedules, and when each runs next
  imager schedule run NAME           now, as the timer would

A schedule is two systemd units, imager-NAME.service and imager-NAME.timer. Each run captures the
disk, prunes its images, and checks some of them by turns.
"""
_ADD_EPILOG = """\
examples:
  imager schedule add /dev/sda --store /mnt/backup --daily 02:00
  imager schedule add /dev/sda --store /mnt/usb --weekly Sun 03:00 --keep-last 8 --name usb
  imager schedule add /dev/sda --store /mnt/nas --daily 12:30 --daily 20:00 \\
      --keep-within 7d --keep-weekly 8 --check-within 30d --wake \\
      --on-failure 'mail -s "$IMAGER_MESSAGE" root </dev/null' --ping https://hc.example/abc

The disk is kept by its serial number, WWN or partition table: it may be sdb tomorrow. Without a
--keep rule a schedule keeps 7 daily, 4 weekly and 6 monthly images.
"""
_RUN_EPILOG = """\
examples:
  imager schedule run office         capture, prune and check now
  imager schedule run office --units ./units

The exit status is that of what went wrong first: 0 all is well, 3 degraded, 10 the store is not
there (for systemd no failure), others as imager --help says.
"""
_LIST_EPILOG = """\
examples:
  imager schedule list
  imager schedule list --json
"""
_SHOW_EPILOG = """\
examples:
  imager schedule show office        its units
  imager schedule show office --json what it does
"""
_REMOVE_EPILOG = """\
examples:
  imager schedule remove office      its images stay
  imager schedule remove office --units ./units
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "schedule",
        help="make backups happen by themselves",
        description="Make, list, run and remove schedules: systemd timers that back up a disk.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_add(actions)
    for name, what, epilog, run in (
        ("list", "list the schedules", _LIST_EPILOG, _list),
        ("show", "show a schedule's units", _SHOW_EPILOG, _show),
        ("run", "carry out a schedule's job now", _RUN_EPILOG, _run),
        ("remove", "remove a schedule; its images stay", _REMOVE_EPILOG, _remove),
    ):
        action = actions.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != "list":
            action.add_argument("name", metavar="NAME")
        if name != "remove":
            action.add_argument("--json", action="store_true", help="print the result as JSON")
        add_units(action)
        action.set_defaults(run=run)


def _add_add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "add",
        help="make a schedule",
        description="Make a schedule: write its systemd units and start its timer.",
        epilog=_ADD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="DISK", help="the disk, serial:... or wwn:...")
    parser.add_argument("--store", type=Path, metavar="DIR", required=True)
    parser.add_argument("--name", help="what it is called (default: after the disk)")
    when = parser.add_argument_group("when", "Each may be given several times.")
    when.add_argument("--hourly", action="store_true", help="at each full hour")
    when.add_argument("--daily", action="append", default=[], metavar="HH:MM")
    when.add_argument("--weekly", action="append", nargs=2, default=[], metavar=("DAY", "HH:MM"))
    when.add_argument("--monthly", action="append", nargs=2, default=[], metavar=("N", "HH:MM"))
    when.add_argument(
        "--calendar", action="append", default=[], metavar="TEXT", help="as systemd.time(7) says"
    )
    when.add_argument(
        "--delay",
        type=int,
        default=Job.delay_minutes,
        metavar="MINUTES",
        help="begin up to so much later (default %(default)s)",
    )
    when.add_argument("--wake", action="store_true", help="wake the machine from sleep for it")
    add_rules(parser)
    parser.add_argument(
        "--check-within", type=span_argument, metavar="TIME", help="check each image anew: 30d"
    )
    hooks = parser.add_argument_group("what else is called")
    hooks.add_argument("--before", default="", metavar="CMD", help="first; if it fails, all does")
    hooks.add_argument("--after", default="", metavar="CMD", help="last, however it went")
    hooks.add_argument("--on-failure", default="", metavar="CMD", help="if it failed")
    hooks.add_argument("--ping", default="", metavar="URL", help="is fetched if all went well")
    hooks.add_argument("--metrics", default="", metavar="FILE", help="for Prometheus")
    capture = parser.add_argument_group("how it is captured (see imager capture --help)")
    capture.add_argument("--level", type=int, default=Job.level, metavar="N")
    capture.add_argument("--only", type=partition_list, default=(), metavar="N[,N...]")
    capture.add_argument("--exclude", type=partition_list, default=(), metavar="N[,N...]")
    capture.add_argument("--continue-on-read-error", action="store_true")
    capture.add_argument(
        "--consistency", choices=("auto", "offline", "frozen", "snapshot", "crash"), default="auto"
    )
    add_units(parser)
    parser.set_defaults(run=_add)


def _add(arguments: argparse.Namespace) -> int:
    store = open_store(arguments.store.absolute())
    device = resolve(arguments.source)
    with SourceDevice(device) as source:
        disk = key_of_device(source)
    rules = rules_of(arguments)
    job = Job(
        name=arguments.name or default_name(disk),
        disk=disk,
        device=str(device.absolute()),
        store=store.path,
        calendar=_calendar(arguments),
        rules=DEFAULT_RULES if rules.absent else rules,
        check_within=arguments.check_within,
        before=arguments.before,
        after=arguments.after,
        on_failure=arguments.on_failure,
        ping=arguments.ping,
        metrics=str(Path(arguments.metrics).absolute()) if arguments.metrics else "",
        level=arguments.level,
        only=arguments.only,
        exclude=arguments.exclude,
        consistency=arguments.consistency,
        continue_on_read_error=arguments.continue_on_read_error,
        delay_minutes=arguments.delay,
        wake=arguments.wake,
    )
    following = calendar.upcoming(job.calendar, local_clock())
    if not following:
        raise UsageError(f"{job.calendar[0]} is never again")
    mount = mount_of(store.path, all_mounts())
    directory = arguments.units.absolute()
    place = Path(mount.mount_point) if mount else None
    for path in write_units(job, make_units(job, _program(), directory, place), directory):
        say(f"written: {path}")
    if _is_live(arguments.units):
        _start(job, directory)
        say(f"{job.name}: {job.disk} to {job.store}, next {following[0].astimezone():%a %F %H:%M}")
    else:
        say(
            f"to start it: systemctl daemon-reload && systemctl enable --now {unit_name(job.name, 'timer')}"
        )
    return EXIT_OK


def _start(job: Job, units: Path) -> None:
    """Start a new schedule's timer; where that fails there is no schedule."""
    timer = unit_name(job.name, "timer")
    try:
        _systemctl("daemon-reload")
        _systemctl("enable", "--now", timer)
    except ImagerError as error:
        with contextlib.suppress(ImagerError):
            _systemctl("disable", timer)
        remove_units(job.name, units)
        with contextlib.suppress(ImagerError):
            _systemctl("daemon-reload")
        hint = "; without --wake it may work: a clock that wakes the machine is needed for it"
        raise ImagerError(f"{error}{hint if job.wake else ''}; the schedule was removed") from None


def _calendar(arguments: argparse.Namespace) -> tuple[str, ...]:
    return (
        *((calendar.HOURLY,) if arguments.hourly else ()),
        *(calendar.daily(time) for time in arguments.daily),
        *(calendar.weekly(*words) for words in arguments.weekly),
        *(calendar.monthly(*words) for words in arguments.monthly),
        *arguments.calendar,
    )


def _program() -> tuple[str, ...]:
    """The words with which this program is run again, whoever runs it."""
    script = Path(sys.executable).with_name("imager")
    found = str(script) if script.is_file() else shutil.which("imager")
    return (found,) if found else (sys.executable, "-m", "imager")


def _is_live(units: Path) -> bool:
    """Whether the units' folder is that of a systemd which runs this machine."""
    return units == SYSTEM_UNITS and Path("/run/systemd/system").is_dir()


def _systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ImagerError(f"systemctl {words[0]} failed: {said[-1]}")


def _list(arguments: argparse.Namespace) -> int:
    jobs = known_jobs(arguments.units)
    if arguments.json:
        print(json.dumps([job.to_json() for job in jobs], indent=2))
        return EXIT_OK
    if not jobs:
        say(f"no schedules in {arguments.units}")
        return EXIT_OK
    rows: list[tuple[str, ...]] = [("NAME", "DISK", "STORE", "NEXT RUN")]
    for job in jobs:
        following = calendar.upcoming(job.calendar, local_clock())
        when = f"{following[0].astimezone():%a %F %H:%M}" if following else "never"
        rows.append((job.name, job.disk, str(job.store), when))
    for line in format_table(rows, (), shutil.get_terminal_size().columns):
        say(line)
    return EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    job = read_job(arguments.name, arguments.units)
    if arguments.json:
        print(json.dumps(job.to_json(), indent=2))
        return EXIT_OK
    for kind in ("service", "timer"):
        path = arguments.units / unit_name(job.name, kind)
        say(f"# {path}")
        for line in path.read_text("utf-8").splitlines():
            say(line)
    return EXIT_OK


def _run(arguments: argparse.Namespace) -> int:
    job = read_job(arguments.name, arguments.units)
    notifier = StatusNotifier()
    result = run_job(job, arguments.state or state_directory(), notifier)
    notifier.say(result.line)
    for warning in result.warnings:
        print(f"imager: {warning}", file=sys.stderr)
    if arguments.json:
        facts = {"outcome": result.outcome, "exit_status": result.exit_code, "line": result.line}
        print(json.dumps({**facts, "warnings": list(result.warnings)}, indent=2))
    else:
        say(result.line)
    return result.exit_code


def _remove(arguments: argparse.Namespace) -> int:
    job = read_job(arguments.name, arguments.units)
    if _is_live(arguments.units):
        _systemctl("disable", "--now", unit_name(job.name, "timer"))
    remove_units(job.name, arguments.units)
    if _is_live(arguments.units):
        _systemctl("daemon-reload")
    say(f"{job.name} is removed; its images stay in {job.store}")
    return EXIT_OK
