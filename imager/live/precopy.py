"""Reads what was written while it was read, until so little is left that a short pause suffices.

    round:    take the set of written pages and empty it, then read them       (in this order)
    instant:  everything is frozen; read the last written pages, and what the maps show as used
              although it was never read

The clock, the disk and the record of writes are given from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from imager.errors import NotCaughtError
from imager.extents import Extents
from imager.live.patches import Rereading
from imager.wording import format_size

_ROUNDS = 24
_LONG = 1 << 24
"""A round of so many bytes tells how fast the disk is read."""
_SHRINKS = 0.8
"""A round that leaves more than this share of what the one before left does not bring us nearer."""
_STALLED = 2
"""Such rounds in a row end the pre-copy."""
_ATTEMPTS = 40
"""Looks inside the freeze for writes that no freeze stops."""


class TooBusyError(NotCaughtError):
    """The disk is written faster than it can be read: no short pause would do."""


class Writes(Protocol):
    """The record of writes to the disk."""

    def take(self) -> Extents:
        """What was written since the last time."""

    def waiting(self) -> Extents:
        """The same, but it stays to be taken."""

    def idle(self) -> bool:
        """Whether no write is under way at this moment."""

    def verify(self) -> None:
        """Raise an ImagerError unless every write was recorded."""


class Limits(NamedTuple):
    """How long everything may stand still, in seconds."""

    target: float
    """What is aimed at."""
    most: float
    """What is never exceeded."""


@dataclass
class Speed:
    """How fast the disk is read, from what was seen."""

    rate: float
    """Bytes a second, of long reads."""
    piece: float = 0.0001
    """Seconds that each request takes beside its bytes."""

    def saw(self, size: int, pieces: int, seconds: float) -> None:
        """Learn from a round; the latest tells most about what comes next."""
        if size >= _LONG and seconds:
            self.rate = max(self.rate, size / seconds)
        if pieces >= 8:
            self.piece = max(seconds - size / self.rate, 0.0) / pieces

    def expect(self, ranges: Extents) -> float:
        """Seconds to read these."""
        return ranges.total / self.rate + len(ranges) * self.piece


@dataclass
class Precopy:
    """The rounds of one capture."""

    writes: Writes
    patches: Rereading
    limits: Limits
    speed: Speed
    overhead: float
    """Seconds that a freeze takes beside the reading."""
    clock: Callable[[], float] = time.monotonic
    rounds: list[int] = field(default_factory=list)
    """Bytes read again in each, the last inside the freeze."""
    deferred: Extents = field(default_factory=Extents)
    """What a snapshot will keep as it is at the instant: it need not be read inside the freeze."""
    later: Extents = field(default_factory=Extents)
    """What has to be read from there."""
    _owed: Extents = field(default_factory=Extents)
    """What was taken from the record of writes, but not read because something failed."""

    def run(self) -> None:
        """Go round until the pause would be as short as is aimed at, or gets no shorter."""
        stalled = 0
        before = None
        for _ in range(_ROUNDS):
            self.round()
            expected = self.expected_pause()
            if expected <= self.limits.target:
                return
            if before is not None and expected > before * _SHRINKS:
                stalled += 1
                if stalled == _STALLED:
                    return
            before = expected

    def round(self) -> None:
        """Read once what was written since the last time."""
        ranges = self._take()
        reading = self.patches.read(ranges)
        self._owed = Extents()
        self.speed.saw(*reading)
        self.rounds.append(reading.size)

    def expected_pause(self) -> float:
        """Seconds, if everything were frozen now."""
        return self.overhead + self.speed.expect(self.patches.to_read(self._waiting()))

    def require_short(self) -> None:
        """TooBusyError with the numbers where the pause would be longer than is allowed."""
        expected = self.expected_pause()
        if expected > self.limits.most:
            waiting = self.patches.to_read(self._waiting()).total
            raise TooBusyError(
                f"the disk is written faster than it is read again: after {len(self.rounds)} "
                f"rounds {format_size(waiting)} are left, a pause of about {expected:.1f} s, more "
                f"than the {self.limits.most:g} s of --max-pause: capture at a quieter time, or "
                "allow a longer pause"
            )
        if not self.patches.fits(self._waiting()):
            raise _no_room()

    def instant(self, unread: Callable[[], Extents]) -> None:
        """Inside the freeze: read all that is left, and make sure that it is of one instant.

        `unread` reads the maps and says what they show as used of which nothing was read yet.
        Writes go on where no freeze reaches: then all is looked at again. Raises TooBusyError where
        that does not end in time, and whatever the record of writes raises where it has gaps.
        """
        begun = self.clock()
        total = 0
        for attempt in range(_ATTEMPTS):
            idle = self.writes.idle()
            ranges = self._take()
            if attempt and idle and not ranges:
                self.writes.verify()
                self.rounds.append(total)
                return
            if ranges or not attempt:
                total += self._read_now(ranges, begun)
                self._owed = Extents()
                total += self._read_now(unread(), begun)
            if self.clock() - begun > self.limits.most:
                break
        raise TooBusyError(
            "something writes to the disk past its file systems, and does not stop while they are "
            "frozen: nothing of this capture is kept"
        )

    def _take(self) -> Extents:
        """What was written since the last time, and what is owed from then; to be read now."""
        self._owed |= self.writes.take()
        return self._owed

    def _waiting(self) -> Extents:
        return (self.writes.waiting() | self._owed) - self.deferred

    def _read_now(self, ranges: Extents, begun: float) -> int:
        self.later |= ranges & self.deferred
        ranges -= self.deferred
        left = begun + self.limits.most - self.clock()
        if left <= 0:
            raise TooBusyError(
                "the disk took too long to give its last sectors while everything stood still "
                f"(limit {self.limits.most:g} s): nothing of this capture is kept; try again, or "
                "allow more with --max-pause"
            )
        to_read = self.patches.to_read(ranges)
        if self.speed.expect(to_read) > left:
            raise TooBusyError(
                f"{format_size(to_read.total)} had to be read while everything stands still, more "
                f"than {self.limits.most:g} s (--max-pause) allow: capture at a quieter time"
            )
        if not self.patches.fits(ranges):
            raise _no_room()
        return self.patches.hold(ranges).size


def _no_room() -> TooBusyError:
    return TooBusyError(
        "the disk is written in more places than can be sent again at one instant: capture to one "
        "file, which can be patched, or with a smaller --chunk-size"
    )
