"""Passphrases of encrypted volumes, from a terminal or a file."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from imager.errors import UsageError

_MAX = 8 << 20
"""Bytes of a key file, as for cryptsetup."""


def place_argument(text: str) -> int | None:
    """A partition's number; None for "disk", a disk without partitions."""
    if text == "disk":
        return None
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a partition's number nor the word disk")


def read_passphrases(
    places: Sequence[int | None], key_file: Path | None
) -> dict[int | None, bytes]:
    """The passphrase of each place: what `key_file` holds, to the last byte, or as typed.

    Memory is locked first: neither passphrases nor keys shall reach swap space. UsageError where
    there is no terminal, or the file cannot be read.
    """
    if not places:
        if key_file is not None:
            raise UsageError("--key-file is for --unlock: name the partition that it opens")
        return {}
    from imager.live import abi  # most captures do without

    with contextlib.suppress(OSError):  # not everybody may
        abi.lock_memory()
    if key_file is not None:
        key = _read(key_file)
        return dict.fromkeys(places, key)
    return {place: _ask(place) for place in places}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            key = file.read(_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not key or len(key) > _MAX:
        raise UsageError(f"{path} holds no key: it is empty, or larger than 8 MiB")
    return key


def _ask(place: int | None) -> bytes:
    name = "the disk" if place is None else f"partition {place}"
    import getpass

    try:
        # A fallback that would show what is typed is no way to ask for a passphrase.
        with Path("/dev/tty").open("rb"):
            text = getpass.getpass(f"Passphrase of {name}: ")
    except (OSError, EOFError):
        raise UsageError(
            "--unlock asks for a passphrase on a terminal: else give --key-file"
        ) from None
    if not text:
        raise UsageError("an empty passphrase opens nothing")
    return text.encode("utf-8", "surrogateescape")
