"""`imager rescue`: the program of the rescue stick."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from imager.errors import EXIT_OK, RefusedError, UsageError

_EPILOG = """\
examples:
  imager rescue              the menu: bring a machine back, save its disk, check an image
  imager rescue --console    the same on the stick's consoles: the menu cannot be left
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "rescue",
        help="bring a dead machine back, with dialogs",
        description="Full-screen dialogs that bring a machine back from an image, save its disk, "
        "or check an image; made for the rescue stick, where it starts by itself. Nothing is "
        "written to a disk before its name has been typed. Escape leads one step back.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--console", action="store_true", help="do not end when the menu is left with Escape"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    # Only this command pays for their import.
    from imager.rescue import app
    from imager.rescue.dialogs import DialogScreen
    from imager.rescue.session import Machine

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the dialogs need a terminal: run it on a console")
    if os.geteuid() != 0:
        raise RefusedError("only root may read and write disks: run as root")
    # A terminal that hangs up ends the program in order: nothing may stay mounted.
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    app.run(app.open_session(DialogScreen(), Machine()), leave=not arguments.console)
    return EXIT_OK
