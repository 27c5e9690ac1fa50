"""`imager restore`: an image onto a disk, after asking."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from imager.cli.arguments import add_common, add_parents, add_threads
from imager.cli.confirm import confirm
from imager.cli.progress import ProgressDisplay
from imager.cli.text import say
from imager.errors import EXIT_DEGRADED, EXIT_OK, ImageError, UsageError
from imager.image.origin import FileOrigin, Origin, StreamOrigin
from imager.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore, restore
from imager.words.layout import volumes_hit
from imager.words.restore import plan_lines, result_lines

_EPILOG = """\
examples:
  imager restore sda.img /dev/sdb                   asks before it writes
  imager restore sda.img serial:S6P1NX0R401234      a disk by its serial number
  imager restore --dry-run sda.img /dev/sdb         only say what would happen
  imager restore --partition 2 sda.img /dev/sdb2    one partition
  imager restore --only-changes sda.img /dev/sda    write only what differs
  ssh nas cat sda.img | imager restore --verify-while-writing - /dev/sdb
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "restore",
        help="put an image onto a disk",
        description="Put an image onto a disk of the same or a larger size. The plan is shown and "
        "must be confirmed; the image is verified before anything is written; what was written is "
        "read back and compared.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", help="image file; - for standard input")
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="disk, partition or disk-image file: a path, serial:NUMBER or wwn:NUMBER",
    )
    parser.add_argument(
        "--partition", type=int, metavar="N", help="restore partition N only, onto a partition"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask (for scripts)")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    parser.add_argument(
        "--only-changes",
        action="store_true",
        help="read the target first and write only the chunks that differ",
    )
    parser.add_argument(
        "--verify-while-writing",
        action="store_true",
        help="leave out the first pass over the image: each chunk is verified just before it is "
        "written",
    )
    parser.add_argument(
        "--no-read-back", action="store_true", help="do not read back what was written"
    )
    parser.add_argument(
        "--salvage",
        action="store_true",
        help="restore what is intact of a damaged image; fails all the same (status 4)",
    )
    add_parents(parser)
    add_threads(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    streamed = arguments.image == "-"
    if streamed and not arguments.verify_while_writing:
        raise UsageError(
            "an image from standard input cannot be verified first: add --verify-while-writing "
            "(if it turns out to be damaged, the target's old content is lost already)"
        )
    if streamed and arguments.salvage:
        raise UsageError("--salvage needs an image file")
    options = RestoreOptions(
        partition=arguments.partition,
        threads=arguments.threads,
        only_changes=arguments.only_changes,
        verify_first=not arguments.verify_while_writing,
        read_back=not arguments.no_read_back,
        salvage=arguments.salvage,
    )
    origin: Origin
    if streamed:
        origin = StreamOrigin(sys.stdin.fileno())
    else:
        origin = FileOrigin(Path(arguments.image), arguments.parents)
    with origin:
        plan = plan_restore(origin, arguments.target, options)
        talk = not (arguments.json or arguments.quiet) or not (arguments.yes or arguments.dry_run)
        if talk:
            for line in plan_lines(plan):
                say(line)
        if arguments.dry_run:
            if arguments.json:
                print(json.dumps(_plan_json(plan), indent=2))
            return EXIT_OK
        if not arguments.yes:
            confirm(plan.target.name)
        with ProgressDisplay(arguments.quiet) as progress:
            result = restore(origin, plan, progress)
    if arguments.json:
        print(json.dumps(_result_json(plan, result), indent=2))
    elif not arguments.quiet:
        for line in result_lines(plan, result):
            say(line)
    if result.verdict == "failed":
        return ImageError.exit_code
    return EXIT_DEGRADED if result.verdict == "degraded" else EXIT_OK


def _plan_json(plan: RestorePlan) -> dict[str, object]:
    return {
        "image": str(plan.image) if plan.image else None,
        "target": plan.target.to_json(),
        "start": plan.span.start,
        "end": plan.span.end,
        "layout": plan.layout.to_json(),
        "warnings": list(plan.warnings),
    }


def _result_json(plan: RestorePlan, result: RestoreResult) -> dict[str, object]:
    return {
        "verdict": result.verdict,
        "target": plan.target.to_json(),
        "written": result.written,
        "zeroed": result.zeroed,
        "unchanged": result.unchanged,
        "discarded": result.discarded,
        "lost": [list(pair) for pair in result.lost],
        "lost_volumes": volumes_hit(plan.layout, result.lost),
        "unreadable": [list(pair) for pair in result.unreadable],
        "read_back": result.read_back,
        "notes": list(result.notes),
        "seconds": round(result.seconds, 3),
    }
