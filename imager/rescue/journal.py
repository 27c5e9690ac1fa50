"""What was decided and what came of it, line by line, for the person and for who helps him."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from imager.wording import printable

JOB_RESULT = "unattended.txt"
"""How an unattended job ended, beside the journals: for the menu to show."""


def now() -> datetime:
    """The time with its zone."""
    return datetime.now().astimezone()


class Journal:
    """A text file that lines are appended to; never a password among them."""

    def __init__(self, path: Path, clock: Callable[[], datetime] = now) -> None:
        """Append to `path`, whose folder is made if need be."""
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def note(self, *lines: str) -> None:
        """Append `lines`, each with the time; without room for them they are lost, not the work."""
        stamp = self._clock().isoformat(sep=" ", timespec="seconds")
        text = "".join(f"{stamp}  {printable(line)}\n" for line in lines)
        try:
            with self._lock, self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            return

    def text(self) -> str:
        """All of it."""
        try:
            return self.path.read_text("utf-8", "replace")
        except OSError:
            return ""
