"""Sorted, disjoint byte ranges with set algebra: the one value that every room speaks.

An `Extents` is stored as one flat array of boundaries

    [start0, end0, start1, end1, ...]        start0 < end0 < start1 < end1 < ...

so the parity of a position tells whether it opens or closes a range, a complement only adds or
drops the outermost boundaries, and two million ranges take 32 MiB.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

from bitarray import bitarray


class Extents:
    """An immutable set of bytes, as half-open ranges [start, end) in bytes."""

    __slots__ = ("_bounds",)

    def __init__(self, bounds: array[int] | None = None) -> None:
        """Wrap `bounds`, strictly increasing and of even length; it must not change afterwards."""
        self._bounds: array[int] = array("Q") if bounds is None else bounds

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Extents:
        """The union of (start, end) ranges in any order; empty ranges vanish."""
        builder = ExtentsBuilder()
        for start, end in sorted(ranges):
            builder.add(start, end)
        return builder.build()

    @classmethod
    def union(cls, parts: Iterable[Extents]) -> Extents:
        """The union of many sets, which are merged two by two so that each is copied few times."""
        todo = list(parts)
        while len(todo) > 1:
            pairs = zip(todo[::2], todo[1::2], strict=False)
            todo = [one | other for one, other in pairs] + todo[len(todo) & ~1 :]
        return todo[0] if todo else cls()

    @classmethod
    def span(cls, start: int, end: int) -> Extents:
        """One range [start, end), or nothing where it is empty."""
        return cls(array("Q", (start, end))) if start < end else cls()

    @classmethod
    def from_bytes(cls, data: bytes) -> Extents:
        """Read little-endian 64-bit boundaries; ValueError unless they increase, in pairs."""
        bounds = array("Q")
        bounds.frombytes(data)
        if _BIG_ENDIAN:
            bounds.byteswap()
        if len(bounds) % 2 or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError("range boundaries do not increase")
        return cls(bounds)

    def to_bytes(self) -> bytes:
        """The boundaries as little-endian 64-bit integers, as `from_bytes` reads them."""
        bounds = self._bounds
        if _BIG_ENDIAN:
            bounds = bounds[:]
            bounds.byteswap()
        return bounds.tobytes()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        bounds = iter(self._bounds)
        return zip(bounds, bounds, strict=True)

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self._bounds) // 2

    def __bool__(self) -> bool:
        return bool(self._bounds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extents) and self._bounds == other._bounds

    def __hash__(self) -> int:
        return hash(self._bounds.tobytes())

    def __repr__(self) -> str:
        shown = ", ".join(f"[{start}, {end})" for start, end in list(self)[:8])
        return f"Extents({shown}{', ...' if len(self) > 8 else ''})"

    @property
    def total(self) -> int:
        """How many bytes all ranges hold."""
        return sum(self._bounds[1::2]) - sum(self._bounds[0::2])

    @property
    def start(self) -> int:
        """The first byte; IndexError when empty."""
        return self._bounds[0]

    @property
    def end(self) -> int:
        """One past the last byte; IndexError when empty."""
        return self._bounds[-1]

    def __contains__(self, offset: int) -> bool:
        return bool(bisect_right(self._bounds, offset) & 1)

    def covers(self, start: int, end: int) -> bool:
        """Whether every byte of [start, end) is in the set."""
        position = bisect_right(self._bounds, start)
        return start >= end or (position & 1 == 1 and end <= self._bounds[position])

    def next_start(self, offset: int) -> int | None:
        """The first byte of the set at or after `offset`, or None."""
        position = bisect_right(self._bounds, offset)
        if position & 1:
            return offset
        return self._bounds[position] if position < len(self._bounds) else None

    def count(self, start: int, end: int) -> int:
        """How many ranges meet [start, end)."""
        if start >= end:
            return 0
        first = bisect_right(self._bounds, start)
        return (bisect_left(self._bounds, end) + 1) // 2 - first // 2

    def clip(self, start: int, end: int) -> Extents:
        """The part inside [start, end)."""
        if start >= end:
            return Extents()
        first = bisect_right(self._bounds, start)
        last = bisect_left(self._bounds, end)
        bounds = self._bounds[first:last]
        if first & 1:
            bounds.insert(0, start)
        if last & 1:
            bounds.append(end)
        return Extents(bounds)

    def shift(self, distance: int) -> Extents:
        """Every range moved by `distance` bytes; OverflowError if one would leave 64 bits."""
        return Extents(array("Q", (bound + distance for bound in self._bounds)))

    def complement(self, start: int, end: int) -> Extents:
        """The bytes of [start, end) that are not in the set."""
        bounds = self.clip(start, end)._bounds
        if start >= end:
            return Extents()
        if bounds and bounds[0] == start:
            del bounds[0]
        else:
            bounds.insert(0, start)
        if bounds[-1] == end:
            del bounds[-1]
        else:
            bounds.append(end)
        return Extents(bounds)

    def align(self, unit: int) -> Extents:
        """Each range grown outward to multiples of `unit` bytes."""
        builder = ExtentsBuilder()
        for start, end in self:
            builder.add(start // unit * unit, -(-end // unit) * unit)
        return builder.build()

    def without_gaps(self, shorter_than: int) -> Extents:
        """Ranges less than `shorter_than` bytes apart joined into one."""
        builder = ExtentsBuilder(shorter_than)
        for start, end in self:
            builder.add(start, end)
        return builder.build()

    def __or__(self, other: Extents) -> Extents:
        if not self or not other:
            return self or other
        return self._merge(other, (False, True, True, True))

    def __and__(self, other: Extents) -> Extents:
        if not self or not other:
            return Extents()
        return self._merge(other, (False, False, False, True))

    def __sub__(self, other: Extents) -> Extents:
        if not self or not other:
            return self
        return self._merge(other, (False, False, True, False))

    def _merge(self, other: Extents, keep: tuple[bool, bool, bool, bool]) -> Extents:
        """Sweep both sets; `keep[2 * in_mine + in_theirs]` says what belongs to the result.

        Up to the next boundary of the one set, all boundaries of the other act alike: each toggles
        the result, or none does. So they are copied, or passed over, as one slice, and merging a
        large set with a small one costs little more than a copy of the large one. Nor do two that
        are nearly the same: boundaries that both have act alike for as long as they go on.
        """
        mine, theirs = self._bounds, other._bounds
        mine_end, theirs_end = len(mine), len(theirs)
        # By whether we are inside the other set: does a boundary of this one toggle the result?
        mine_toggles = (keep[0] != keep[2], keep[1] != keep[3])
        theirs_toggle = (keep[0] != keep[1], keep[2] != keep[3])
        out: array[int] = array("Q")
        i = j = 0
        while i < mine_end and j < theirs_end:
            at = theirs[j]
            if mine[i] < at:
                first, i = i, i + 1
                if i < mine_end and mine[i] < at:
                    i = _gallop(mine, at, i)
                if mine_toggles[j & 1]:
                    out.extend(mine[first:i])
                if i == mine_end:
                    break
            at = mine[i]
            if theirs[j] < at:
                first, j = j, j + 1
                if j < theirs_end and theirs[j] < at:
                    j = _gallop(theirs, at, j)
                if theirs_toggle[i & 1]:
                    out.extend(theirs[first:j])
            elif theirs[j] == at:
                first, common = i, _common(mine, i, theirs, j)
                state = 2 * (i & 1) + (j & 1)
                if keep[state] != keep[3 - state]:
                    out.extend(mine[first : first + common])
                i += common
                j += common
        if mine_toggles[0]:
            out.extend(mine[i:])
        if theirs_toggle[0]:
            out.extend(theirs[j:])
        return Extents(out)


def _common(mine: array[int], i: int, theirs: array[int], j: int) -> int:
    """How many boundaries from `i` and `j` on, which are equal, are so one after the other."""
    if mine[i + 1 : i + 2] != theirs[j + 1 : j + 2]:
        return 1
    length, step = 1, 16
    while step:
        low, high = i + length, j + length
        part = mine[low : low + step]
        if part and part == theirs[high : high + step]:
            length += len(part)
            step = min(2 * step, 1 << 16)
        else:
            step //= 2
    return length


def _gallop(bounds: array[int], at: int, start: int) -> int:
    """The first position from `start` on whose boundary is not less than `at`; quick if near."""
    end = len(bounds)
    near = start + 8
    if near < end and bounds[near] < at:
        return bisect_left(bounds, at, near)
    return bisect_left(bounds, at, start, min(near, end))


class ExtentsBuilder:
    """Collects ranges that come in ascending order of start into an `Extents`."""

    def __init__(self, join_gaps_below: int = 0) -> None:
        """Join neighbours less than `join_gaps_below` bytes apart, and those that touch."""
        self._bounds: array[int] = array("Q")
        self._slack = max(join_gaps_below - 1, 0)

    def add(self, start: int, end: int) -> None:
        """Add [start, end); nothing where it is empty.

        ValueError if it starts before the last range does (as joined so far), OverflowError outside
        of 64 bits.
        """
        if start >= end:
            return
        bounds = self._bounds
        if bounds and start <= bounds[-1] + self._slack:
            if start < bounds[-2]:
                raise ValueError(f"range at {start} comes after one at {bounds[-2]}")
            if end > bounds[-1]:
                bounds[-1] = end
        else:
            bounds.append(start)
            bounds.append(end)

    def add_bitmap(self, bitmap: bytes | bytearray, bits: int, unit: int, base: int) -> None:
        """Add the units whose bit is 1 among the first `bits` of `bitmap`.

        Bit i, counted from the least significant, stands for `unit` bytes at `base + i * unit`.
        ValueError if the bitmap has fewer bits, or as `add` raises it.
        """
        if not 0 <= bits <= 8 * len(bitmap):
            raise ValueError(f"{bits} bits are not in a bitmap of {len(bitmap)} bytes")
        field = bitarray(endian="little")
        field.frombytes(bitmap)
        find = field.find
        bounds = self._bounds
        position = find(1, 0, bits)
        while position >= 0:
            stop = find(0, position, bits)
            if stop < 0:
                stop = bits
            start = base + position * unit
            if bounds and start <= bounds[-1] + self._slack:
                self.add(start, base + stop * unit)
            else:  # spelt out: millions of runs come this way
                bounds.append(start)
                bounds.append(base + stop * unit)
            position = find(1, stop, bits) if stop < bits else -1

    def build(self) -> Extents:
        """The ranges added so far; the builder must not be used afterwards."""
        return Extents(self._bounds)


_BIG_ENDIAN = array("H", (1,)).tobytes()[0] == 0
