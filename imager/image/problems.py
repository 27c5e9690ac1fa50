"""What was found damaged in an image, in bounded memory however much it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAX_LISTED = 1000
"""Problems that are kept in words; lost ranges of the disk are kept in full elsewhere."""


class Problem(NamedTuple):
    """Something damaged in an image."""

    message: str
    start: int | None = None
    """First disk byte whose content is lost by it; None if nothing is."""
    end: int | None = None


class Problems:
    """The problems found so far, each once, in the order in which they were found."""

    def __init__(self) -> None:
        """Begin with none."""
        self._found: dict[Problem, None] = {}
        self._overflow = False

    def add(self, message: str, start: int | None = None, end: int | None = None) -> None:
        """Note a problem, which loses the disk bytes [start, end) if these are given."""
        problem = Problem(message, start, end)
        if len(self._found) < MAX_LISTED:
            self._found[problem] = None
        elif problem not in self._found:
            self._overflow = True

    def __bool__(self) -> bool:
        return bool(self._found)

    def __iter__(self) -> Iterator[Problem]:
        yield from self._found
        if self._overflow:
            yield Problem("more problems follow, which are not listed")
