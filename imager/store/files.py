"""Small files in a store, written so that a crash leaves the old or the new content."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from imager.image.sink import sync_directory


def remove_leftovers(directory: Path, before: float) -> None:
    """Delete what crashes left of such files; `before` this time, seconds since the epoch."""
    for path in directory.glob(".*.new"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= before:
                path.unlink()


def write_durably(path: Path, text: str) -> None:
    """Replace the content of `path`; OSError where that is impossible."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)
