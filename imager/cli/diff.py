"""`imager diff`: where two images of a disk differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from imager.cli.arguments import add_common, add_parents, add_threads
from imager.cli.progress import ProgressDisplay
from imager.cli.text import format_size, printable, say
from imager.diff import DiffResult, diff
from imager.errors import EXIT_OK
from imager.extents import Extents
from imager.words.layout import volume_name

_EPILOG = """\
examples:
  imager diff mon.img tue.img           how much changed, partition by partition
  imager diff --json mon.img tue.img    every changed range, in bytes
"""
_SHOWN = 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "diff",
        help="say where two images differ",
        description="Compare two images of one disk, full or incremental, and say which ranges "
        "changed. Unused space counts as zeros.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", metavar="A", type=Path, help="the older image")
    parser.add_argument("second", metavar="B", type=Path, help="the newer image")
    add_parents(parser)
    add_threads(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    with ProgressDisplay(arguments.quiet) as progress:
        result = diff(
            arguments.first, arguments.second, arguments.threads, progress, arguments.parents
        )
    if arguments.json:
        print(json.dumps(_result_json(result), indent=2))
    elif not arguments.quiet:
        for line in _lines(result):
            say(line)
    return EXIT_OK


def _lines(result: DiffResult) -> Iterator[str]:
    if not result.changed:
        yield "nothing differs"
        return
    for volume, changed in result.volumes():
        label = f" ({printable(volume.label)})" if volume.label else ""
        yield from _ranges(f"{volume_name(volume)}{label}", changed)
    outside = result.outside()
    if outside:
        yield from _ranges("outside of partitions", outside)
    yield f"{format_size(result.changed.total)} of {format_size(result.disk_size)} differ"


def _ranges(name: str, changed: Extents) -> Iterator[str]:
    yield f"{name}: {format_size(changed.total)} in {len(changed)} places"
    for number, (start, end) in enumerate(changed):
        if number == _SHOWN:
            yield f"  and {len(changed) - _SHOWN} more"
            return
        yield f"  bytes {start} to {end - 1}"


def _result_json(result: DiffResult) -> dict[str, object]:
    return {
        "changed": [list(pair) for pair in result.changed],
        "changed_bytes": result.changed.total,
        "disk_size": result.disk_size,
        "volumes": [
            {
                "number": volume.number,
                "label": volume.label,
                "kind": volume.kind,
                "changed_bytes": changed.total,
                "changed": [list(pair) for pair in changed],
            }
            for volume, changed in result.volumes()
        ],
        "outside_bytes": result.outside().total,
        "seconds": round(result.seconds, 3),
    }
