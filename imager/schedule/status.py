"""The light for each machine's disk: green, yellow or red, and a word that says why."""

from __future__ import annotations

import datetime
import enum
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imager.errors import ImagerError
from imager.schedule import calendar
from imager.schedule.job import Job
from imager.schedule.run import interval_of
from imager.schedule.state import LastRun, read_last_run
from imager.store.catalog import StoredImage, read_store
from imager.store.folder import Store, open_store
from imager.store.retention import Quality
from imager.wording import printable

_LATE = 1.5
"""Intervals after which the newest image is late: yellow..."""
_OVERDUE = 3.0
"""...and after which it is overdue: red."""
_NEARLY_FULL = datetime.timedelta(days=14)
_GROWTH_IMAGES = 10
"""How many of the newest images tell how fast a store grows."""


class Light(enum.Enum):
    """How a machine's backups are."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True)
class DiskFacts:
    """What is known of one disk's backups, as far as the light depends on it."""

    newest: StoredImage | None
    newest_good: StoredImage | None
    damaged: int
    """How many of its images a check found damaged."""
    interval: datetime.timedelta | None
    """The longest time between two runs; None where no schedule is known."""
    check_within: datetime.timedelta | None
    oldest_proof: datetime.datetime | None
    """When the image that has waited longest was last checked, or captured."""
    last_run: LastRun | None
    store_absent: bool
    full_in: datetime.timedelta | None
    """When the store will be full, at the speed at which it grew; None: not in sight."""


@dataclass(frozen=True)
class DiskStatus:
    """One line of `imager status`."""

    light: Light
    word: str
    host: str
    disk: str
    store: Path
    schedule: str | None
    last_good: datetime.datetime | None
    interval: datetime.timedelta | None
    next_run: datetime.datetime | None
    images: int
    last_run: LastRun | None


@dataclass(frozen=True)
class StoreStatus:
    """A store, and how long it will do."""

    path: Path
    absent: str
    """Why it cannot be looked at; empty if it can."""
    free: int
    size: int
    full_in: datetime.timedelta | None


def judge(facts: DiskFacts, now: datetime.datetime) -> tuple[Light, str]:
    """The light and the word; the first thing that is wrong, the worst first."""
    age = _age(facts, now)
    overdue = age is not None and facts.interval is not None and age > _OVERDUE * facts.interval
    late = age is not None and facts.interval is not None and age > _LATE * facts.interval
    failed = facts.last_run is not None and facts.last_run.outcome == "failed"
    known = not facts.store_absent
    red = (
        (known and facts.newest is None and facts.last_run is not None, "no image"),
        (known and facts.newest is not None and facts.newest_good is None, "no good image"),
        (facts.newest is not None and facts.newest.quality is Quality.DAMAGED, "damaged"),
        (overdue, "overdue"),
        (failed, "failed"),
    )
    for applies, word in red:
        if applies:
            return Light.RED, word
    unproven = (
        facts.check_within is not None
        and facts.oldest_proof is not None
        and now - facts.oldest_proof > facts.check_within * _LATE
    )
    yellow = (
        (facts.store_absent, "store absent"),
        (facts.newest is None, "no image yet"),
        (facts.damaged > 0, "an older image is damaged"),
        (late, "late"),
        (facts.newest is not None and facts.newest.quality is Quality.DEGRADED, "degraded"),
        (unproven, "unchecked"),
        (facts.full_in is not None and facts.full_in < _NEARLY_FULL, "nearly full"),
    )
    for applies, word in yellow:
        if applies:
            return Light.YELLOW, word
    return Light.GREEN, "ok"


def _age(facts: DiskFacts, now: datetime.datetime) -> datetime.timedelta | None:
    """How old the newest good image is, even if the store that holds it is not there."""
    if facts.newest_good is not None:
        return now - facts.newest_good.created
    if facts.store_absent and facts.last_run is not None and facts.last_run.last_success:
        return now - facts.last_run.last_success
    return None


def survey(
    stores: Sequence[Path], jobs: Sequence[Job], state: Path, now: datetime.datetime
) -> tuple[tuple[StoreStatus, ...], tuple[DiskStatus, ...]]:
    """All disks in the stores, and all schedules, with their lights."""
    found_stores: list[StoreStatus] = []
    disks: list[DiskStatus] = []
    here = printable(platform.node())
    for path in dict.fromkeys((*stores, *(job.store for job in jobs))):
        jobs_here = {(here, job.disk): job for job in jobs if job.store == path}
        try:
            store = open_store(path)
            images = _by_disk(store)
            free, size = store.free()
            full_in = time_until_full(tuple(images.values()), free)
            status = StoreStatus(path, "", free, size, full_in)
        except (ImagerError, OSError) as error:
            images = {}
            status = StoreStatus(path, str(error), 0, 0, None)
        found_stores.append(status)
        for (host, disk), of_disk in images.items():
            job = jobs_here.pop((host, disk), None)
            disks.append(_disk_status(host, disk, of_disk, job, status, state, now))
        for job in jobs_here.values():
            disks.append(_disk_status(here, job.disk, (), job, status, state, now))
    return tuple(found_stores), tuple(disks)


def time_until_full(disks: Sequence[Sequence[StoredImage]], free: int) -> datetime.timedelta | None:
    """How long `free` bytes last if images keep coming as the newest ones of each disk did.

    What prunes give back is not counted: it may be sooner than needed, never later.
    """
    a_day = 0.0
    for images in disks:
        newest = images[:_GROWTH_IMAGES]
        span = newest[0].created - newest[-1].created if newest else datetime.timedelta()
        if span > datetime.timedelta(hours=1):
            added = sum(image.files.allocated() for image in newest[:-1])
            a_day += added / (span / datetime.timedelta(days=1))
    if a_day * 36500 <= free:
        return None
    return datetime.timedelta(days=free / a_day)


def _by_disk(store: Store) -> dict[tuple[str, str], tuple[StoredImage, ...]]:
    """The complete images of each machine's disk, newest first."""
    found: dict[tuple[str, str], list[StoredImage]] = {}
    for folder in read_store(store):
        for image in folder.complete:
            found.setdefault((image.host, image.disk), []).append(image)
    return {key: tuple(images) for key, images in found.items()}


def _disk_status(
    host: str,
    disk: str,
    images: Sequence[StoredImage],
    job: Job | None,
    store: StoreStatus,
    state: Path,
    now: datetime.datetime,
) -> DiskStatus:
    good = [image for image in images if image.quality > Quality.DAMAGED]
    proofs = [image.check.when if image.check else image.created for image in images]
    upcoming = _upcoming(job, now) if job else ()
    last_run = read_last_run(state, job.name) if job else None
    facts = DiskFacts(
        newest=images[0] if images else None,
        newest_good=good[0] if good else None,
        damaged=sum(1 for i in images if i.check is not None and not i.check.passed),
        interval=interval_of(job, now) if job else _usual_interval(images),
        check_within=now - job.check_within.before(now) if job and job.check_within else None,
        oldest_proof=min(proofs, default=None),
        last_run=last_run,
        store_absent=bool(store.absent),
        full_in=store.full_in,
    )
    light, word = judge(facts, now)
    last_good = good[0].created if good else None
    if store.absent and last_run is not None:
        last_good = last_run.last_success
    return DiskStatus(
        light=light,
        word=word,
        host=host,
        disk=disk,
        store=store.path,
        schedule=job.name if job else None,
        last_good=last_good,
        interval=facts.interval,
        next_run=upcoming[0] if upcoming else None,
        images=len(images),
        last_run=last_run,
    )


def _upcoming(job: Job, now: datetime.datetime) -> tuple[datetime.datetime, ...]:
    try:
        return calendar.upcoming(job.calendar, now)
    except ImagerError:
        return ()  # it is not systemd that runs it


def _usual_interval(images: Sequence[StoredImage]) -> datetime.timedelta | None:
    """What was the custom so far, where no schedule says it: the longest of the latest gaps."""
    newest = [image.created for image in reversed(images[:_GROWTH_IMAGES])]
    gap = calendar.longest_gap(newest) if len(newest) > 2 else None
    return max(gap, datetime.timedelta(days=1)) if gap else None
