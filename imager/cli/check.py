"""`imager check`: is the image good?"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
from pathlib import Path

from imager.check import CheckResult, check
from imager.cli.arguments import add_common, add_parents, add_threads
from imager.cli.progress import ProgressDisplay
from imager.cli.text import printable, say
from imager.errors import EXIT_DEGRADED, EXIT_OK, ImageError, ImagerError, VerifyError
from imager.proved import ProvedChunks
from imager.store.checking import note_check
from imager.words.check import lost_volumes, report_lines

_EPILOG = """\
examples:
  imager check sda.img                     decode and hash everything
  imager check --quick /mnt/backup/*.img   structure only, in seconds
  imager check sda.img --against /dev/sda  is the disk still as it was?
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "check",
        help="prove that images are good",
        description="Decode and hash every chunk of an image, and compare its structure with "
        "itself. Damage is mapped to the partitions that it hits.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    parser.add_argument("--quick", action="store_true", help="structure only, no chunks")
    parser.add_argument(
        "--against", metavar="DEVICE", type=Path, help="compare with this disk as well"
    )
    add_parents(parser)
    add_threads(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; the status is that of the worst image."""
    statuses: list[int] = []
    reports: list[dict[str, object]] = []
    proved = ProvedChunks()  # images of one chain share most of what they are made of
    for path in arguments.images:
        try:
            with ProgressDisplay(arguments.quiet) as progress:
                result = check(
                    path,
                    quick=arguments.quick,
                    against=arguments.against,
                    threads=arguments.threads,
                    progress=progress,
                    parents=arguments.parents,
                    proved=proved,
                )
        except ImagerError as error:
            if len(arguments.images) == 1:
                raise
            statuses.append(error.exit_code)
            reports.append({"image": str(path), "verdict": "failed", "error": str(error)})
            if not arguments.json:
                _say_failed([f"{path}: failed: {error}"], arguments.quiet)
            continue
        with contextlib.suppress(OSError, ImagerError):  # a store that is read-only, say
            note_check(result, datetime.datetime.now().astimezone())
        statuses.append(_status(result))
        reports.append(_report_json(result))
        if arguments.json:
            continue
        if result.verdict == "failed":
            _say_failed(report_lines(result), arguments.quiet)
        elif not arguments.quiet:
            same = [f"  {arguments.against} holds the same"] if arguments.against else []
            _say(report_lines(result) + same)
    if arguments.json:
        print(json.dumps(reports if len(reports) > 1 else reports[0], indent=2))
    failures = [status for status in statuses if status not in (EXIT_OK, EXIT_DEGRADED)]
    return failures[0] if failures else max(statuses)


def _say_failed(lines: list[str], quiet: bool) -> None:
    """Report an image that is not good; even if quiet, one line says which."""
    if quiet:
        print(f"imager: {printable(lines[0])}", file=sys.stderr)
    else:
        _say(lines)


def _say(lines: list[str]) -> None:
    for line in lines:
        say(line)


def _status(result: CheckResult) -> int:
    if result.verdict != "failed":
        return EXIT_DEGRADED if result.verdict == "degraded" else EXIT_OK
    if result.differing and not result.problems and not result.lost:
        return VerifyError.exit_code
    return ImageError.exit_code


def _report_json(result: CheckResult) -> dict[str, object]:
    return {
        "image": str(result.path),
        "verdict": result.verdict,
        "completeness": result.completeness.value,
        "quick": result.quick,
        "problems": [problem.message for problem in result.problems],
        "lost": [list(pair) for pair in result.lost],
        "lost_volumes": lost_volumes(result, result.lost),
        "unreadable": [list(pair) for pair in result.unreadable],
        "differing": [list(pair) for pair in result.differing],
        "seconds": round(result.seconds, 3),
    }
