"""Names of folders and files in a store, made of texts that a disk or a network gave.

They must be readable, and allowed on every file system that a store may lie on: FAT and NTFS forbid
most punctuation, some words, blanks and dots at the end, and do not tell "A" from "a".
"""

from __future__ import annotations

import datetime
import hashlib
import re
import unicodedata

IMAGE_SUFFIX = ".img"
EXPIRED_SUFFIX = ".expired"
PARTIAL_SUFFIX = ".partial"
_COPY = re.compile(r"-c(\d{1,6})$")
_MAX_SLUG = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names of devices in DOS and Windows, with whatever extension."""


def slug(text: str) -> str:
    """A file name that reads like `text`, never empty, hidden, reserved or longer than 64 bytes.

    Two texts that differ only in what is left out get the same name, unless that is nearly all.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = _UNSAFE.sub("-", plain).strip("-._")
    if len(name) < min(3, len(text.strip())):
        name = f"{name}-{_short_hash(text)}".lstrip("-")
    if len(name) > _MAX_SLUG:
        name = f"{name[: _MAX_SLUG - 9].rstrip('-._')}-{_short_hash(text)}"
    return f"{name}_" if _RESERVED.fullmatch(name) else name or "unnamed"


def image_name(created: datetime.datetime, attempt: int = 1) -> str:
    """What an image captured then is called: "2026-11-22T02-00-00Z.img"; later attempts differ."""
    moment = created.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    return f"{moment}{'' if attempt == 1 else f'-{attempt}'}{IMAGE_SUFFIX}"


def copy_name(name: str) -> str:
    """What a compact copy of an image is called: X-c1.img after X.img, X-c2.img after that."""
    stem = name.removesuffix(IMAGE_SUFFIX)
    mark = _COPY.search(stem)
    number = int(mark[1]) + 1 if mark else 1
    return f"{stem[: mark.start()] if mark else stem}-c{number}{IMAGE_SUFFIX}"


def is_copy(name: str) -> bool:
    """Whether this is the name of a compact copy."""
    return _COPY.search(name.removesuffix(IMAGE_SUFFIX)) is not None


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
