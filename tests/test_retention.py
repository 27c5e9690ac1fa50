"""What the rules keep: by example, by property, and over thousands of random histories."""

from __future__ import annotations

import datetime
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.store.retention import (
    DEFAULT_RULES,
    UNLIMITED,
    Candidate,
    Quality,
    Rules,
    Span,
    decide,
    parse_span,
)

UTC = datetime.UTC
EAST = datetime.timezone(datetime.timedelta(hours=9))
NOW = datetime.datetime(2026, 11, 22, 12, tzinfo=UTC)
COUNTED = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
FAR = datetime.datetime(2100, 1, 1, tzinfo=UTC)


def image(created: datetime.datetime, **more: Any) -> Candidate:
    return replace(Candidate(created.isoformat(), created), **more)


def nights(count: int, last: datetime.datetime = NOW) -> list[Candidate]:
    return [image(last - datetime.timedelta(days=day)) for day in range(count)]


def rule(name: str, count: int) -> Rules:
    only: dict[str, Any] = {name: count}
    return replace(Rules(), **only)


def kept(images: list[Candidate], rules: Rules, now: datetime.datetime = NOW) -> list[Candidate]:
    return [decision.image for decision in decide(images, rules, now) if decision.kept]


def reasons(images: list[Candidate], rules: Rules) -> dict[str, tuple[str, ...]]:
    return {each.image.name: each.reasons for each in decide(images, rules, NOW)}


moments = st.datetimes(datetime.datetime(2024, 1, 1), datetime.datetime(2026, 11, 22)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)
candidates = st.builds(
    lambda moment, zone, quality, proven, pinned: Candidate(
        f"{moment:%Y%m%d%H%M%S}", moment.astimezone(zone), quality, proven, pinned
    ),
    moments,
    st.sampled_from((UTC, EAST, datetime.timezone(datetime.timedelta(hours=-5, minutes=-30)))),
    st.sampled_from((Quality.GOOD, Quality.GOOD, Quality.DEGRADED, Quality.DAMAGED)),
    st.booleans(),
    st.sampled_from((False, False, False, True)),
)
histories = st.lists(candidates, max_size=40, unique_by=lambda each: each.name)
counts = st.one_of(st.none(), st.integers(0, 9), st.just(UNLIMITED))
spans = st.builds(
    Span, st.integers(0, 2), st.integers(0, 14), st.integers(0, 40), st.integers(0, 99)
)
rule_sets = st.builds(
    Rules, counts, counts, counts, counts, counts, counts, st.one_of(st.none(), spans)
)


def test_thirty_nights_by_the_default() -> None:
    """7 days, 4 weeks (ISO), 6 months; the oldest stays while there are fewer months."""
    found = {each.created.strftime("%m-%d") for each in kept(nights(120), DEFAULT_RULES)}
    days = {"11-22", "11-21", "11-20", "11-19", "11-18", "11-17", "11-16"}
    weeks = {"11-22", "11-15", "11-08", "11-01"}
    months = {"11-22", "10-31", "09-30", "08-31", "07-31"}
    assert found == days | weeks | months | {"07-26"}


def test_days_are_those_of_the_imaged_machine() -> None:
    """23:30 and 00:30 in Tokyo are two days there, and one in London."""
    late = datetime.datetime(2026, 11, 20, 23, 30, tzinfo=EAST)
    early = late + datetime.timedelta(hours=1)
    assert len(kept([image(late), image(early)], Rules(daily=2))) == 2
    in_utc = [image(late.astimezone(UTC)), image(early.astimezone(UTC)), *nights(1)]
    assert len(kept(in_utc, Rules(daily=2))) == 2


def test_weeks_are_iso_weeks_across_the_year() -> None:
    monday = datetime.datetime(2025, 12, 29, 3, tzinfo=UTC)
    week = [image(monday + datetime.timedelta(days=day)) for day in range(7)]
    assert kept([*week, *nights(1)], Rules(weekly=2))[1:] == [week[6]]


def test_of_a_day_the_best_is_kept() -> None:
    good = image(NOW - datetime.timedelta(hours=3))
    degraded = image(NOW - datetime.timedelta(hours=2), quality=Quality.DEGRADED)
    damaged = image(NOW - datetime.timedelta(hours=1), quality=Quality.DAMAGED)
    assert kept([good, degraded, damaged], Rules(daily=5)) == [good]
    assert kept([degraded, damaged], Rules(daily=5)) == [degraded]
    assert kept([damaged], Rules(daily=5)) == [damaged]


def test_last_counts_no_damaged_image() -> None:
    images = nights(5)
    images[0] = replace(images[0], quality=Quality.DAMAGED)
    assert kept(images, Rules(last=2)) == images[1:3]


def test_within_counts_from_the_newest_image() -> None:
    """A machine that was off for a month loses nothing by it."""
    images = nights(5, NOW - datetime.timedelta(days=30))
    assert kept(images, Rules(within=Span(days=3))) == images[:3]


def test_what_never_goes() -> None:
    images = [
        image(NOW + datetime.timedelta(days=9)),
        image(NOW),
        image(NOW - datetime.timedelta(days=1), quality=Quality.DEGRADED, proven=True),
        image(NOW - datetime.timedelta(days=2), proven=True),
        image(NOW - datetime.timedelta(days=3), pinned=True),
        image(NOW - datetime.timedelta(days=4)),
    ]
    assert list(reasons(images, Rules(last=1)).values()) == [
        ("dated in the future",),
        ("last", "newest good"),
        (),
        ("newest that passed a check",),
        ("pinned",),
        (),
    ]


def test_the_future_uses_no_rule_up() -> None:
    images = [image(NOW + datetime.timedelta(days=day)) for day in (1, 2, 3)] + nights(3)
    assert [each for each in kept(images, Rules(last=2)) if each.created <= NOW] == images[3:5]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("14d", Span(days=14)),
        ("36h", Span(hours=36)),
        ("1y6m", Span(years=1, months=6)),
        ("2y5m7d3h", Span(2, 5, 7, 3)),
    ],
)
def test_spans_are_read_as_restic_reads_them(text: str, span: Span) -> None:
    assert parse_span(text) == span
    assert str(span) == text


@pytest.mark.parametrize("text", ["", "14", "d", "3w", "-1d", "1d2", "7d1m", "1.5d", "1d "])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(ValueError, match="is not a length of time"):
        parse_span(text)


def test_months_end_where_the_calendar_says() -> None:
    end_of_march = datetime.datetime(2026, 3, 31, 5, tzinfo=UTC)
    assert Span(months=1).before(end_of_march) == datetime.datetime(2026, 2, 28, 5, tzinfo=UTC)
    assert Span(years=2, months=1).before(end_of_march).date() == datetime.date(2024, 2, 29)
    assert Span(years=9999).before(end_of_march).year == 1
    assert Span(days=999_999).before(end_of_march).year == 1


def test_rules_that_keep_nothing() -> None:
    assert Rules().absent
    assert Rules(last=0, daily=0).absent
    assert not Rules(last=UNLIMITED).absent
    assert not Rules(within=Span(days=1)).absent


@settings(max_examples=1000, deadline=None)
@given(histories, rule_sets)
def test_each_image_is_decided_and_some_always_stay(images: list[Candidate], rules: Rules) -> None:
    decisions = decide(images, rules, NOW)
    assert sorted(each.image.name for each in decisions) == sorted(each.name for each in images)
    stay = [each.image for each in decisions if each.kept]
    assert bool(stay) == bool(images)
    proven = [each for each in images if each.proven and each.quality > Quality.DAMAGED]
    if proven:
        assert any(each.proven and each.quality > Quality.DAMAGED for each in stay)
        best = max(each.quality for each in proven)
        newest = max(each.created for each in proven if each.quality == best)
        assert any(each.created == newest and each.proven for each in stay)
    assert all(each in stay for each in images if each.pinned)


@settings(max_examples=500, deadline=None)
@given(histories, rule_sets)
def test_rules_are_independent(images: list[Candidate], rules: Rules) -> None:
    """Together they keep what each of them keeps alone."""
    alone = set()
    for field in fields(Rules):
        one = replace(Rules(), **{field.name: getattr(rules, field.name)})
        alone |= {each.name for each in kept(images, one)}
    assert {each.name for each in kept(images, rules)} == alone


@settings(max_examples=500, deadline=None)
@given(histories, st.sampled_from(COUNTED), st.integers(1, 8), st.integers(1, 8))
def test_a_larger_number_keeps_no_less(
    images: list[Candidate], name: str, count: int, more: int
) -> None:
    fewer = kept(images, rule(name, count))
    larger = kept(images, rule(name, count + more))
    every = kept(images, rule(name, UNLIMITED))
    assert {each.name for each in fewer} <= {each.name for each in larger}
    assert {each.name for each in larger} <= {each.name for each in every}


@settings(max_examples=500, deadline=None)
@given(histories, st.integers(1, 12))
def test_each_of_the_latest_days_keeps_one(images: list[Candidate], count: int) -> None:
    """A model of its own: days as a set, sorted; not runs of neighbours."""
    images = [replace(each, created=each.created.astimezone(UTC)) for each in images]
    days = sorted({each.created.date() for each in images}, reverse=True)[:count]
    stay = kept(images, Rules(daily=count))
    for day in days:
        of_day = [each for each in images if each.created.date() == day]
        best = max(each.quality for each in of_day)
        newest = max(each.created for each in of_day if each.quality == best)
        assert any(each.created == newest for each in stay)
    free = [each for each in stay if not each.pinned]
    assert len(free) <= count + 3  # the oldest, the newest proven, the newest good


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=120),
    st.builds(
        Rules,
        *(st.one_of(st.none(), st.integers(1, 8)) for _ in COUNTED),
        st.one_of(st.none(), spans),
    ),
)
def test_pruning_each_time_loses_no_more_than_pruning_once(gaps: list[int], rules: Rules) -> None:
    """A history of good images: what a nightly prune leaves is what one late prune would leave."""
    moment = NOW - datetime.timedelta(days=1000)
    every: list[Candidate] = []
    stays: list[Candidate] = []
    for gap in gaps:
        moment += datetime.timedelta(hours=gap)
        every.append(image(moment))
        stays = kept([*stays, every[-1]], rules, FAR)
    assert stays == kept(every, rules, FAR)
