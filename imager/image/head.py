"""The head, which says at once what an image is of, and the manifest, which says how it went.

Both are JSON, so that a person and any language can read them. The head begins with a fixed binary
part (version, feature bits) whose shape never changes. The manifest repeats the head, so that
neither is needed to read an image whose other one is damaged.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Never, TypeVar

from imager.errors import ImageError, UnsupportedImageError
from imager.image.format import (
    INCOMPATIBLE_FREE,
    INCOMPATIBLE_INCREMENTAL,
    INCOMPATIBLE_REVISED,
    KNOWN_INCOMPATIBLE,
    MAJOR,
    MAX_CHUNK,
    MAX_JSON,
    MIN_CHUNK,
    MINOR,
    MINOR_INCREMENTAL,
    MINOR_REVISED,
    RELEASE,
    VERSION,
    Version,
)
from imager.image.parents import ParentReference, decode_parents

Json = Mapping[str, object]
T = TypeVar("T")

_MAX_DEPTH = 32
"""Levels of lists and objects: printing them must not exhaust Python's stack."""


@dataclass(frozen=True)
class Head:
    """What is known before the first chunk."""

    disk_size: int
    """Bytes."""
    chunk_size: int
    """Bytes, a power of two."""
    sector_size: int
    """The disk's logical sector, bytes."""
    split: bool = False
    """Whether the image is written in parts."""
    incompatible: int = 0
    """Feature bits that a reader must know."""
    facts: Json = field(default_factory=dict)
    """Everything else (docs/format.md, "Head"): time, host, source, layout, note."""

    def to_json(self) -> dict[str, object]:
        """The JSON part of the head record."""
        return {
            "disk_size": self.disk_size,
            "chunk_size": self.chunk_size,
            "sector_size": self.sector_size,
            "split": self.split,
            **self.facts,
        }

    @property
    def chunks(self) -> int:
        """How many chunks the disk has; the last may be shorter."""
        return -(-self.disk_size // self.chunk_size)

    @property
    def incremental(self) -> bool:
        """Whether a parent is needed to read the image."""
        return bool(self.incompatible & INCOMPATIBLE_INCREMENTAL)

    @property
    def revised(self) -> bool:
        """Whether some segments replace what others say."""
        return bool(self.incompatible & INCOMPATIBLE_REVISED)

    @functools.cached_property
    def parents(self) -> tuple[ParentReference, ...]:
        """The images that it refers to, its parent first; ImageError where that makes no sense."""
        if not self.incremental:
            return ()
        return decode_parents(self.facts.get("parents"), self.disk_size, self.chunk_size)

    def encode(self) -> bytes:
        """The head record's payload."""
        later = self.incompatible & (INCOMPATIBLE_INCREMENTAL | INCOMPATIBLE_FREE)
        minor = MINOR_REVISED if self.revised else MINOR_INCREMENTAL if later else MINOR
        version = Version(MAJOR, minor, self.incompatible, 0, 0, RELEASE)
        return VERSION.pack(*version) + dump(self.to_json())


@dataclass(frozen=True)
class Manifest:
    """How the capture went, known at its end."""

    head: Head
    facts: Json
    """Verdict, counts, unreadable ranges (docs/format.md, "Manifest")."""

    @property
    def verdict(self) -> str:
        """`ok` or `degraded`."""
        return get(self.facts, "verdict", str)

    def encode(self) -> bytes:
        """The manifest record's payload."""
        version = self.head.encode()[: VERSION.size]
        return version + dump({"head": self.head.to_json(), **self.facts})


def decode_head(payload: bytes) -> Head:
    """Parse a head record's payload.

    Raises UnsupportedImageError for a version or feature that this release does not know, and
    ImageError where the payload makes no sense.
    """
    version = _version(payload)
    return _head(version, load(payload[VERSION.size :], "head"))


def decode_manifest(payload: bytes) -> Manifest:
    """Parse a manifest record's payload; errors as of `decode_head`."""
    version = _version(payload)
    facts = dict(load(payload[VERSION.size :], "manifest"))
    head = facts.pop("head", None)
    if not isinstance(head, dict):
        raise ImageError("the manifest does not repeat the head")
    manifest = Manifest(_head(version, head), facts)
    if manifest.verdict not in ("ok", "degraded"):
        raise ImageError("the manifest's verdict makes no sense")
    return manifest


def get(facts: Json, key: str, kind: type[T]) -> T:
    """The value of `key`; ImageError unless it is there and of this type."""
    value = facts.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ImageError(f"the image's description has no sensible {key!r}")
    return value


def dump(facts: Json) -> bytes:
    """JSON as records hold it."""
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )


def load(data: bytes, what: str) -> dict[str, object]:
    """Parse an untrusted JSON object; ImageError where it is none.

    Stricter than `json.loads`, which lets later keys hide earlier ones and makes up NaN.
    """
    try:
        if len(data) > MAX_JSON:
            raise ValueError("too long")
        facts = json.loads(
            data, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite
        )
        _check_depth(facts, _MAX_DEPTH)
    except (ValueError, RecursionError):
        raise ImageError(f"the {what} is not valid JSON") from None
    if not isinstance(facts, dict):
        raise ImageError(f"the {what} is not a JSON object")
    return facts


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(constant: str) -> Never:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _check_depth(value: object, levels: int) -> None:
    if isinstance(value, (dict, list)):
        if levels == 0:
            raise ValueError("nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, levels - 1)


def _version(payload: bytes) -> Version:
    if len(payload) < VERSION.size:
        raise ImageError("the head is cut short")
    version = Version(*VERSION.unpack_from(payload))
    if version.major != MAJOR or version.incompatible & ~KNOWN_INCOMPATIBLE:
        release = version.release.rstrip(b"\0").decode("ascii", "replace")
        unknown = version.incompatible & ~KNOWN_INCOMPATIBLE
        what = f"unknown features {unknown:#x}" if version.major == MAJOR else "another version"
        raise UnsupportedImageError(
            f"image format {version.major}.{version.minor} with {what}: "
            f"it needs {release!r} or later to be read"
        )
    return version


def _head(version: Version, facts: dict[str, object]) -> Head:
    facts = dict(facts)
    disk_size = get(facts, "disk_size", int)
    chunk_size = get(facts, "chunk_size", int)
    sector_size = get(facts, "sector_size", int)
    split = get(facts, "split", bool)
    for key in ("disk_size", "chunk_size", "sector_size", "split"):
        del facts[key]
    if not 0 <= disk_size < 1 << 63:
        raise ImageError(f"a disk of {disk_size} bytes makes no sense")
    if chunk_size & (chunk_size - 1) or not MIN_CHUNK <= chunk_size <= MAX_CHUNK:
        raise ImageError(f"chunks of {chunk_size} bytes make no sense")
    if sector_size & (sector_size - 1) or not 512 <= sector_size <= MIN_CHUNK:
        raise ImageError(f"sectors of {sector_size} bytes make no sense")
    head = Head(disk_size, chunk_size, sector_size, split, version.incompatible, facts)
    if head.incremental:
        decode_parents(facts.get("parents"), disk_size, chunk_size)
    return head
