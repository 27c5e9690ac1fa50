"""How values are put into words, and read from them: sizes, times, tables, text from a disk."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,9})?)\s*(?:([KMGTPE])(I?B?))?B?", re.IGNORECASE | re.ASCII)
_PREFIXES = "KMGTPE"
_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def format_size(size: int) -> str:
    """`size` bytes as disk makers count, with one decimal below 100: "1.5 GB", "240 GB"."""
    if abs(size) < 1000:
        return f"{size} B"
    value, power = size / 1000, 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value /= 1000
        power += 1
    prefix = _PREFIXES[power].replace("K", "k")
    return f"{value:.{1 if abs(value) < 99.95 else 0}f} {prefix}B"


def parse_size(text: str) -> int:
    """Bytes: "4G" and "4GiB" are 4 * 1024**3, "4GB" is 4 * 1000**3, as for GNU coreutils.

    Raises ValueError, whose message quotes `text`.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512, 64K, 16MiB or 4GB")
    number, prefix, suffix = match.groups()
    whole, _, fraction = number.partition(".")
    base = 1000 if prefix and suffix.upper() == "B" else 1024
    unit: int = base ** (_PREFIXES.index(prefix.upper()) + 1) if prefix else 1
    denominator: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) * unit, denominator)
    if rest:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return size


def printable(text: str) -> str:
    """`text` with what could play tricks on a terminal replaced by "?"."""
    return "".join(character if character.isprintable() else "?" for character in text)


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
