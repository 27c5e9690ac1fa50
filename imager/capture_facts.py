"""How a capture went, as the manifest says it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from imager.description import now
from imager.extents import Extents
from imager.image.head import Json
from imager.image.writer import WrittenImage
from imager.layout.analyse import Analysis

if TYPE_CHECKING:
    from imager.live.disk import Instant  # the program starts faster without it


@dataclass(frozen=True)
class Filled:
    """A finished image, and what became of it."""

    analysis: Analysis
    written: WrittenImage
    uuid: bytes
    zero: int
    """Disk bytes in chunks that are all zero."""
    inherited: int
    """Disk bytes in chunks that are the parent's."""
    unreadable: Extents
    resumed: int = 0
    """Disk bytes taken over from an interrupted capture."""
    instant: Instant | None = None
    """When and how a disk in use was caught."""
    revised: bool = False
    """Whether some of its chunks replace others."""


REVISED_FACTS = ("plain_zstd", "segments")
"""Of a revised image's manifest alone; see docs/format.md."""
MAX_UNREADABLE_LISTED = 10_000
"""Ranges in the manifest; the segments' maps have them all."""


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
