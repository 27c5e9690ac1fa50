"""Telling systemd what goes on (sd_notify(3)), and keeping the machine awake while it does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imager.wording import format_size

_LOGIND = Path("/run/systemd/seats")
_EVERY = 5.0
"""Seconds between two notes of progress."""


class StatusNotifier:
    """A progress callback that shows itself in `systemctl status`; does nothing without systemd."""

    def __init__(self, address: str | None = None) -> None:
        """Notify the socket at `address`, by default the one that systemd has given us."""
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._phase = ""
        self._sent = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """As `imager.pipeline.Progress`."""
        now = time.monotonic()
        if not self._address or (phase == self._phase and now - self._sent < _EVERY):
            return
        self._phase, self._sent = phase, now
        part = f": {100 * done // total}% of {format_size(total)}" if total else ""
        self.say(f"{phase}{part}")

    def say(self, text: str) -> None:
        """Show a line as the unit's status; that nobody listens is no failure."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        line = text.replace("\n", " ")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(f"STATUS={line}".encode(), address)
        except OSError:
            pass


@contextmanager
def awake(why: str) -> Iterator[None]:
    """Hold off sleep and shutdown, where logind is there to be asked."""
    program = shutil.which("systemd-inhibit")
    if program is None or not _LOGIND.is_dir():
        yield
        return
    # It holds its lock for as long as the command runs: cat, until its input ends, also if we die.
    holder = subprocess.Popen(
        [program, "--what=sleep:shutdown", "--who=imager", f"--why={why}", "--mode=block", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        if holder.stdin is not None:
            holder.stdin.close()
        holder.wait()
