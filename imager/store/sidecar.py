"""What is known of an image beyond the image itself: when it was checked, and whether it is pinned.

A sidecar `X.img.json` that is lost, damaged or of another image only costs a check. A pin is a
file of its own, `X.img.pinned`, because losing it could cost the image.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from imager.check import CheckResult
from imager.errors import ImageError
from imager.extents import Extents
from imager.image.head import get, load
from imager.store.files import write_durably

_MAX_SIDECAR = 1 << 22
_MAX_RANGES = 10_000
_VERDICTS = ("ok", "degraded", "failed")


@dataclass(frozen=True)
class CheckRecord:
    """A full check that was made of an image."""

    uuid: str
    """Of the image that was checked."""
    when: datetime.datetime
    verdict: str
    lost: Extents
    """Disk ranges that can no longer be read from it."""
    problem: str
    """The first problem, for a person; empty if there is none."""

    @property
    def passed(self) -> bool:
        """Whether all that the image should hold could be read."""
        return self.verdict != "failed"


def record_check(image: Path, uuid: str, result: CheckResult, when: datetime.datetime) -> None:
    """Keep what a full check has found; OSError where that is impossible."""
    lost = result.lost
    ranges = [list(pair) for pair in islice(lost, _MAX_RANGES)]
    if len(lost) > _MAX_RANGES:
        ranges[-1][1] = lost.end
    problem = result.problems[0].message if result.problems else ""
    record_verdict(image, uuid, when, result.verdict, ranges, problem)


def record_verdict(
    image: Path,
    uuid: str,
    when: datetime.datetime,
    verdict: str,
    lost: list[list[int]],
    problem: str,
) -> None:
    """As `record_check`, for an image that cannot even be opened, too."""
    facts = {
        "uuid": uuid,
        "checked": when.isoformat(timespec="seconds"),
        "verdict": verdict,
        "lost": lost,
        "problem": problem,
    }
    write_durably(_sidecar(image), json.dumps(facts, indent=1) + "\n")


def last_check(image: Path, uuid: str) -> CheckRecord | None:
    """The last full check of the image with this UUID; None if none is on record."""
    try:
        with _sidecar(image).open("rb") as file:
            facts = load(file.read(_MAX_SIDECAR + 1), "sidecar")
        when = datetime.datetime.fromisoformat(get(facts, "checked", str))
        record = CheckRecord(
            get(facts, "uuid", str),
            when,
            get(facts, "verdict", str),
            Extents.of(_pairs(get(facts, "lost", list))),
            get(facts, "problem", str),
        )
    except (OSError, ImageError, ValueError):
        return None
    known = record.uuid == uuid and record.verdict in _VERDICTS and when.tzinfo is not None
    return record if known else None


def is_pinned(image: Path) -> bool:
    """Whether the image is kept whatever the rules say."""
    return _pin(image).exists()


def pin(image: Path, note: str = "") -> None:
    """Keep the image whatever the rules say."""
    write_durably(_pin(image), note + "\n" if note else "")


def unpin(image: Path) -> None:
    """Leave the image to the rules again."""
    _pin(image).unlink(missing_ok=True)


def remove_sidecars(image: Path) -> None:
    """Delete what lies beside an image that is gone."""
    for path in (_sidecar(image), _pin(image)):
        with contextlib.suppress(OSError):
            path.unlink()


def _sidecar(image: Path) -> Path:
    return image.with_name(f"{image.name}.json")


def _pin(image: Path) -> Path:
    return image.with_name(f"{image.name}.pinned")


def _pairs(values: list[object]) -> list[tuple[int, int]]:
    pairs = []
    for value in values:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError("not a range")
        start, end = value
        if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
            raise ValueError("not a range")
        pairs.append((start, end))
    return pairs
