"""Images that earlier releases made are read by this one: checked, restored, decoded by zstd."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imager.check import check, layout_of
from imager.errors import RefusedError
from imager.export import ExportFormat, export
from imager.extents import Extents
from imager.image.format import OWN_MAPS, ChunkKind
from imager.image.index import Segment
from imager.image.origin import FileOrigin, StreamOrigin
from imager.image.reader import Completeness, ImageReader
from imager.restore import RestoreOptions, plan_restore, restore

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = {
    "1.0": ("full", "sha256", "parts", "partial", "degraded"),
    "1.1": (
        "parent",
        "night",
        "second",
        "unchanged",
        "parts",
        "partial",
        "degraded",
        "sha256",
        "sha256-night",
    ),
    "1.1-live": ("live",),
    "1.2": ("piped", "parts", "night"),
}
CASES = [(version, name) for version, names in VERSIONS.items() for name in names]


def expected(version: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((GOLDEN / version / "expected.json").read_text())
    return facts


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_incremental(image: Path) -> bool:
    """Whether it needs a parent."""
    with ImageReader(image) as reader:
        return reader.head.incremental


def joined(image: Path) -> bytes:
    """The image's bytes, as `cat` of its parts gives them."""
    with ImageReader(image) as reader:
        return b"".join(path.read_bytes() for path in reader.file.paths)


def test_every_golden_image_is_tested() -> None:
    for version, images in VERSIONS.items():
        names = {path.name.split(".")[0] for path in (GOLDEN / version).iterdir()}
        assert names == {*images, "expected"}
        assert sum(path.stat().st_size for path in (GOLDEN / version).iterdir()) < 300_000


@pytest.mark.parametrize(("version", "name"), CASES)
def test_it_is_good(version: str, name: str) -> None:
    facts = expected(version)
    result = check(GOLDEN / version / name)
    assert result.completeness is Completeness.COMPLETE
    assert not result.problems and not result.lost
    assert result.verdict == ("degraded" if name == "degraded" else "ok")
    unreadable = [tuple(pair) for pair in facts["unreadable"].get(name, [])]
    assert result.unreadable == Extents.of(unreadable)
    assert result.head.disk_size == facts["disk_size"]
    layout = layout_of(result.head)
    assert layout.table.kind == "gpt"
    assert [(volume.kind, volume.label) for volume in layout.volumes] == [
        ("vfat", "EFI-SYSTEM"),
        ("ext4", "golden"),
    ]
    left_out = {"1.0": 1, "1.1": 0, "1.1-live": 0, "1.2": 0}[version]
    assert (layout.volumes[left_out].stored == "excluded") == (name == "partial")


@pytest.mark.parametrize(("version", "name"), CASES)
def test_it_restores(version: str, name: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    origin = FileOrigin(GOLDEN / version / name)
    try:
        result = restore(origin, plan_restore(origin, target, RestoreOptions()))
    finally:
        origin.close()
    assert result.verdict == ("degraded" if name == "degraded" else "ok")
    assert sha256(target.read_bytes()) == expected(version)["content"][name]


@pytest.mark.parametrize(("version", "name"), CASES)
def test_it_restores_from_a_pipe(version: str, name: str, tmp_path: Path) -> None:
    stream, target = tmp_path / "stream", tmp_path / "target"
    stream.write_bytes(joined(GOLDEN / version / name))
    fd = os.open(stream, os.O_RDONLY)
    if is_incremental(GOLDEN / version / name):
        with pytest.raises(RefusedError, match="incremental"):
            StreamOrigin(fd)
        os.close(fd)
        return
    origin = StreamOrigin(fd)
    try:
        restore(origin, plan_restore(origin, target, RestoreOptions(verify_first=False)))
    finally:
        origin.close()
        os.close(fd)
    assert sha256(target.read_bytes()) == expected(version)["content"][name]


@pytest.mark.parametrize(("version", "name"), CASES)
def test_zstd_alone_restores_it_or_refuses(version: str, name: str) -> None:
    data = joined(GOLDEN / version / name)
    result = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=False)
    if name == "partial" or version == "1.2" or is_incremental(GOLDEN / version / name):
        assert result.returncode != 0 and not result.stdout
    else:
        assert result.returncode == 0
        assert sha256(result.stdout) == expected(version)["content"][name]


@pytest.mark.parametrize(("version", "name"), CASES)
def test_it_exports(version: str, name: str, tmp_path: Path) -> None:
    raw, full = tmp_path / "raw", tmp_path / "full"
    export(GOLDEN / version / name, raw, ExportFormat.RAW)
    assert sha256(raw.read_bytes()) == expected(version)["content"][name]
    export(GOLDEN / version / name, full)
    assert check(full).verdict == ("degraded" if name == "degraded" else "ok")


def test_the_golden_revisions_are_what_they_are_called() -> None:
    """In each some segments replace others, in part; a run of the parent's chunks is cut, too."""
    for name in VERSIONS["1.2"]:
        with ImageReader(GOLDEN / "1.2" / name) as image:
            assert image.head.revised
            replaced = [
                entry.kind
                for segment in image.written_segments()
                if isinstance(segment, Segment)
                for entry in image.replaced_entries(segment)
            ]
            assert (ChunkKind.PARENT if name == "night" else ChunkKind.DATA) in replaced


def test_the_golden_increments_are_what_they_are_called() -> None:
    """Of each kind of entry there is one."""
    found = set()
    for name in VERSIONS["1.1"]:
        with ImageReader(GOLDEN / "1.1" / name) as image:
            for segment in image.segments():
                assert isinstance(segment, Segment)
                found |= {(entry.kind, entry.flags) for entry in segment.entries}
    assert found == {
        (ChunkKind.DATA, 0),
        (ChunkKind.ZERO, 0),
        (ChunkKind.PARENT, 0),
        (ChunkKind.PARENT, OWN_MAPS),
        (ChunkKind.DELTA, 0),
    }
