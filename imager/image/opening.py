"""The first 512 bytes of an image: what a person without this program reads, or the guard.

A full image opens with one skippable frame of text, the commands that restore it included. What
plain `zstd` cannot restore (unfinished, not a whole disk, incremental, or revised) opens with an empty zstd
frame that names a private dictionary, so that `zstd` stops there; text follows. Both take one sector,
so that one sector write turns the one into the other.
"""

from __future__ import annotations

import datetime
import re

from imager.image.format import (
    INCOMPATIBLE_INCREMENTAL,
    INCOMPATIBLE_PARTIAL,
    INCOMPATIBLE_REVISED,
    OPENING_SIZE,
    SKIPPABLE,
    SKIPPABLE_TEXT,
)
from imager.image.frames import guard_frame, skippable
from imager.image.head import Head

UNFINISHED = "UNFINISHED: its capture is still running, or was interrupted"
_MARK = "\nimager disk image "
PARTIAL = "PARTIAL: some partitions of the disk were left out on request"
INCREMENTAL = "INCREMENTAL: it holds only what differs from its parent image"
REVISED = (
    "REVISED: chunks of a disk in use were sent again when they had changed.\n"
    "To make an image of it that zstd can restore: imager export IMAGE NEW"
)
_EXPIRED = "EXPIRED on {}: a prune has given it up, and may have removed what no other image needs"
_EXPIRED_TIME = re.compile(re.escape(_EXPIRED).replace(r"\{\}", r"(\S{20,32})").encode())


def final_opening(head: Head) -> bytes:
    """The opening of the complete image with this head."""
    if head.incompatible & INCOMPATIBLE_INCREMENTAL:
        return guard_opening(INCREMENTAL)
    if head.incompatible & INCOMPATIBLE_REVISED:
        return guard_opening(REVISED)
    if head.incompatible & INCOMPATIBLE_PARTIAL:
        return guard_opening(PARTIAL)
    return plain_opening(head.disk_size, head.split)


def plain_opening(disk_size: int, split: bool) -> bytes:
    """The opening of a full image of a disk of `disk_size` bytes."""
    if split:
        parts = "cat X.[0-9]*"
        commands = (
            f"{parts} | zstd -t && [ $({parts} | zstd -dc | wc -c) = {disk_size} ] &&\n"
            f"{parts} | zstd -dc | dd of=/dev/sdX bs=4M iflag=fullblock conv=fsync\n"
        )
        where = "X.0001, X.0002 ... are its parts"
    else:
        commands = (
            f"zstd -t X && [ $(zstd -dc X | wc -c) = {disk_size} ] &&\n"
            "zstd -dc X | dd of=/dev/sdX bs=4M iflag=fullblock conv=fsync\n"
        )
        where = "X is this file"
    return _fill(
        b"",
        f"{_MARK}1: a zstd stream of a whole disk of {disk_size} bytes.\n"
        f"To restore it without imager ({where};\nall on /dev/sdX is overwritten):\n{commands}",
    )


def guard_opening(why: str) -> bytes:
    """The opening of an image that plain `zstd` must refuse, and `why`."""
    return _fill(
        guard_frame(),
        f"{_MARK}1, {why}.\n"
        "zstd alone cannot restore it and stops here (dictionary mismatch).\n"
        "Use: imager info, imager restore.\n",
    )


def expired_opening(when: datetime.datetime) -> bytes:
    """The guard of an image that was given up at this moment."""
    return guard_opening(_EXPIRED.format(when.isoformat(timespec="seconds")))


def expired_since(opening: bytes) -> datetime.datetime | None:
    """When the image with this opening was given up; None if it was not."""
    match = _EXPIRED_TIME.search(opening) if is_guarded(opening) else None
    if match is None:
        return None
    try:
        when = datetime.datetime.fromisoformat(match[1].decode("ascii", "replace"))
    except ValueError:
        return None
    return when if when.tzinfo is not None and opening == expired_opening(when) else None


def is_guarded(opening: bytes) -> bool:
    """Whether these first bytes of an image are a guard."""
    return opening.startswith(guard_frame())


def is_opening(data: bytes) -> bool:
    """Whether a file that begins with these bytes (512, or fewer) says that it is an image."""
    before = guard_frame() if is_guarded(data) else b""
    text = data[len(before) + SKIPPABLE.size :]
    magic = SKIPPABLE_TEXT.to_bytes(4, "little")
    return data.startswith(before + magic) and text.startswith(_MARK.encode())


def _fill(before: bytes, text: str) -> bytes:
    room = OPENING_SIZE - len(before) - SKIPPABLE.size
    return before + skippable(SKIPPABLE_TEXT, text.encode().ljust(room - 1, b" ") + b"\n")
