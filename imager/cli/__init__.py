"""The command line: arguments, printing, exit codes; everything else is the Python API's."""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from imager.cli.text import printable
from imager.errors import ImagerError
from imager.version import VERSION

EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_COMMANDS = (
    "devices",
    "capture",
    "check",
    "info",
    "diff",
    "restore",
    "export",
    "store",
    "list",
    "prune",
    "pin",
    "status",
    "schedule",
    "rescue",
    "bootmedia",
)

_EPILOG = """\
A first backup and its way back:
  imager devices                        which disk is which
  imager capture /dev/sda backup.img    store the used parts of a disk
  imager check backup.img               prove that the image is good
  imager info backup.img                what is inside
  imager restore backup.img /dev/sdb    put it onto a disk, after asking

Every night, into a store:
  imager store init /mnt/backup
  imager schedule add /dev/sda --store /mnt/backup --daily 02:00
  imager status                         whether all is well

Exit status:
  0  ok
  1  failed
  2  the arguments make no sense
  3  degraded: complete but for ranges that could not be read, and these are listed
  4  the image is damaged, cut short or not an image
  5  refused by a safety rule; nothing was written
  6  reading failed
  7  writing failed (disk full, device error)
  8  what was compared differs
  9  a program or package that is needed is not installed
  10 the store is not there: its disk is not connected, or not mounted
  11 a disk in use could not be caught at one instant; try again
  70 a fault in imager itself
  130, 143  interrupted, terminated
"""


class Terminated(BaseException):
    """SIGTERM came: unwind, so that everything is closed in order."""


def build_parser(commands: Sequence[str] = _COMMANDS) -> argparse.ArgumentParser:
    """The parser of all commands, from which the manual page is made, or of some of them."""
    parser = argparse.ArgumentParser(
        prog="imager",
        description="Back up whole disks and bring them back.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"imager {VERSION}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        importlib.import_module(f"imager.cli.{command}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's); returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    # One that is named needs none of the others' modules: a program that starts in half the time.
    named = words[:1] if words and words[0] in _COMMANDS else _COMMANDS
    arguments = build_parser(named).parse_args(words)
    signal.signal(signal.SIGTERM, _terminate)
    # A split image may have thousands of parts, all of them open at once.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except ImagerError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except Terminated:
        return _fail("terminated", EXIT_TERMINATED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ImagerError.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", ImagerError.exit_code)
    except Exception as error:
        if os.environ.get("IMAGER_DEBUG"):
            raise
        return _fail(
            f"internal error ({type(error).__name__}: {error}); "
            "please report it with the output of IMAGER_DEBUG=1",
            EXIT_INTERNAL,
        )


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _fail(message: str, status: int) -> int:
    print(f"imager: {printable(message)}", file=sys.stderr)
    return status
