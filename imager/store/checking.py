"""Checking images by turns, and keeping what was found."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path

from imager.check import CheckResult, check
from imager.errors import ImagerError
from imager.image.reader import ImageReader
from imager.pipeline import Progress, no_progress
from imager.store.catalog import StoredImage
from imager.store.folder import MARKER
from imager.store.sidecar import record_check, record_verdict


def due_for_check(
    images: Sequence[StoredImage],
    now: datetime.datetime,
    within: datetime.timedelta,
    interval: datetime.timedelta,
) -> tuple[StoredImage, ...]:
    """Which images to check today, so that each is within the time and no day has many to do.

    That is, those that would be too late at the next run, `interval` from now; and of those that
    have waited for half the time, as many of the longest waiting as an even share of the work is.
    """
    waiting = sorted(images, key=_last_proof)
    share = math.ceil(len(waiting) * interval / within) if within else len(waiting)
    return tuple(
        image
        for place, image in enumerate(waiting)
        if (waited := now - _last_proof(image)) + interval > within
        or (place < share and waited >= within / 2)
    )


def check_and_record(
    image: StoredImage, now: datetime.datetime, progress: Progress = no_progress
) -> tuple[str, str]:
    """Check an image in full and keep what was found; the verdict, and the first problem if any."""
    path = image.files.opened_as
    try:
        result = check(path, progress=progress)
    except ImagerError as error:
        record_verdict(image.files.path, image.uuid, now, "failed", [], str(error))
        return "failed", str(error)
    record_check(image.files.path, image.uuid, result, now)
    return result.verdict, result.problems[0].message if result.problems else ""


def note_check(result: CheckResult, now: datetime.datetime) -> None:
    """Keep what a full check found, if its image lies in a store; OSError where that fails."""
    if result.quick or result.differing:
        return
    with ImageReader(result.path) as image:
        path, name = image.file.path.absolute(), image.uuid_text
    if _is_in_store(path):
        record_check(path, name, result, now)


def _is_in_store(path: Path) -> bool:
    return len(path.parents) > 2 and (path.parents[2] / MARKER).is_file()


def _last_proof(image: StoredImage) -> datetime.datetime:
    return image.check.when if image.check is not None else image.created
