"""The manual page, made from the command line's own parser: python -m tests.manual > docs/imager.8"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator

from imager.cli import build_parser
from imager.version import VERSION


def manual() -> str:
    """The page's source, the same on every day."""
    return f"{_commands()}.SH EXAMPLES\n.nf\n{_examples()}.fi\n"


def _examples() -> str:
    """The examples of all commands' --help, which argparse-manpage leaves out."""
    lines = [
        line.strip()
        for parser in commands().values()
        for line in (parser.epilog or "").splitlines()
        if line.startswith("  ")
    ]
    # A command with actions repeats theirs.
    each = dict.fromkeys(lines)
    return "".join(line.replace("\\", "\\e").replace("-", "\\-") + "\n" for line in each)


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, and of the actions of those that have some."""
    return dict(_nested(build_parser(), ""))


def _nested(
    parser: argparse.ArgumentParser, prefix: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield prefix + name, command
                yield from _nested(command, f"{prefix}{name} ")


def _commands() -> str:
    script = "from argparse_manpage.cli import main; main()"
    return subprocess.run(
        [
            *(sys.executable, "-c", script),
            *("--module", "imager.cli", "--function", "build_parser"),
            *("--project-name", "imager", "--version", VERSION),
            *("--description", "back up whole disks and bring them back"),
            *("--manual-section", "8", "--manual-title", "System administration"),
        ],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1795392000", "COLUMNS": "80"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


if __name__ == "__main__":
    sys.stdout.write(manual())
