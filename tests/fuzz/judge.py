"""One reader on one damaged volume: it may refuse or answer; anything else is a finding."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Volume
from tests.fuzz.damage import Damage, Damaged
from tests.fuzz.forged import forged
from tests.fuzz.targets import Target

CPU_SECONDS = 5.0
"""What a reader may take of the processor for a volume of some MiB: a hundred times the usual."""


class Outcome(NamedTuple):
    """What a reader did."""

    reason: str
    """Why it refused, without numbers; empty where it answered."""
    finding: str = ""
    """What it should not have done; the first line names the kind and the place."""


class TooLong(BaseException):
    """The reader did not come to an end."""


def judge(target: Target, sound: Volume, kept: Extents, damage: Damage) -> Outcome:
    """Let the reader look at the damaged volume; `kept` is what it says of the sound one."""
    volume = Damaged(sound, damage)
    functions = target.checksums if damage.forged else ()
    try:
        with forged(functions), _limited():
            found = target.read(volume)
    except (NotUnderstoodError, ReadFailedError) as refusal:
        return Outcome(re.sub(r"0x[0-9a-f]+|\d+", "#", str(refusal)))
    except TooLong:
        return _failure(f"no end after {CPU_SECONDS:g} seconds of the processor")
    except MemoryError:
        return _failure("too much memory")
    except Exception as error:
        return _failure(f"{type(error).__name__}: {error}")
    return Outcome("", _too_little(target, kept, found, damage))


def _too_little(target: Target, kept: Extents, found: Extents, damage: Damage) -> str:
    """What is wrong with a map, if anything.

    Where checksums fit, damaged metadata is metadata: then only its bounds are judged.
    """
    if found and found.end > damage.size:
        return "map reaches past the end of the volume"
    if target.loss_per_byte is None or damage.forged:
        return ""
    lost = kept.clip(0, damage.size) - found
    safe = target.sealed and len(damage.patches) == 1
    allowed = target.loss_anyway
    allowed += 0 if safe else target.loss_per_byte * damage.changed_bytes()
    if lost.total > allowed:
        return f"map leaves out too much\n{lost.total} bytes, {allowed} allowed: {lost}"
    return ""


def _failure(what: str) -> Outcome:
    """A finding, with the innermost place in the program."""
    text = traceback.format_exc(limit=-8)
    places = re.findall(r'File "[^"]*/(imager/[^"]+)", line (\d+)', text)
    place = "{}:{}".format(*places[-1]) if places else "?"
    return Outcome("", f"{what} at {place}\n{text}")


@contextmanager
def _limited() -> Iterator[None]:
    """TooLong after CPU_SECONDS of processor time; a clock on the wall would blame other work."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
