"""`imager export`: an image as one that needs no other, or as a disk-image file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from imager.cli.arguments import add_common, add_parents, add_threads
from imager.cli.progress import ProgressDisplay
from imager.cli.text import format_duration, format_size, say
from imager.errors import EXIT_DEGRADED, EXIT_OK, UsageError
from imager.export import ExportFormat, ExportResult, export

_EPILOG = """\
examples:
  imager export tue.img full.img               a full image, which needs no parent
  imager export --raw tue.img disk.raw         a sparse file, for a loop device
  imager export --qcow2 tue.img disk.qcow2     for a virtual machine
  imager export tue.img - | ssh pc 'imager restore --verify-while-writing --yes - /dev/sda'
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="make a full image or a disk-image file of an image",
        description="Write what an image holds, its parents included, as a full image that plain "
        "zstd restores, or as a disk-image file. Every chunk is verified; nothing is overwritten.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", type=Path)
    parser.add_argument(
        "out", metavar="OUT", help="file to write; - for standard output (a full image only)"
    )
    forms = parser.add_mutually_exclusive_group()
    for form, words in (
        (ExportFormat.RAW, "write a sparse file with the bytes of the disk"),
        (ExportFormat.QCOW2, "write a qcow2 file (needs qemu-img)"),
    ):
        forms.add_argument(
            f"--{form.value}", dest="form", action="store_const", const=form, help=words
        )
    add_parents(parser)
    add_threads(parser)
    add_common(parser)
    parser.set_defaults(run=run, form=ExportFormat.IMAGE)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    piped = arguments.out == "-"
    if piped and sys.stdout.isatty():
        raise UsageError("an image is not written to a terminal: redirect standard output")
    out = sys.stdout.fileno() if piped else Path(arguments.out)
    with ProgressDisplay(arguments.quiet) as progress:
        result = export(
            arguments.image,
            out,
            arguments.form,
            arguments.threads,
            progress,
            parents=arguments.parents,
        )
    if piped:
        return _status(result)
    if arguments.json:
        print(json.dumps(_result_json(result), indent=2))
    elif not arguments.quiet:
        say(
            f"{arguments.out}: {format_size(result.size)}, in {format_duration(result.seconds)}, "
            f"{result.verdict}"
        )
        if result.excluded:
            say(f"{format_size(result.excluded.total)} were left out of the image")
    return _status(result)


def _status(result: ExportResult) -> int:
    return EXIT_DEGRADED if result.verdict == "degraded" else EXIT_OK


def _result_json(result: ExportResult) -> dict[str, object]:
    return {
        "verdict": result.verdict,
        "files": [str(path) for path in result.files],
        "size": result.size,
        "unreadable": [list(pair) for pair in result.unreadable],
        "excluded": [list(pair) for pair in result.excluded],
        "seconds": round(result.seconds, 3),
    }
