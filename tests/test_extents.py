"""The algebra of extents against a naive model: a set of integers."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imager.extents import Extents, ExtentsBuilder

LIMIT = 40  # small, so that boundaries often meet

ranges = st.lists(st.tuples(st.integers(0, LIMIT), st.integers(0, LIMIT)), max_size=8)
points = st.integers(0, LIMIT + 8)
units = st.integers(1, 12)


def model(pairs: list[tuple[int, int]]) -> set[int]:
    return {point for start, end in pairs for point in range(start, end)}


def extents(members: set[int]) -> Extents:
    """The canonical extents of a set, made without the code under test."""
    bounds = sorted(
        [point for point in members if point - 1 not in members]
        + [point + 1 for point in members if point + 1 not in members]
    )
    return Extents(array("Q", bounds))


def members(value: Extents) -> set[int]:
    """The bytes of `value`, which must be in canonical form."""
    bounds = [bound for pair in value for bound in pair]
    assert all(low < high for low, high in pairwise(bounds))
    return {point for start, end in value for point in range(start, end)}


@given(ranges)
def test_of_is_the_union_in_any_order(pairs: list[tuple[int, int]]) -> None:
    value = Extents.of(pairs)
    assert members(value) == model(pairs)
    assert value == extents(model(pairs))
    assert hash(value) == hash(Extents.of(reversed(pairs)))


@given(st.lists(ranges, max_size=7))
def test_union_of_many(sets: list[list[tuple[int, int]]]) -> None:
    value = Extents.union(Extents.of(pairs) for pairs in sets)
    assert members(value) == {point for pairs in sets for point in model(pairs)}


@given(points, points)
def test_span_is_one_range(start: int, end: int) -> None:
    assert members(Extents.span(start, end)) == set(range(start, end))


@given(ranges)
def test_what_it_says_of_itself(pairs: list[tuple[int, int]]) -> None:
    bytes_in = model(pairs)
    value = extents(bytes_in)
    assert members(value) == bytes_in
    assert len(value) == len(list(value)) == sum(point - 1 not in bytes_in for point in bytes_in)
    assert bool(value) == bool(bytes_in)
    assert value.total == len(bytes_in)
    assert repr(value).count("[") == min(len(value), 8)
    if bytes_in:
        assert (value.start, value.end) == (min(bytes_in), max(bytes_in) + 1)
    else:
        for edge in ("start", "end"):
            with pytest.raises(IndexError):
                getattr(value, edge)


@given(ranges, ranges)
def test_equality_is_that_of_the_sets(
    some: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    assert (Extents.of(some) == Extents.of(others)) == (model(some) == model(others))
    assert Extents.of(some) != model(some)


@given(ranges)
def test_bytes_round_trip(pairs: list[tuple[int, int]]) -> None:
    value = Extents.of(pairs).shift(2**63)
    data = value.to_bytes()
    assert Extents.from_bytes(data) == value
    assert data == b"".join(bound.to_bytes(8, "little") for pair in value for bound in pair)


@given(st.lists(st.integers(0, 12), max_size=6))
def test_from_bytes_takes_only_increasing_pairs(bounds: list[int]) -> None:
    data = array("Q", bounds).tobytes()
    if len(bounds) % 2 == 0 and bounds == sorted(set(bounds)):
        assert list(Extents.from_bytes(data)) == list(zip(bounds[::2], bounds[1::2], strict=True))
    else:
        with pytest.raises(ValueError):
            Extents.from_bytes(data)


def test_from_bytes_takes_only_whole_integers() -> None:
    with pytest.raises(ValueError):
        Extents.from_bytes(bytes(15))


@given(ranges, points)
def test_contains_and_next_start(pairs: list[tuple[int, int]], offset: int) -> None:
    bytes_in = model(pairs)
    value = extents(bytes_in)
    assert (offset in value) == (offset in bytes_in)
    assert value.next_start(offset) == min((at for at in bytes_in if at >= offset), default=None)
    assert -1 not in value


@given(ranges, points, points)
@example([(3, 9)], 3, 9)
@example([(3, 9)], 3, 10)
@example([(3, 9)], 2, 9)
def test_covers(pairs: list[tuple[int, int]], start: int, end: int) -> None:
    assert extents(model(pairs)).covers(start, end) == (set(range(start, end)) <= model(pairs))


@given(ranges, points, points)
def test_clip_and_complement(pairs: list[tuple[int, int]], start: int, end: int) -> None:
    bytes_in = model(pairs)
    value = extents(bytes_in)
    window = set(range(start, end))
    assert members(value.clip(start, end)) == bytes_in & window
    assert members(value.complement(start, end)) == window - bytes_in
    assert value == extents(bytes_in), "the value itself must not change"


@given(ranges, st.integers(-LIMIT - 8, LIMIT))
def test_shift(pairs: list[tuple[int, int]], distance: int) -> None:
    bytes_in = model(pairs)
    if min(bytes_in, default=LIMIT + 8) + distance < 0:
        with pytest.raises(OverflowError):
            extents(bytes_in).shift(distance)
    else:
        assert members(extents(bytes_in).shift(distance)) == {at + distance for at in bytes_in}


@given(ranges, units)
def test_align_grows_outward_to_whole_units(pairs: list[tuple[int, int]], unit: int) -> None:
    bytes_in = model(pairs)
    touched = {at // unit for at in bytes_in}
    assert members(extents(bytes_in).align(unit)) == {
        at for number in touched for at in range(number * unit, (number + 1) * unit)
    }


@given(ranges, st.integers(0, 12))
@example([(0, 2), (5, 6), (10, 11)], 4)
@example([(0, 2), (3, 4)], 1)
def test_without_gaps_fills_exactly_the_short_ones(
    pairs: list[tuple[int, int]], shorter_than: int
) -> None:
    bytes_in = model(pairs)
    expected = set(bytes_in)
    for gap in range(1, shorter_than):
        expected |= {
            at + step
            for at in bytes_in
            if at + gap + 1 in bytes_in and not bytes_in & set(range(at + 1, at + gap + 1))
            for step in range(1, gap + 1)
        }
    assert members(extents(bytes_in).without_gaps(shorter_than)) == expected


@given(ranges, ranges)
@example([(0, 4)], [(4, 8)])
@example([(0, 4), (6, 8)], [(4, 6)])
@example([(0, 4), (8, 12)], [(0, 12)])
@example([(at, at + 1) for at in range(0, 90, 2)], [(31, 33), (35, 36)])
@example([(at, at + 1) for at in range(0, 90, 2)], [(at, at + 1) for at in range(1, 91, 2)])
def test_set_operations(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    left, right = model(some), model(others)
    for mine, theirs in ((left, right), (right, left), (left, left)):
        assert members(extents(mine) | extents(theirs)) == mine | theirs
        assert members(extents(mine) & extents(theirs)) == mine & theirs
        assert members(extents(mine) - extents(theirs)) == mine - theirs


@given(st.integers(0, 300), st.integers(0, 300), st.sets(st.integers(0, 900), max_size=4))
def test_set_operations_of_sets_that_are_nearly_the_same(
    some: int, others: int, changed: set[int]
) -> None:
    """Long runs of equal boundaries, out of step and in step, and ends that only one has."""
    mine = model([(3 * number, 3 * number + 2) for number in range(some)])
    theirs = model([(3 * number, 3 * number + 2) for number in range(others)]) ^ changed
    inverse = set(range(1000)) - theirs
    for other in (theirs, inverse):
        one, two = extents(mine), extents(other)
        assert members(one | two) == members(two | one) == mine | other
        assert members(one & two) == members(two & one) == mine & other
        assert members(one - two) == mine - other
        assert members(two - one) == other - mine


@given(st.lists(st.tuples(points, points), max_size=10), st.integers(0, 12))
@example([(0, 2), (3, 4), (7, 8)], 1)
@example([(0, 2), (5, 6), (10, 11)], 4)
def test_builder_joins_and_refuses_what_comes_too_late(
    pairs: list[tuple[int, int]], join_gaps_below: int
) -> None:
    builder = ExtentsBuilder(join_gaps_below)
    built: list[tuple[int, int]] = []
    for start, end in pairs:
        if start < end and built and start < built[-1][0]:
            with pytest.raises(ValueError):
                builder.add(start, end)
            continue
        builder.add(start, end)
        if start < end:
            if built and start - built[-1][1] < max(join_gaps_below, 1):
                built[-1] = (built[-1][0], max(built[-1][1], end))
            else:
                built.append((start, end))
    assert list(builder.build()) == built


@given(
    st.binary(max_size=12),
    st.integers(0, 96),
    units,
    st.integers(0, 50),
    st.integers(0, 40),
    st.booleans(),
)
def test_add_bitmap(
    bitmap: bytes, bits: int, unit: int, base: int, before: int, writable: bool
) -> None:
    builder = ExtentsBuilder()
    builder.add(0, before)
    given_bitmap = bytearray(bitmap) if writable else bitmap
    if bits > 8 * len(bitmap):
        with pytest.raises(ValueError):
            builder.add_bitmap(given_bitmap, bits, unit, base)
        return
    expected = set(range(before)) | {
        base + bit * unit + step
        for bit in range(bits)
        if bitmap[bit // 8] >> bit % 8 & 1
        for step in range(unit)
    }
    builder.add_bitmap(given_bitmap, bits, unit, base)
    assert members(builder.build()) == expected


def test_add_bitmap_joins_pieces_and_short_gaps() -> None:
    builder = ExtentsBuilder(join_gaps_below=11)
    builder.add_bitmap(b"\x81", 8, 10, 0)
    builder.add_bitmap(b"\x05", 8, 10, 80)
    assert list(builder.build()) == [(0, 10), (70, 110)]


def test_add_bitmap_refuses_a_negative_number_of_bits() -> None:
    with pytest.raises(ValueError):
        ExtentsBuilder().add_bitmap(b"\xff", -1, 1, 0)


def test_builder_refuses_what_does_not_fit_64_bits() -> None:
    with pytest.raises(OverflowError):
        ExtentsBuilder().add(-1, 4)
    with pytest.raises(OverflowError):
        ExtentsBuilder().add(0, 2**64)


def _seconds(work: Callable[[], object]) -> float:
    """The best of three runs: other load must not fail a test."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def test_merging_a_large_set_with_a_small_one_costs_a_copy() -> None:
    large = Extents(array("Q", range(0, 4_000_000 * 4096, 4096)))
    small = Extents.of((at, at + 10_000_000) for at in range(1000, large.end, large.end // 10))
    assert len(large) == 2_000_000
    assert len(small) == 10
    assert (large | small).total == large.total + small.total - (large & small).total
    for work in (lambda: large | small, lambda: large & small, lambda: large - small):
        assert _seconds(work) < 0.25, "stepping over each boundary takes more than a second"
