"""The screen as it really is: full-screen dialogs by `dialog`, on tty1 and on a serial line alike.

Boxes are drawn with ASCII characters, which every terminal at the other end of a cable can show.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from imager.errors import MissingToolError
from imager.rescue.bar import bar
from imager.rescue.screen import WIDTH, Choice, Gauge, TerminalGoneError
from imager.version import VERSION
from imager.wording import printable, shorten

_ESCAPE_MILLISECONDS = "300"
"""How long a lone Escape is waited for the rest of a function key: serial lines are slow."""
_MAX_HEIGHT = 20
"""Lines of a box on a terminal of 24."""
_TEXT = WIDTH - 4
_OPTIONS = (
    "--ascii-lines",
    "--no-shadow",
    "--no-mouse",
    "--no-collapse",
    "--cr-wrap",
    # A backslash and an "n" in a label are no line break.
    "--no-nl-expand",
)


class DialogScreen:
    """A `Screen` on the terminal of this process."""

    def __init__(self) -> None:
        """Raise MissingToolError without the program or its Python binding."""
        os.environ.setdefault("ESCDELAY", _ESCAPE_MILLISECONDS)
        try:
            import dialog
        except ImportError:
            raise MissingToolError(
                "python3-dialog is not installed: apt-get install python3-dialog"
            ) from None
        self._library = dialog
        try:
            self._dialog = dialog.Dialog(dialog="dialog")
        except dialog.error:
            raise MissingToolError("dialog is not installed: apt-get install dialog") from None
        self._dialog.set_background_title(f"imager {VERSION}    Escape: one step back")
        self._dialog.add_persistent_args(list(_OPTIONS))
        # Ctrl-C ends the dialog (which is one step back), not this program.
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, _go_on)

    def menu(
        self, title: str, text: str, choices: Sequence[Choice], chosen: str | None = None
    ) -> str | None:
        """As `Screen.menu`."""
        widest = max(len(choice.tag) for choice in choices)
        rows = [
            (
                choice.tag,
                shorten(choice.text, max(_TEXT - widest - 5, 8)),
                shorten(choice.help, WIDTH) or " ",
            )
            for choice in choices
        ]
        lines = _wrapped(text).count("\n")
        height = min(_MAX_HEIGHT, lines + len(rows) + 8)
        code, tag = self._call(
            self._dialog.menu,
            text,
            height=height,
            menu_height=max(2, min(len(rows), height - lines - 8)),
            choices=rows,
            item_help=True,
            title=title,
            cancel_label="Back",
            default_item=chosen or rows[0][0],
        )
        return tag if code == "ok" else None

    def confirm(
        self, title: str, text: str, yes: str = "Yes", no: str = "No", careful: bool = False
    ) -> bool | None:
        """As `Screen.confirm`."""
        code, _ = self._call(
            self._dialog.yesno,
            text,
            title=title,
            yes_label=yes,
            no_label=no,
            defaultno=careful,
        )
        return {"ok": True, "cancel": False}.get(code)

    def ask(self, title: str, text: str, initial: str = "") -> str | None:
        """As `Screen.ask`."""
        code, answer = self._call(
            self._dialog.inputbox,
            text,
            3,
            init=printable(initial),
            title=title,
            cancel_label="Back",
        )
        return answer.strip() if code == "ok" else None

    def password(self, title: str, text: str) -> str | None:
        """As `Screen.password`."""
        code, answer = self._call(
            self._dialog.passwordbox,
            text,
            3,
            insecure=True,
            title=title,
            cancel_label="Back",
        )
        return answer if code == "ok" else None

    def show(self, title: str, text: str) -> None:
        """As `Screen.show`."""
        self._call(self._dialog.msgbox, text, title=title)

    def notice(self, title: str, text: str) -> None:
        """As `Screen.notice`."""
        self._call(self._dialog.infobox, text, -2, title=title)

    def gauge(self, title: str) -> AbstractContextManager[Gauge]:
        """As `Screen.gauge`."""
        return bar(title)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """As `Screen.aside`."""
        subprocess.run(["clear"], check=False)
        yield

    def _call(self, box: Any, text: str, more: int = 0, **options: object) -> tuple[str, str]:
        """How the box was left ("ok", "cancel", "esc"), and what was entered."""
        try:
            answer = box(
                _wrapped(text),
                **{"height": _height(text, more), "width": WIDTH, **options},
            )
        except self._library.DialogTerminatedBySignal as error:
            if str(error).rstrip(".").endswith(f"signal {signal.SIGINT.value}"):
                return "esc", ""
            raise TerminalGoneError("the terminal is gone") from None
        except self._library.error as error:
            raise TerminalGoneError(f"the screen cannot be drawn: {error}") from None
        return answer if isinstance(answer, tuple) else (answer, "")


def _go_on(number: int, frame: FrameType | None) -> None:
    """Nothing: unlike an ignored signal, one with a handler still ends the programs started."""


def _wrapped(text: str) -> str:
    """Harmless lines of at most the box's width, broken between words, indents kept."""
    lines = []
    for line in text.split("\n"):
        line = printable(line).rstrip()
        indent = " " * (len(line) - len(line.lstrip()))
        while len(line) > _TEXT:
            cut = line.rfind(" ", len(indent) + 1, _TEXT + 1)
            cut = cut if cut > 0 else _TEXT
            lines.append(line[:cut].rstrip())
            line = indent + line[cut:].lstrip()
        lines.append(line)
    return "\n".join(lines)


def _height(text: str, more: int = 0) -> int:
    """Lines of a box around `text`."""
    return min(_MAX_HEIGHT, _wrapped(text).count("\n") + 5 + more)
