"""What a schedule does, as it is kept in its unit file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from imager.capture import CaptureOptions
from imager.capture_options import Consistency
from imager.errors import UsageError
from imager.store.names import slug
from imager.store.retention import DEFAULT_RULES, Rules, Span, parse_span

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True)
class Job:
    """One disk, one store, and when and how the one goes into the other."""

    name: str
    disk: str
    """The disk's key (see `store.disk_key`): it may be sdb tomorrow."""
    device: str
    """What the disk was called when the schedule was made: only a hint."""
    store: Path
    calendar: tuple[str, ...]
    """When, as systemd.time(7) writes it."""
    rules: Rules = DEFAULT_RULES
    check_within: Span | None = None
    """Each image is checked anew within this time."""
    before: str = ""
    """Shell commands, empty: none."""
    after: str = ""
    on_failure: str = ""
    ping: str = ""
    """A URL that is fetched after each run that went well."""
    metrics: str = ""
    """A file for Prometheus' textfile collector."""
    level: int = CaptureOptions.level
    only: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    consistency: Consistency = "auto"
    continue_on_read_error: bool = False
    delay_minutes: int = 15
    """A run begins up to this much later, so that not all machines begin at once."""
    wake: bool = False
    """Whether the machine is woken from sleep for it."""

    def __post_init__(self) -> None:
        """Refuse what no unit could be made of."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot name a schedule: use letters, digits, dots, - and _"
            )
        if not self.calendar:
            raise UsageError("say when: --daily 02:00, --weekly Sun 03:00, --hourly, ...")
        if not self.store.is_absolute():
            raise UsageError(f"{self.store} is no absolute path")
        if not self.disk or self.delay_minutes < 0:
            raise UsageError("the schedule makes no sense")
        self.capture_options()

    def capture_options(self) -> CaptureOptions:
        """How its captures are made."""
        return CaptureOptions(
            level=self.level,
            only=self.only,
            exclude=self.exclude,
            consistency=self.consistency,
            continue_on_read_error=self.continue_on_read_error,
            note=f"schedule {self.name}",
        )

    def to_json(self) -> dict[str, object]:
        """A mapping fit for `json.dumps`."""
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        facts["store"] = str(self.store)
        facts["check_within"] = str(self.check_within) if self.check_within else None
        rules = {field.name: getattr(self.rules, field.name) for field in fields(Rules)}
        rules["within"] = str(self.rules.within) if self.rules.within else None
        facts["rules"] = rules
        return facts

    @classmethod
    def from_json(cls, value: object) -> Job:
        """The inverse of `to_json`; ValueError or UsageError where it makes no sense."""
        facts: dict[str, Any] = dict(_mapping(value))
        known = {field.name: field.type for field in fields(cls)}
        if unknown := facts.keys() - known:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        rules: dict[str, Any] = dict(_mapping(facts.pop("rules")))
        within = rules.pop("within")
        if any(number is not None and type(number) is not int for number in rules.values()):
            raise ValueError("a rule is no number")
        facts["rules"] = Rules(**rules, within=_span(within))
        facts["check_within"] = _span(facts["check_within"])
        facts["store"] = Path(_text(facts["store"]))
        facts["calendar"] = tuple(_text(one) for one in _list(facts["calendar"]))
        for key in ("only", "exclude"):
            facts[key] = tuple(_number(one) for one in _list(facts[key]))
        for key, kind in known.items():
            if kind == "str":
                _text(facts[key])
            elif kind == "int":
                _number(facts[key])
            elif kind == "bool" and not isinstance(facts[key], bool):
                raise ValueError(f"{key} is neither true nor false")
        if facts["consistency"] not in get_args(Consistency):
            raise ValueError("consistency is not known")
        return cls(**facts)


def default_name(disk: str) -> str:
    """What a schedule of this disk is called, unless the user says it."""
    return slug(disk).lower()


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError("it is no mapping")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("something is no list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("something is no text")
    return value


def _number(value: object) -> int:
    if type(value) is not int:
        raise ValueError("something is no number")
    return value


def _span(value: object) -> Span | None:
    return None if value is None else parse_span(_text(value))
