"""What all commands print alike: sizes, times, tables, in any terminal and to any file."""

from __future__ import annotations

import argparse
import sys

from imager.wording import (
    format_age,
    format_duration,
    format_size,
    format_table,
    parse_size,
    printable,
    shorten,
)

__all__ = [
    "format_age",
    "format_duration",
    "format_size",
    "format_table",
    "parse_size",
    "printable",
    "say",
    "shorten",
    "size_argument",
]


def size_argument(text: str) -> int:
    """`parse_size` as the type of an argparse argument, so that its message is shown."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def say(text: str) -> None:
    """Print a line, with "?" for what could play tricks on the terminal, or what it cannot show."""
    encoding = sys.stdout.encoding or "ascii"
    print(printable(text).encode(encoding, "replace").decode(encoding))
