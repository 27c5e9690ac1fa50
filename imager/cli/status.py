"""`imager status`: is all well?"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys

from imager.cli.stores import add_store, add_units, known_jobs, stores_named
from imager.cli.text import format_age, format_duration, format_size, format_table, say
from imager.errors import EXIT_DEGRADED, EXIT_OK, ImagerError, UsageError
from imager.schedule.state import state_directory
from imager.schedule.status import DiskStatus, Light, StoreStatus, survey

_EPILOG = """\
examples:
  imager status                  all schedules of this machine
  imager status /mnt/backup      all machines in a store
  imager status --json           the same for monitoring

The exit status is 0 if all lights are green, 3 if one is yellow, 1 if one is red.

  green   a good image, not older than it should be
  yellow  late, degraded, not checked for too long, nearly full, or the store is not there
  red     no good image, the newest is damaged, the last run failed, or overdue
"""
_COLOURS = {Light.GREEN: "32", Light.YELLOW: "33", Light.RED: "31"}
_CODES = {
    Light.GREEN: EXIT_OK,
    Light.YELLOW: EXIT_DEGRADED,
    Light.RED: ImagerError.exit_code,
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "status",
        help="say whether all backups are well",
        description="Say for each machine and disk whether its backups are well: a light and a "
        "word, the last good image and its age, the next run, and when the store will be full.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_store(parser, "?")
    add_units(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    now = datetime.datetime.now().astimezone()
    jobs = known_jobs(arguments.units)
    stores = stores_named(arguments.store)
    if stores:
        jobs = tuple(job for job in jobs if job.store in [path.absolute() for path in stores])
    if not stores and not jobs:
        raise UsageError("there is no schedule on this machine: name the folder of a store")
    found_stores, disks = survey(
        [path.absolute() for path in stores], jobs, arguments.state or state_directory(), now
    )
    if arguments.json:
        print(json.dumps(_json(found_stores, disks), indent=2))
    else:
        _print(found_stores, disks, now)
    return max((_CODES[disk.light] for disk in disks), key=_gravity, default=EXIT_OK)


def _gravity(code: int) -> int:
    return (EXIT_OK, EXIT_DEGRADED, ImagerError.exit_code).index(code)


def _print(
    stores: tuple[StoreStatus, ...], disks: tuple[DiskStatus, ...], now: datetime.datetime
) -> None:
    rows: list[tuple[str, ...]] = [("", "MACHINE", "DISK", "LAST GOOD", "IMAGES", "NEXT RUN", "")]
    rows += (_row(disk, now) for disk in disks)
    lines = format_table(rows, (4,), shutil.get_terminal_size().columns)
    say(lines[0])
    for disk, line in zip(disks, lines[1:], strict=True):
        if _in_colour():
            print(_coloured(disk.light, line))
        else:
            say(line)
    for store in stores:
        if store.absent:
            say(store.absent)
            continue
        full = ""
        if store.full_in is not None:
            full = f", full in {format_duration(store.full_in.total_seconds())} at this pace"
        say(f"{store.path}: {format_size(store.free)} of {format_size(store.size)} free{full}")
    for disk in disks:
        if disk.light is not Light.GREEN and disk.last_run is not None:
            say(f"last run, {disk.last_run.when:%Y-%m-%d %H:%M}: {disk.last_run.line}")


def _in_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _coloured(light: Light, line: str) -> str:
    word, _, rest = line.partition("  ")
    return f"\x1b[{_COLOURS[light]}m{word}\x1b[0m  {rest}"


def _row(disk: DiskStatus, now: datetime.datetime) -> tuple[str, ...]:
    last = format_age((now - disk.last_good).total_seconds()) if disk.last_good else "never"
    following = f"{disk.next_run.astimezone():%a %H:%M}" if disk.next_run else "-"
    return (
        disk.light.value,
        disk.host,
        disk.disk,
        last,
        str(disk.images),
        following,
        disk.word,
    )


def _json(stores: tuple[StoreStatus, ...], disks: tuple[DiskStatus, ...]) -> dict[str, object]:
    return {
        "stores": [
            {
                "path": str(store.path),
                "absent": store.absent or None,
                "free": store.free,
                "size": store.size,
                "full_in_seconds": store.full_in.total_seconds() if store.full_in else None,
            }
            for store in stores
        ],
        "disks": [_disk_json(disk) for disk in disks],
    }


def _disk_json(disk: DiskStatus) -> dict[str, object]:
    return {
        "light": disk.light.value,
        "word": disk.word,
        "host": disk.host,
        "disk": disk.disk,
        "store": str(disk.store),
        "schedule": disk.schedule,
        "last_good": disk.last_good.isoformat() if disk.last_good else None,
        "interval_seconds": disk.interval.total_seconds() if disk.interval else None,
        "next_run": disk.next_run.isoformat() if disk.next_run else None,
        "images": disk.images,
        "last_run": disk.last_run.line if disk.last_run else None,
        "last_run_outcome": disk.last_run.outcome if disk.last_run else None,
        "last_run_time": disk.last_run.when.isoformat() if disk.last_run else None,
    }
