"""What the flows ask of a screen: a few kinds of dialogs, each of which can be left with Escape.

`None` always means that the person wants to go one step back. Texts may come from a disk or a
network: a screen shows what is unprintable as "?".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from imager.errors import ImagerError

WIDTH = 76
"""Columns that every text may use: a serial line has 80, and a box has a border."""


class TerminalGoneError(ImagerError):
    """The terminal was closed, or the serial line hung up; there is nobody to ask."""


class Choice(NamedTuple):
    """One line of a menu."""

    tag: str
    """What is returned; it is shown, too."""
    text: str
    help: str = ""
    """A line at the bottom of the screen while it is chosen."""


class Gauge(Protocol):
    """The progress of something that runs."""

    def show(self, heading: str, percent: int | None, line: str) -> None:
        """Draw it; `percent` is None for a step that cannot be measured."""

    def left(self) -> bool:
        """Whether Escape or Ctrl-C was pressed since the last call."""


class Screen(Protocol):
    """A terminal to talk to a person at."""

    def menu(
        self, title: str, text: str, choices: Sequence[Choice], chosen: str | None = None
    ) -> str | None:
        """The tag of one of `choices`; the one with the tag `chosen` is under the cursor."""

    def confirm(
        self, title: str, text: str, yes: str = "Yes", no: str = "No", careful: bool = False
    ) -> bool | None:
        """Whether `yes` was chosen; if `careful`, the cursor is on `no`."""

    def ask(self, title: str, text: str, initial: str = "") -> str | None:
        """A line of text."""

    def password(self, title: str, text: str) -> str | None:
        """A line of text that is not shown."""

    def show(self, title: str, text: str) -> None:
        """Text to be read, with as many lines as need be."""

    def notice(self, title: str, text: str) -> None:
        """Text that stays while the program is at something short; it needs no answer."""

    def gauge(self, title: str) -> AbstractContextManager[Gauge]:
        """A bar, to be drawn again and again."""

    def aside(self) -> AbstractContextManager[None]:
        """The terminal is another program's meanwhile."""


def walk(*steps: Callable[[], bool | None]) -> bool:
    """Take the steps in order; one that gives False leads back to the one before it.

    A step that had nothing to ask gives None, and is passed by in either direction. Returns whether
    the last was taken: False where the first one was left backwards.
    """
    at, forward = 0, True
    while 0 <= at < len(steps):
        answer = steps[at]()
        forward = forward if answer is None else answer
        at += 1 if forward else -1
    return at == len(steps)
