"""One work at a time: several consoles run the same program on the same disks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imager.errors import RefusedError
from imager.wording import printable

_MAX_WORDS = 200


@contextmanager
def working(path: Path, words: str) -> Iterator[None]:
    """Hold the lock at `path` while working; `words` tell others who does what.

    Raises RefusedError, with the words of who has it, at once. The kernel lets the lock go with
    the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = printable(os.pread(fd, _MAX_WORDS, 0).decode("utf-8", "replace"))
            raise RefusedError(
                f"another console is at work ({held or 'it does not say at what'}): "
                "wait until it is done, or go on there"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, words.encode()[:_MAX_WORDS], 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def console() -> str:
    """The terminal of this process, for a person: "tty1"."""
    try:
        return os.path.basename(os.ttyname(0))
    except OSError:
        return "a program without a terminal"
