"""`imager prune`: which images of a store stay."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from imager.cli.arguments import add_common
from imager.cli.progress import ProgressDisplay
from imager.cli.stores import add_rules, add_store, chosen_stores, rules_of
from imager.cli.text import format_size, say
from imager.errors import EXIT_OK, ImagerError
from imager.store.folder import open_store
from imager.store.prune import DEFAULT_GRACE, PruneReport, prune
from imager.store.retention import Decision, parse_span

_EPILOG = """\
examples:
  imager prune /mnt/backup --keep-daily 7 --keep-weekly 4 --keep-monthly 6
  imager prune /mnt/backup --keep-within 14d --dry-run      what would go, and why the rest stays
  imager prune /mnt/backup --keep-last 10 --grace 3d

Whatever the rules say, these stay: images dated in the future, pinned ones, the newest that passed
a check, and the newest good one. An image that goes is given up first (its name ends in .expired),
and its space given back a day later, but for what other images still borrow from it.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "prune",
        help="give up images that no rule keeps",
        description="Give up the images of a store that no rule keeps, for each machine and disk, "
        "and give back the space of those given up before.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_store(parser, "?")
    add_rules(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    parser.add_argument(
        "--grace",
        type=_duration,
        default=DEFAULT_GRACE,
        metavar="TIME",
        help="how long an image stays as it is after it was given up: 36h, 3d (default 1d)",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    rules = rules_of(arguments)
    now = datetime.datetime.now().astimezone()
    status = EXIT_OK
    reports: list[tuple[Path, PruneReport]] = []
    for path in chosen_stores(arguments.store):
        store = open_store(path)
        with ProgressDisplay(arguments.quiet) as progress:
            report = prune(
                store,
                rules,
                now,
                grace=arguments.grace,
                dry_run=arguments.dry_run,
                progress=progress,
            )
        reports.append((path, report))
        if report.notes:
            status = ImagerError.exit_code
    if arguments.json:
        print(json.dumps([_report_json(path, report) for path, report in reports], indent=2))
    else:
        for _, report in reports:
            _print_report(report, arguments.dry_run, arguments.quiet)
    return status


def _print_report(report: PruneReport, dry_run: bool, quiet: bool) -> None:
    for note in report.notes:
        say(note)
    if quiet:
        return
    for disk in report.disks:
        say(f"{disk.host}: {disk.disk}")
        for decision in disk.decisions:
            say(f"  {_words(decision, dry_run)}")
    if dry_run:
        return
    if report.deleted:
        say(f"deleted: {len(report.deleted)} given up before")
    if report.borrowed:
        say(f"given up, but others still borrow from them: {len(report.borrowed)}")
    if report.waiting:
        say(f"given up, deleted by a later prune: {len(report.waiting)}")
    say(f"given back: {format_size(report.freed)}")


def _words(decision: Decision, dry_run: bool) -> str:
    name = decision.image.name
    if decision.kept:
        return f"keep     {name}  {', '.join(decision.reasons)}"
    return f"{'would go' if dry_run else 'given up'} {name}"


def _report_json(path: Path, report: PruneReport) -> dict[str, object]:
    return {
        "store": str(path),
        "disks": [
            {
                "folder": str(disk.folder),
                "host": disk.host,
                "disk": disk.disk,
                "images": [
                    {"name": each.image.name, "kept": each.kept, "reasons": list(each.reasons)}
                    for each in disk.decisions
                ],
            }
            for disk in report.disks
        ],
        "expired": [str(each) for each in report.expired],
        "deleted": [str(each) for each in report.deleted],
        "waiting": [str(each) for each in report.waiting],
        "borrowed": [str(each) for each in report.borrowed],
        "freed": report.freed,
        "notes": list(report.notes),
    }


def _duration(text: str) -> datetime.timedelta:
    try:
        span = parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if span.years or span.months:
        raise argparse.ArgumentTypeError(f"{text!r}: name it in days and hours")
    return datetime.timedelta(days=span.days, hours=span.hours)
