"""`imager rescue`: the program of the rescue stick."""

from __future__ import annotations

import argparse

from imager.cli.unattended import run_job

_EPILOG = """\
examples:
  imager rescue --unattended    on the stick: do the job that the kernel line orders
  cat /proc/cmdline             shows that line; imager rescue --unattended obeys it
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "rescue",
        help="bring a dead machine back",
        description="Bring a machine back from an image; made for the rescue stick.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--unattended",
        action="store_true",
        required=True,
        help="do the job on the kernel line (imager.restore=auto), then restart or power off",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    return run_job()
