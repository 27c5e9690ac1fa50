"""A program on a terminal of 80 x 24, driven key by key, whose screen is read as text."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import pexpect
import pyte

from tests.command import ROOT

ESCAPE = "\x1b"
ENTER = "\r"
DOWN = "\x1b[B"
UP = "\x1b[A"
TAB = "\t"
CONTROL_C = "\x03"
SECONDS = 60
"""Until what is waited for must have come."""


class Console:
    """A program in a pseudo terminal."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = pexpect.spawn(
            command[0],
            list(command[1:]),
            dimensions=(24, 80),
            cwd=str(ROOT),
            env={**os.environ, "TERM": "vt220", "LC_ALL": "C.UTF-8"},
            timeout=SECONDS,
        )
        self._process.delaybeforesend = None
        self._screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self._screen)
        self.keys = 0
        """Key presses sent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.text(), file=sys.stderr)
        if not self._process.closed:
            self._process.close(force=True)

    def text(self) -> str:
        """The screen as it is."""
        return "\n".join(line.rstrip() for line in self._screen.display).strip("\n")

    def wait_for(self, *words: str) -> str:
        """The screen, once it shows all `words` (wherever they are broken) and has come to rest."""
        end = time.monotonic() + SECONDS
        while not self._shows(words) or self._more(0.15):
            self._more(0.1)
            if time.monotonic() > end:
                raise AssertionError(f"{words} did not appear:\n{self.text()}")
        return self.text()

    def press(self, *keys: str) -> None:
        """Send keys, one after the other."""
        for key in keys:
            self._process.send(key)
            self.keys += 1

    def type(self, text: str) -> None:
        """Send text and Enter, which do not count as key presses."""
        self._process.send(text + ENTER)

    def hang_up(self) -> None:
        """Close the terminal's other end, as a pulled cable does; the kernel tells the program."""
        process = self._process.ptyproc
        process.fileobj.close()
        process.closed = self._process.closed = True
        process.fd = self._process.child_fd = -1

    def ends(self) -> int:
        """The exit status, once the program has ended."""
        end = time.monotonic() + SECONDS
        while self._process.ptyproc.isalive():
            if self._process.closed:
                time.sleep(0.1)
            else:
                self._more(0.1)
            assert time.monotonic() < end, self.text()
        status = self._process.ptyproc.exitstatus
        assert status is not None, self._process.ptyproc.signalstatus
        return int(status)

    def _shows(self, words: Sequence[str]) -> bool:
        flat = " ".join(self.text().replace("|", " ").split())
        return all(" ".join(word.split()) in flat for word in words)

    def _more(self, seconds: float) -> bool:
        """Whether something came within that time."""
        try:
            self._stream.feed(self._process.read_nonblocking(65536, seconds))
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        return True
