"""`imager rescue`: the program of the rescue stick."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from imager.cli.unattended import run_job
from imager.errors import EXIT_OK, RefusedError, UsageError

_EPILOG = """\
examples:
  imager rescue                 the menu: bring a machine back, save its disk, check an image
  imager rescue --unattended    on the stick: do the job that the kernel line orders
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "rescue",
        help="bring a dead machine back",
        description="Full-screen dialogs that bring a machine back from an image, save its disk, "
        "or check an image; made for the rescue stick, where they start by themselves. Nothing is "
        "written to a disk before its name has been typed. Escape leads one step back.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--console", action="store_true", help="as on the stick: Escape does not leave the menu"
    )
    how.add_argument(
        "--unattended",
        action="store_true",
        help="do the job on the kernel line (imager.restore=auto), then restart or power off",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    if arguments.unattended:
        return run_job()
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
