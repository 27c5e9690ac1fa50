"""What was answered last time, kept on the stick, so that it need not be typed again.

Anybody can write to a stick: what is read is bounded, checked, and only ever a preset that the
person sees before it is used. Passwords are not among it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

MAX_FILE = 64 << 10
MAX_TEXT = 200
NAME = "imager/answers.json"
"""Below the root of the stick's partition for data."""


@dataclass(frozen=True)
class Answers:
    """Texts as they were typed; empty where nothing was."""

    share: str = ""
    """The address of the last share."""
    user: str = ""
    domain: str = ""
    keymap: str = ""
    machine: str = ""
    """The name of the machine that was last brought back or saved."""
    wifi: str = ""
    """The name of the last wireless network."""


def parse_answers(data: bytes) -> Answers:
    """The answers in a file; what is missing, too long, of another type or unprintable is empty."""
    try:
        value = json.loads(data) if len(data) <= MAX_FILE else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return Answers()
    found = {field.name: value.get(field.name) for field in fields(Answers)}
    return Answers(
        **{
            name: text
            for name, text in found.items()
            if isinstance(text, str) and len(text) <= MAX_TEXT and text.isprintable()
        }
    )


def read_answers(root: Path) -> Answers:
    """The answers on the partition mounted at `root`; none where they cannot be read."""
    try:
        fd = os.open(root / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return Answers()
    try:
        return parse_answers(os.read(fd, MAX_FILE + 1))
    except OSError:
        return Answers()
    finally:
        os.close(fd)


def write_answers(root: Path, answers: Answers) -> None:
    """Keep `answers`; raises OSError where that fails, with the old ones still there."""
    place = root / NAME
    if place.parent.is_symlink():
        raise OSError(f"{place.parent} leads elsewhere")
    place.parent.mkdir(exist_ok=True)
    new = place.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(asdict(answers), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(place)
