"""The check that every kind of table needs: its partitions lie apart from each other."""

from __future__ import annotations

from collections.abc import Iterable

from imager.errors import NotUnderstoodError


def refuse_overlap(ranges: Iterable[tuple[int, int, str]]) -> None:
    """Raise NotUnderstoodError if two of the (start, end, name) ranges share a byte."""
    last_end, last_name = 0, ""
    for start, end, name in sorted(ranges):
        if start < last_end:
            raise NotUnderstoodError(f"{last_name} and {name} overlap")
        last_end, last_name = end, name
