"""Which store a command works on, where the command line does not say it."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from imager.errors import UsageError
from imager.schedule.job import Job
from imager.schedule.state import DEFAULT_STATE
from imager.schedule.units import SYSTEM_UNITS, read_job, schedule_names
from imager.store.retention import UNLIMITED, Rules, Span, parse_span

ENVIRONMENT = "IMAGER_STORE"


def add_store(parser: argparse.ArgumentParser, count: str) -> None:
    """The argument STORE."""
    parser.add_argument(
        "store",
        metavar="STORE",
        nargs=count,
        type=Path,
        help=f"folder of the store (default: ${ENVIRONMENT}, or those of this machine's schedules)",
    )


def chosen_stores(argument: Path | None) -> tuple[Path, ...]:
    """The stores meant: the one given, $IMAGER_STORE, or those of the schedules."""
    named = stores_named(argument)
    if named:
        return named
    found = tuple(dict.fromkeys(job.store for job in known_jobs(SYSTEM_UNITS)))
    if not found:
        raise UsageError(f"name the folder of the store, or set {ENVIRONMENT}")
    return found


def stores_named(argument: Path | None) -> tuple[Path, ...]:
    """The store given or set in the environment; empty: whatever the schedules say."""
    if argument is not None:
        return (argument,)
    return (Path(os.environ[ENVIRONMENT]),) if os.environ.get(ENVIRONMENT) else ()


def known_jobs(units: Path) -> tuple[Job, ...]:
    """The jobs of the schedules whose units are in this folder; those that make sense."""
    found = []
    for name in schedule_names(units):
        with contextlib.suppress(UsageError):
            found.append(read_job(name, units))
    return tuple(found)


def add_units(parser: argparse.ArgumentParser) -> None:
    """--units and --state."""
    parser.add_argument(
        "--units",
        type=Path,
        default=SYSTEM_UNITS,
        metavar="DIR",
        help="folder of the systemd units (default %(default)s)",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help=f"folder with the results of the last runs (default {DEFAULT_STATE})",
    )


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The --keep options."""
    rules = parser.add_argument_group(
        "which images are kept",
        "Each rule counts by itself, and what one of them keeps is kept. N may be 'unlimited'.",
    )
    for name, what in (
        ("last", "the newest N"),
        ("hourly", "one for each of the latest N hours that have any"),
        ("daily", "one for each of the latest N days that have any"),
        ("weekly", "one for each of the latest N weeks (Monday to Sunday) that have any"),
        ("monthly", "one for each of the latest N months that have any"),
        ("yearly", "one for each of the latest N years that have any"),
    ):
        rules.add_argument(f"--keep-{name}", type=_number, metavar="N", help=what)
    rules.add_argument(
        "--keep-within",
        type=span_argument,
        metavar="TIME",
        help="all that are at most TIME older than the newest: 14d, 36h, 1y6m",
    )


def rules_of(arguments: argparse.Namespace) -> Rules:
    """The rules that the --keep options make."""
    return Rules(
        arguments.keep_last,
        arguments.keep_hourly,
        arguments.keep_daily,
        arguments.keep_weekly,
        arguments.keep_monthly,
        arguments.keep_yearly,
        arguments.keep_within,
    )


def _number(text: str) -> int:
    if text == "unlimited":
        return UNLIMITED
    if not text.isdecimal() or len(text) > 6:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'unlimited'")
    return int(text)


def span_argument(text: str) -> Span:
    """A length of time such as 14d, as the type of an argument."""
    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
