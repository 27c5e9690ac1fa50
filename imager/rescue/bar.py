"""A progress bar that listens: `dialog --gauge` draws one, but takes no key while it does."""

from __future__ import annotations

import curses
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from imager.rescue.screen import WIDTH
from imager.wording import shorten

_ESCAPE = 27
_CONTROL_C = 3
_HEIGHT = 9
_INNER = WIDTH - 4


class Bar:
    """A `Gauge` in the middle of the terminal."""

    def __init__(self, window: curses.window, title: str) -> None:
        """Draw on `window`, the whole terminal."""
        self._window = window
        self._title = title
        self._drawn: tuple[str, ...] = ()

    def show(self, heading: str, percent: int | None, line: str) -> None:
        """As `Gauge.show`; what has not changed is not sent again."""
        lines = bar_lines(self._title, heading, percent, line)
        if lines == self._drawn:
            return
        self._drawn = lines
        rows, columns = self._window.getmaxyx()
        top, left = max(0, (rows - len(lines)) // 2), max(0, (columns - WIDTH) // 2)
        self._window.erase()
        for number, text in enumerate(lines):
            # The terminal may be smaller than that.
            with suppress(curses.error):
                self._window.addnstr(top + number, left, text, max(0, columns - left - 1))
        self._window.refresh()

    def left(self) -> bool:
        """As `Gauge.left`."""
        keys = set()
        while (key := self._window.getch()) != curses.ERR:
            keys.add(key)
        return bool(keys & {_ESCAPE, _CONTROL_C})


def bar_lines(title: str, heading: str, percent: int | None, line: str) -> tuple[str, ...]:
    """The box, as text."""
    border = "+" + "-" * (WIDTH - 2) + "+"
    inside = _INNER - 9
    if percent is None:
        drawn = "[" + "." * inside + "]"
    else:
        full = inside * min(max(percent, 0), 100) // 100
        drawn = f"[{'#' * full}{' ' * (inside - full)}] {percent:3}%"
    texts = ("", heading, "", drawn, line, "", "Escape: break off (asks first)")
    return (
        "+-" + f" {shorten(title, _INNER)} ".ljust(WIDTH - 3, "-") + "+",
        *(f"| {shorten(text, _INNER).ljust(_INNER)} |" for text in texts),
        border,
    )


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """The terminal as a bar; given back at the end."""
    window = curses.initscr()
    try:
        curses.noecho()
        # Ctrl-C comes as a key: a signal would reach the work's programs, too.
        curses.raw()
        with suppress(curses.error):
            curses.curs_set(0)
        curses.set_escdelay(100)
        window.keypad(True)
        window.nodelay(True)
        yield Bar(window, title)
    finally:
        with suppress(curses.error):
            curses.noraw()
            curses.echo()
            curses.curs_set(1)
        with suppress(curses.error):
            curses.endwin()
