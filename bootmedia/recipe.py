"""What the medium is made of: the Debian release, the packages and files of each variant."""

from __future__ import annotations

import hashlib
import importlib.resources
from dataclasses import dataclass
from importlib.resources.abc import Traversable

from bootmedia.trees import Node, pack, read_tree

SUITE = "trixie"
"""The Debian release."""
PYTHON = "3.13"
"""Its Python, for which packages from outside Debian are fetched."""
COMPONENTS = ("main", "non-free-firmware")
ARCHITECTURE = "amd64"
LIVE_LABEL = "IMAGER_LIVE"
"""The ISO's volume label."""
DATA_LABEL = "IMAGER_DATA"
"""The label of a stick's partition for images and logs."""
EPOCH = 1767225600
"""The time of all files (2026-01-01), unless SOURCE_DATE_EPOCH says another."""
VARIANTS = ("full", "ci")
BUILD_FOLDER = "usr/lib/imager-build"
"""Where the base finds the recipe's lists while it is made."""


@dataclass(frozen=True)
class Recipe:
    """The base of one variant."""

    variant: str
    packages: tuple[str, ...]
    early: tuple[Node, ...]
    """Files that must be there before packages are configured."""
    finish: bytes
    """The script that runs in the system once all packages are in."""

    def key(self, *more: str) -> str:
        """A name for what this recipe makes under the further circumstances `more`."""
        digest = hashlib.sha256(pack(self.early, 0))
        for text in (SUITE, *COMPONENTS, self.variant, *self.packages, *more):
            digest.update(text.encode() + b"\0")
        digest.update(self.finish)
        return digest.hexdigest()[:16]


def data() -> Traversable:
    """The recipe's files."""
    return importlib.resources.files("bootmedia") / "data"


def read_list(text: str) -> tuple[str, ...]:
    """The lines of a list; those that are empty or begin with "#" are for people."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def recipe(variant: str) -> Recipe:
    """The recipe of "full" or "ci"."""
    lists = ["ci", "build"] if variant == "ci" else ["ci", "full", "build"]
    packages = [
        package
        for name in lists
        for package in read_list((data() / "packages" / f"{name}.list").read_text())
    ]
    early = [
        *read_tree(data() / "base"),
        *read_tree(data() / "modules", BUILD_FOLDER),
    ]
    finish = (data() / "hooks" / "finish.sh").read_bytes()
    return Recipe(variant, tuple(packages), tuple(early), finish)
