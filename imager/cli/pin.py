"""`imager pin`: keep an image whatever the rules say."""

from __future__ import annotations

import argparse
from pathlib import Path

from imager.cli.progress import ProgressDisplay
from imager.cli.text import say
from imager.errors import EXIT_OK
from imager.image.reader import ImageReader
from imager.store.revive import revive
from imager.store.sidecar import pin, unpin

_EPILOG = """\
examples:
  imager pin /mnt/backup/pc/disk/2026-11-22T02-00-00Z.img --note 'before the upgrade'
  imager pin /mnt/backup/pc/disk/2026-11-14T02-00-00Z.img.expired      have it back
  imager pin --unpin /mnt/backup/pc/disk/2026-11-22T02-00-00Z.img
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "pin",
        help="keep an image whatever the rules say",
        description="Pin images, so that no prune gives them up, or unpin them. A pin is a small "
        "file beside the image, NAME.img.pinned. An image that was given up is had back by it, as long "
        "as nothing of it has gone.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    parser.add_argument("--unpin", action="store_true", help="leave them to the rules again")
    parser.add_argument("--note", default="", help="a line that says why")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    for path in arguments.images:
        with ImageReader(path) as image:
            name = image.file.path
            expired = image.expired
        if arguments.unpin:
            unpin(name)
        elif expired:
            with ProgressDisplay(quiet=False) as progress:
                name = revive(path, arguments.note, progress)
        else:
            pin(name, arguments.note)
        say(f"{name}: {'unpinned' if arguments.unpin else 'pinned'}")
    return EXIT_OK
