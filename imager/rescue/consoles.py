"""Saying something on every console at once, to whoever may be looking."""

from __future__ import annotations

import contextlib
import os
import select
import termios
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from imager.rescue.kernel_line import Console
from imager.wording import printable

ACTIVE = Path("/sys/class/tty/console/active")
_PATIENCE = 2.0
"""Seconds that a console may keep others waiting: a serial line may have nobody at its end."""


def console_paths(more: Console | None, active: Path = ACTIVE) -> tuple[Path, ...]:
    """The kernel's consoles, and the one that the kernel line names beside."""
    try:
        names = active.read_text().split()
    except OSError:
        names = []
    if more is not None:
        names.append(more.name)
    return tuple(Path("/dev") / name for name in dict.fromkeys(names))


class Consoles:
    """Open consoles; one that fails or is stuck is passed over."""

    def __init__(self, paths: Iterable[Path], more: Console | None = None) -> None:
        """Open `paths`, and set the speed of that which is `more`."""
        self._fds: list[int] = []
        for path in paths:
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(path, flags)
                self._fds.append(fd)
                if more is not None and more.speed is not None and path.name == more.name:
                    _set_speed(fd, more.speed)

    def say(self, *lines: str) -> None:
        """Write each of `lines` on all consoles."""
        for line in lines:
            data = f"{printable(line)}\r\n".encode()
            for fd in self._fds:
                with contextlib.suppress(OSError):
                    _write(fd, data)

    def close(self) -> None:
        """Close all."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _write(fd: int, data: bytes) -> None:
    """As much of `data` as the console takes in time."""
    while data and select.select([], [fd], [], _PATIENCE)[1]:
        data = data[os.write(fd, data) :]


def _set_speed(fd: int, baud: int) -> None:
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        return
    with contextlib.suppress(termios.error):
        attributes = termios.tcgetattr(fd)
        attributes[4] = attributes[5] = speed
        termios.tcsetattr(fd, termios.TCSADRAIN, attributes)
