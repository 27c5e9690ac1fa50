"""`imager store`: make a folder a store."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from imager.cli.arguments import add_common
from imager.cli.text import format_size, say
from imager.errors import EXIT_OK
from imager.store.folder import create_store

_EPILOG = """\
examples:
  imager store init /mnt/backup                     make an empty folder a store
  imager store init /mnt/usb/images && imager capture /dev/sda --store /mnt/usb/images

A store holds the images of any number of machines and disks. The marker that init writes keeps a
capture from filling the empty mount point of a disk that is not there.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "store",
        help="make a folder a store of images",
        description="Make a folder a store: a USB disk, a share of a NAS, any folder with room.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("init",), help="init: make DIR a store")
    parser.add_argument("path", metavar="DIR", type=Path)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    store = create_store(arguments.path)
    free, total = store.free()
    if arguments.json:
        print(json.dumps({"store": str(store.path), "id": store.id, "free": free}, indent=2))
    elif not arguments.quiet:
        say(f"{store.path} is a store now: {format_size(free)} of {format_size(total)} are free")
    return EXIT_OK
