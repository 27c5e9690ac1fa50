"""Checking images by turns, and keeping what was found."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from imager.check import CheckResult, check
from imager.errors import ImagerError
from imager.image.reader import ImageReader
from imager.pipeline import Progress, no_progress
from imager.proved import ProvedChunks
from imager.store.catalog import DiskFolder, StoredImage
from imager.store.folder import MARKER
from imager.store.sidecar import record_check, record_verdict

Family = Sequence[StoredImage]
"""Images that build upon the same full one: to check them all reads hardly more than one."""


def families(folder: DiskFolder, images: Sequence[StoredImage]) -> tuple[Family, ...]:
    """Some of a folder's images, sorted by what they build upon."""
    by_uuid = {image.uuid: image for image in folder.images}
    found: dict[str, list[StoredImage]] = {}
    for image in images:
        root, seen = image.uuid, {image.uuid}
        while root in by_uuid and by_uuid[root].parents:
            root = by_uuid[root].parents[0]
            if root in seen:
                break  # in a circle, which no capture makes
            seen.add(root)
        found.setdefault(root, []).append(image)
    return tuple(found.values())


class Proof(Protocol):
    """What is known of a check."""

    @property
    def when(self) -> datetime.datetime:
        """When it was made."""


class Dated(Protocol):
    """What the turn of an image depends on."""

    @property
    def created(self) -> datetime.datetime:
        """When it was captured."""

    @property
    def check(self) -> Proof | None:
        """Its last check."""


_Image = TypeVar("_Image", bound=Dated)


def due_for_check(
    groups: Sequence[Sequence[_Image]],
    now: datetime.datetime,
    within: datetime.timedelta,
    interval: datetime.timedelta,
) -> tuple[list[_Image], ...]:
    """Which families to check today, so that each image is within the time and no day has many to do.

    That is, those that would be too late at the next run, `interval` from now; and of those that
    have waited for half the time, as many of the longest waiting as an even share of the work is.
    What was checked less than half the time ago is left out: a run was interrupted then.
    """
    waiting = sorted(groups, key=lambda family: min(map(_last_proof, family)))
    share = math.ceil(len(waiting) * interval / within) if within else len(waiting)

    def is_due(image: _Image, in_turn: bool) -> bool:
        waited = now - _last_proof(image)
        return waited + interval > within or (in_turn and waited >= within / 2)

    return tuple(
        [each for each in family if each.check is None or is_due(each, True)]
        for place, family in enumerate(waiting)
        if any(is_due(image, place < share) for image in family)
    )


def check_family(
    family: Family, clock: Callable[[], datetime.datetime], progress: Progress = no_progress
) -> Iterator[tuple[StoredImage, str, str]]:
    """Check some images that share what they are made of; each with verdict and first problem.

    What an earlier one has proved is not read again for a later one.
    """
    proved = ProvedChunks()
    for image in family:
        yield image, *check_and_record(image, clock(), progress, proved)


def check_and_record(
    image: StoredImage,
    now: datetime.datetime,
    progress: Progress = no_progress,
    proved: ProvedChunks | None = None,
) -> tuple[str, str]:
    """Check an image in full and keep what was found; the verdict, and the first problem if any."""
    path = image.files.opened_as
    try:
        result = check(path, progress=progress, proved=proved)
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


def _last_proof(image: Dated) -> datetime.datetime:
    return image.check.when if image.check is not None else image.created
