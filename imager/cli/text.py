"""What all commands print alike: sizes, times, tables, in any terminal and to any file."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from imager.wording import format_size, parse_size, printable

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

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def format_duration(seconds: float) -> str:
    """A length of time in at most two units: "3.2 s", "4 min 05 s", "2 h 10 min", "3 d 4 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def format_age(seconds: float) -> str:
    """How long ago, in one unit rounded down: "just now", "5 minutes ago", "1 day ago"."""
    if seconds < -_MINUTE:
        return "in the future"
    for length, unit in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        count = int(seconds // length)
        if count > 0:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


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
    if not 0 < seconds < _DAY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 150ms or 2s")
    return seconds


def shorten(text: str, width: int) -> str:
    """`text` cut to `width` characters, and made harmless to a terminal."""
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "~"


def format_table(rows: Sequence[Sequence[str]], right: Sequence[int], width: int) -> list[str]:
    """Lines of aligned columns, of which those in `right` are numbers; no line exceeds `width`.

    Where the rows are too wide the widest of the other columns gives way.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    soft = [index for index in range(len(widths)) if index not in right]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths[index] for index in soft) > 4:
        widths[max(soft, key=lambda index: widths[index])] -= 1
    return [
        "  ".join(
            cell.rjust(size) if index in right else shorten(cell, size).ljust(size)
            for index, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def say(text: str) -> None:
    """Print a line, with "?" for what could play tricks on the terminal, or what it cannot show."""
    encoding = sys.stdout.encoding or "ascii"
    print(printable(text).encode(encoding, "replace").decode(encoding))
