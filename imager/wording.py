"""How values are put into words, and read from them: sizes, and text from a disk or a path."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,9})?)\s*(?:([KMGTPE])(I?B?))?B?", re.IGNORECASE | re.ASCII)
_PREFIXES = "KMGTPE"


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
