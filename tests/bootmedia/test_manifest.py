"""Pinned versions: read, given to apt, compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootmedia.manifest import Manifest
from imager.errors import ImagerError, UsageError


def manifest(folder: Path, text: str) -> Manifest:
    path = folder / "manifest"
    path.write_text(text)
    return Manifest.read(path)


def test_versions_are_pinned(tmp_path: Path) -> None:
    found = manifest(tmp_path, "# of June\nbash 5.2-1 amd64\nlibc6:amd64 2.41-1+b2 amd64\n")
    assert found.versions == {"bash": "5.2-1", "libc6:amd64": "2.41-1+b2"}
    assert "Package: bash\nPin: version 5.2-1\nPin-Priority: 1001\n" in found.preferences()


def test_what_differs_is_named(tmp_path: Path) -> None:
    one = manifest(tmp_path, "a 1 all\nb 1 all\nc 1 all\n")
    other = manifest(tmp_path, "a 1 all\nb 2 all\nd 1 all\n")
    assert one.differences(other) == ["b 1 -> 2", "c 1 -> missing", "d not listed -> 1"]
    one.require_same(one)
    with pytest.raises(ImagerError, match="not to be had: b 1 -> 2; c 1 -> missing; d not listed"):
        one.require_same(other)


@pytest.mark.parametrize("text", ["bash\n", "bash 5.2\n", "a b c d\n"])
def test_no_manifest(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="line 1: not a package, a version, an architecture"):
        manifest(tmp_path, text)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as a manifest"):
        Manifest.read(tmp_path / "none")
