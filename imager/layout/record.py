"""Frozen dataclasses that are kept as JSON, read back with every type checked."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from imager.extents import Extents

_LIMIT = 1 << 64


class Record:
    """Base of frozen dataclasses that turn into plain JSON values and back.

    Fields may be `int` (not negative, below 2^64), `str`, `bool`, a `Literal` of strings,
    `Extents`, another `Record`, `tuple[X, ...]` of these, or one of these `| None`.
    """

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary that `json.dumps` takes."""
        return {name: _plain(getattr(self, name)) for name in _types(type(self))}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what `to_json` gave; ValueError for a wrong type, a missing field or nonsense.

        Unknown fields are ignored, so that a later version may add some.
        """
        try:
            return cls._from_json(value)
        except RecursionError:
            raise ValueError(f"{cls.__name__} is nested too deeply") from None

    @classmethod
    def _from_json(cls, value: object) -> Self:
        if not isinstance(value, dict):
            raise ValueError(f"{cls.__name__} is not an object")
        if not is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is no dataclass")
        types = _types(cls)
        found = {}
        for field in fields(cls):
            if field.name in value:
                where = f"{cls.__name__}.{field.name}"
                found[field.name] = _parse(types[field.name], value[field.name], where)
            elif field.default is MISSING:
                raise ValueError(f"{cls.__name__}.{field.name} is missing")
        return cls(**found)


def _types(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Extents):
        return [[start, end] for start, end in value]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _parse(kind: Any, value: object, where: str) -> Any:
    """`value` as the type `kind`; ValueError, naming `where`, if it is anything else."""
    origin = get_origin(kind)
    if origin in (UnionType, Union):
        if value is None:
            return None
        (kind,) = (choice for choice in get_args(kind) if choice is not type(None))
        return _parse(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(get_args(kind)[0], item, where) for item in value)
    if origin is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if kind is Extents and isinstance(value, list):
        return _extents(value, where)
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind._from_json(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and type(value) is int and 0 <= value < _LIMIT:
        return value
    if kind is str and isinstance(value, str):
        value.encode()  # a lone surrogate could never be printed: its UnicodeError is a ValueError
        return value
    raise ValueError(f"{where} has an invalid value")


def _extents(pairs: list[object], where: str) -> Extents:
    """Ranges from [start, end] pairs, which must be in order and apart from each other."""
    last = -1
    ranges: list[tuple[int, int]] = []
    for pair in pairs:
        bounds = _parse(tuple[int, ...], pair, where)
        if len(bounds) != 2 or not last < bounds[0] < bounds[1]:
            raise ValueError(f"{where} has an invalid range")
        ranges.append(bounds)
        last = bounds[1]
    return Extents.of(ranges)
