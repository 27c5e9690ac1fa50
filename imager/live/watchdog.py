"""Thaws frozen file systems when the capture dies, hangs or takes too long.

It is a process of its own, so that a SIGKILL of the capture leaves it alive. Whatever it needs is
there before anything is frozen: its memory is locked, its descriptors are open, and what it then
does (wait, ioctl) reads and writes no file. The signals that end a program do not end it.

    capture ── "freezing 2" ──► watchdog     armed: a limit of time runs from the first of these
            ── "thawed 2" ────►
            ── end of file ───►              the capture is gone: thaw what is still frozen

When the time is up it goes on thawing until it hears that all is thawed: a freeze that a stalled disk
holds up may be complete only later.

Run as a program: `python -I -S watchdog.py SOCKET SECONDS FD...`; it imports nothing of imager.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import sys
import time

FREEZING, THAWED, READY, EXPIRED = b"F", b"T", b"R", b"X"
_FITHAW = 0xC0045878  # linux/fs.h
_MCL_CURRENT_AND_FUTURE = 3  # sys/mman.h
_NUMBER = 4
"""Bytes of a message's descriptor number."""
_AGAIN = 0.1
"""Seconds until what should not be frozen any more is thawed again."""


def message(kind: bytes, number: int) -> bytes:
    """What the capture sends: a kind, and the position of a file system in the list."""
    return kind + number.to_bytes(_NUMBER, "little")


def main(words: list[str]) -> None:
    """Watch until the other end of the socket closes."""
    channel = socket.socket(fileno=int(words[0]))
    limit = float(words[1])
    descriptors = [int(word) for word in words[2:]]
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(ending, signal.SIG_IGN)
    _protect()
    frozen: list[int] = []
    deadline: float | None = None
    expired = False
    channel.send(READY)
    while True:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        if select.select([channel], [], [], patience)[0]:
            try:
                data = channel.recv(64)
            except OSError:
                data = b""
            if not data:
                break
            number = int.from_bytes(data[1:], "little")
            if data[:1] == FREEZING:
                frozen.append(number)
                if deadline is None:
                    deadline = time.monotonic() + limit
            elif number in frozen:
                frozen.remove(number)
                if not frozen:
                    deadline = None
        else:
            _thaw(descriptors, frozen)
            deadline = time.monotonic() + _AGAIN
            if not expired:
                expired = True
                # If the capture hangs, or is gone, nobody hears it: thawing was all that mattered.
                with contextlib.suppress(OSError):
                    channel.send(EXPIRED, socket.MSG_DONTWAIT)
    _thaw(descriptors, frozen)


def _thaw(descriptors: list[int], frozen: list[int]) -> None:
    """The last one first; whether each was really frozen does not matter."""
    for number in reversed(frozen):
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptors[number], _FITHAW, 0)


def _protect() -> None:
    """Never be paged out, nor chosen when memory runs short; what is refused is not needed."""
    ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)
    with contextlib.suppress(OSError):
        file = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(file, b"-1000")
        os.close(file)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    finally:
        os._exit(0)
