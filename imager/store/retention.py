"""Which images are kept: a pure function of what there is, the rules, and the time.

The rules are independent of each other, and what any of them keeps is kept. Each divides time into
spans (hours, days, ISO weeks, ...) as the clock on the imaged machine's wall showed them, and keeps
one image in each of the latest N spans that have any: the best, and of equally good ones the
newest. A rule that finds fewer spans than it may keep also keeps the oldest image.

Whatever the rules say, these stay: images dated in the future, pinned ones, the newest that passed
a check, the newest that is good; and never do all of them go.
"""

from __future__ import annotations

import calendar
import datetime
import enum
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby

UNLIMITED = -1
"""As a rule's number: as many as there are."""


class Quality(enum.IntEnum):
    """How good an image is, as far as known; more is better."""

    DAMAGED = 0
    """A check has found something lost."""
    DEGRADED = 1
    """The capture could not read all of the disk."""
    GOOD = 2


@dataclass(frozen=True)
class Candidate:
    """An image as the rules see it."""

    name: str
    created: datetime.datetime
    """In the zone that the image recorded."""
    quality: Quality = Quality.GOOD
    proven: bool = False
    """Whether it passed its last full check."""
    pinned: bool = False


@dataclass(frozen=True)
class Span:
    """A length of time in calendar units, such as "1y2m3d4h"."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    def before(self, moment: datetime.datetime) -> datetime.datetime:
        """The moment this long before; a day that its month does not have is the month's last."""
        months = moment.year * 12 + moment.month - 1 - self.years * 12 - self.months
        year, month = divmod(months, 12)
        if year < datetime.MINYEAR + 1:
            return datetime.datetime.min.replace(tzinfo=moment.tzinfo)
        day = min(moment.day, calendar.monthrange(year, month + 1)[1])
        there = moment.replace(year=year, month=month + 1, day=day)
        length = datetime.timedelta(days=self.days, hours=self.hours)
        if there.replace(tzinfo=None) - datetime.datetime.min < length:
            return datetime.datetime.min.replace(tzinfo=moment.tzinfo)
        return there - length

    def __str__(self) -> str:
        parts = ((getattr(self, field.name), field.name[0]) for field in fields(self))
        return "".join(f"{number}{unit}" for number, unit in parts if number) or "0h"


_SPAN = re.compile(
    r"(?:(\d{1,4})y)?(?:(\d{1,5})m)?(?:(\d{1,6})d)?(?:(\d{1,7})h)?", re.IGNORECASE | re.ASCII
)


def parse_span(text: str) -> Span:
    """Read "14d" or "1y6m"; ValueError, whose message quotes `text`, where it is none."""
    match = _SPAN.fullmatch(text)
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is not a length of time such as 14d, 36h or 1y6m")
    return Span(*(int(number or 0) for number in match.groups()))


@dataclass(frozen=True)
class Rules:
    """How many images are kept of each kind; None: the rule is absent."""

    last: int | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None
    within: Span | None = None
    """All that are at most so much older than the newest."""

    @property
    def absent(self) -> bool:
        """Whether no rule keeps anything: then nothing may be pruned by them."""
        return not any(getattr(self, field.name) for field in fields(self))


DEFAULT_RULES = Rules(daily=7, weekly=4, monthly=6)
"""Of schedules that name none."""


@dataclass(frozen=True)
class Decision:
    """An image, and why it is kept; without a reason it goes."""

    image: Candidate
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether it stays."""
        return bool(self.reasons)


def decide(
    images: Sequence[Candidate], rules: Rules, now: datetime.datetime
) -> tuple[Decision, ...]:
    """What becomes of the images of one disk, newest first."""
    ordered = sorted(
        images, key=lambda image: (image.created, len(image.name), image.name), reverse=True
    )
    past = [image for image in ordered if image.created <= now]
    reasons: dict[str, list[str]] = {image.name: [] for image in ordered}

    def keep(image: Candidate, reason: str) -> None:
        reasons[image.name].append(reason)

    for image in ordered:
        if image.created > now:
            keep(image, "dated in the future")
        if image.pinned:
            keep(image, "pinned")
    for image in _last(past, rules.last or 0):
        keep(image, "last")
    for name, span in _SPANS.items():
        for image, reason in _of_spans(past, getattr(rules, name) or 0, span):
            keep(image, f"{name}{reason}")
    if rules.within is not None and past:
        limit = rules.within.before(past[0].created)
        for image in past:
            if image.created > limit:
                keep(image, f"within {rules.within}")
    for image, reason in _never_given_up(past):
        keep(image, reason)
    return tuple(Decision(image, tuple(reasons[image.name])) for image in ordered)


def _hour(moment: datetime.datetime) -> Hashable:
    return moment.year, moment.month, moment.day, moment.hour


def _day(moment: datetime.datetime) -> Hashable:
    return moment.year, moment.month, moment.day


def _week(moment: datetime.datetime) -> Hashable:
    return moment.isocalendar()[:2]


def _month(moment: datetime.datetime) -> Hashable:
    return moment.year, moment.month


def _year(moment: datetime.datetime) -> Hashable:
    return moment.year


_SPANS: dict[str, Callable[[datetime.datetime], Hashable]] = {
    "hourly": _hour,
    "daily": _day,
    "weekly": _week,
    "monthly": _month,
    "yearly": _year,
}


def _last(past: Sequence[Candidate], count: int) -> Sequence[Candidate]:
    """The newest `count`; damaged ones only where there are no others."""
    intact = [image for image in past if image.quality > Quality.DAMAGED] or past
    return intact if count == UNLIMITED else intact[:count]


def _of_spans(
    past: Sequence[Candidate], count: int, span: Callable[[datetime.datetime], Hashable]
) -> list[tuple[Candidate, str]]:
    """The best of each of the latest `count` spans, and the oldest image if fewer were found."""
    groups = [list(group) for _, group in groupby(past, lambda image: span(image.created))]
    wanted = groups if count == UNLIMITED else groups[:count]
    found = [(_best(group), "") for group in wanted]
    if count and past and (count == UNLIMITED or len(groups) < count):
        oldest = _best(past, oldest=True)
        if oldest not in (image for image, _ in found):
            found.append((oldest, " (oldest)"))
    return found


def _best(images: Sequence[Candidate], oldest: bool = False) -> Candidate:
    """Of those with the best quality the newest, or the oldest; `images` are newest first."""
    best = max(image.quality for image in images)
    equals = [image for image in images if image.quality == best]
    return equals[-1] if oldest else equals[0]


def _never_given_up(past: Sequence[Candidate]) -> list[tuple[Candidate, str]]:
    proven = [i for i in past if i.proven and i.quality > Quality.DAMAGED]
    found = [(_best(proven), "newest that passed a check")] if proven else []
    if past:
        best = _best(past)
        found.append(
            (best, "newest good" if best.quality == Quality.GOOD else "newest of the best")
        )
    return found
