"""What a schedule's last run said; lost, it is only not known until the next one."""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from imager.errors import ImageError
from imager.image.head import get, load
from imager.store.files import write_durably

DEFAULT_STATE = Path("/var/lib/imager")
OUTCOMES = ("ok", "degraded", "absent", "failed")
_MAX_STATE = 1 << 16


@dataclass(frozen=True)
class LastRun:
    """The end of a run."""

    when: datetime.datetime
    outcome: str
    """One of `OUTCOMES`; absent: the store was not there."""
    line: str
    """What it said of itself."""
    last_success: datetime.datetime | None
    """When a run last brought an image into the store, this one or one before."""


def state_directory() -> Path:
    """Where systemd, or a convention, wants state."""
    return Path(os.environ.get("STATE_DIRECTORY", "").split(":")[0] or DEFAULT_STATE)


def write_last_run(directory: Path, name: str, run: LastRun) -> None:
    """Keep it; OSError where that is impossible."""
    directory.mkdir(parents=True, exist_ok=True)
    facts = asdict(run)
    facts["when"] = run.when.isoformat()
    facts["last_success"] = run.last_success.isoformat() if run.last_success else None
    write_durably(directory / f"{name}.json", json.dumps(facts, indent=1) + "\n")


def read_last_run(directory: Path, name: str) -> LastRun | None:
    """What is known of the last run; None if that is nothing."""
    try:
        with (directory / f"{name}.json").open("rb") as file:
            facts = load(file.read(_MAX_STATE), "state")
        success = facts.get("last_success")
        run = LastRun(
            _moment(get(facts, "when", str)),
            get(facts, "outcome", str),
            get(facts, "line", str),
            _moment(success) if isinstance(success, str) else None,
        )
    except (OSError, ImageError, ValueError):
        return None
    return run if run.outcome in OUTCOMES else None


def _moment(text: str) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
