"""The first 512 bytes of an image: what a person without this program reads, or the guard.

A full image opens with one skippable frame of text, the commands that restore it included. What
plain `zstd` cannot restore (unfinished, not a whole disk, or incremental) opens with an empty zstd frame that
names a private dictionary, so that `zstd` stops there; text follows. Both take one sector, so that
one sector write turns the one into the other.
"""

from __future__ import annotations

from imager.image.format import (
    INCOMPATIBLE_INCREMENTAL,
    INCOMPATIBLE_PARTIAL,
    OPENING_SIZE,
    SKIPPABLE,
    SKIPPABLE_TEXT,
)
from imager.image.frames import guard_frame, skippable
from imager.image.head import Head

UNFINISHED = "UNFINISHED: its capture is still running, or was interrupted"
PARTIAL = "PARTIAL: some partitions of the disk were left out on request"
INCREMENTAL = "INCREMENTAL: it holds only what differs from its parent image"


def final_opening(head: Head) -> bytes:
    """The opening of the complete image with this head."""
    if head.incompatible & INCOMPATIBLE_INCREMENTAL:
        return guard_opening(INCREMENTAL)
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
        f"\nimager disk image 1: a zstd stream of a whole disk of {disk_size} bytes.\n"
        f"To restore it without imager ({where};\nall on /dev/sdX is overwritten):\n{commands}",
    )


def guard_opening(why: str) -> bytes:
    """The opening of an image that plain `zstd` must refuse, and `why`."""
    return _fill(
        guard_frame(),
        f"\nimager disk image 1, {why}.\n"
        "zstd alone cannot restore it and stops here (dictionary mismatch).\n"
        "Use: imager info, imager restore.\n",
    )


def is_guarded(opening: bytes) -> bool:
    """Whether these first bytes of an image are a guard."""
    return opening.startswith(guard_frame())


def _fill(before: bytes, text: str) -> bytes:
    room = OPENING_SIZE - len(before) - SKIPPABLE.size
    return before + skippable(SKIPPABLE_TEXT, text.encode().ljust(room - 1, b" ") + b"\n")
