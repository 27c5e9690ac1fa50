"""What all commands print alike: sizes, times, tables, in any terminal and to any file."""

from __future__ import annotations

import argparse
import math
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
    "duration_argument",
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


_MOST_SECONDS = 24 * 60 * 60


def size_argument(text: str) -> int:
    """`parse_size` as the type of an argparse argument, so that its message is shown."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def duration_argument(text: str) -> float:
    """Seconds, as the type of an argparse argument: "150ms", "2s", "0.5"."""
    unit = 0.001 if text.endswith("ms") else 1.0
    try:
        seconds = float(text.removesuffix("ms").removesuffix("s")) * unit
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 150ms or 2s")
    return seconds


def say(text: str) -> None:
    """Print a line, with "?" for what could play tricks on the terminal, or what it cannot show."""
    encoding = sys.stdout.encoding or "ascii"
    print(printable(text).encode(encoding, "replace").decode(encoding))
