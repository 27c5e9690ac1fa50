"""What an image says of its capture, in head and manifest, beside the disk."""

from __future__ import annotations

import datetime
import platform
from itertools import islice
from pathlib import Path

from imager.extents import Extents
from imager.image.head import Json
from imager.live.disk import Instant

MAX_UNREADABLE_LISTED = 10_000
"""Ranges in the manifest; the segments' maps have them all."""


def host_facts() -> dict[str, object]:
    """The machine that captures."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    return {
        "name": platform.node(),
        "system": system or platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "firmware": "uefi" if Path("/sys/firmware/efi").is_dir() else "bios",
    }


def verdict_of(unreadable: Extents) -> str:
    """`ok`, or `degraded` where something could not be read."""
    return "degraded" if unreadable else "ok"


def manifest_facts(
    used: int, zero: int, unreadable: Extents, instant: Instant | None = None
) -> Json:
    """The manifest's facts."""
    caught: Json = {}
    if instant is not None:
        when = datetime.datetime.fromtimestamp(instant.pause.instant).astimezone()
        caught = {
            "instant": when.isoformat(timespec="milliseconds"),
            "pause": round(instant.pause.seconds, 4),
            "read_again": list(instant.rounds),
            "written_meanwhile": instant.written,
        }
    return {
        "verdict": verdict_of(unreadable),
        "finished": now(),
        "used": used,
        "zero": zero,
        "unreadable_bytes": unreadable.total,
        "unreadable": [list(pair) for pair in islice(unreadable, MAX_UNREADABLE_LISTED)],
        **caught,
    }


def now() -> str:
    """ISO 8601 with zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
