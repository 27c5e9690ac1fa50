"""Damaged volumes for all readers, a few of each; and that the fuzzer finds what it should.

`make fuzz` runs long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Volume
from tests.fuzz.child import fuzz
from tests.fuzz.targets import TARGETS, Target, available

SEED = 1
EXECUTIONS = 150
SECONDS = 200.0
"""More than that many take: what ends a run is their number."""
SIZE = 1 << 20


@pytest.mark.parametrize("name", available())
def test_readers(name: str, tmp_path: Path) -> None:
    target = available()[name]
    done = fuzz(target, target.make(tmp_path), SEED, SECONDS, EXECUTIONS)
    assert not done.findings
    assert done.executions == EXECUTIONS
    assert done.reasons or name in ("disk", "noise")
    assert done.answered


def test_names_are_unique() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def volume(folder: Path) -> Path:
    """A bitmap in the first 64 bytes, a header of 64 bytes with a checksum behind it."""
    path = folder / "volume"
    path.write_bytes(bytes([0xF0] * 64 + list(range(1, 65))).ljust(SIZE, b"\0"))
    return path


def checksum(data: bytes) -> int:
    return sum(data)


def head(volume: Volume) -> bytes:
    """What all these readers look at."""
    if volume.size != SIZE:
        raise NotUnderstoodError("wrong size")
    return volume.read(0, 128)


def bitmap(data: bytes) -> Extents:
    """4096 bytes for each bit of the first 32 bytes."""
    bits = (at for at in range(256) if data[at // 8] >> at % 8 & 1)
    return Extents.of((at * 4096, (at + 1) * 4096) for at in bits)


def good(volume: Volume) -> Extents:
    data = head(volume)
    if checksum(data[64:]) != sum(range(1, 65)):
        raise NotUnderstoodError("wrong checksum")
    return bitmap(data)


def crashes(volume: Volume) -> Extents:
    data = head(volume)
    if data[64] == 0:
        raise IndexError("planted")
    return bitmap(data)


def crashes_behind_the_checksum(volume: Volume) -> Extents:
    found = good(volume)
    if volume.read(64, 1) == b"\0":
        raise KeyError("planted")
    return found


def hangs(volume: Volume) -> Extents:
    while volume.read(64, 1) == b"\0":
        pass
    return bitmap(head(volume))


def eats_memory(volume: Volume) -> Extents:
    size = int.from_bytes(volume.read(64, 4), "big")
    return bitmap(head(volume)) if len(bytes(size)) == size else Extents()


def dies(volume: Volume) -> Extents:
    if volume.read(64, 1) == b"\0":
        os._exit(5)
    return bitmap(head(volume))


def loses(volume: Volume) -> Extents:
    data = head(volume)
    return bitmap(data).clip(0, SIZE >> (data[64] != 1))


def reaches_out(volume: Volume) -> Extents:
    return Extents.span(0, volume.size + volume.read(64, 1)[0] // 2)


PLANTED: dict[str, tuple[Callable[[Volume], Extents], str]] = {
    "crash": (crashes, "IndexError: planted"),
    "checksum": (crashes_behind_the_checksum, "KeyError: 'planted'"),
    "hang": (hangs, "no end after"),
    "memory": (eats_memory, "too much memory"),
    "death": (dies, "the process ended with status 5"),
    "loss": (loses, "map leaves out too much"),
    "outside": (reaches_out, "map reaches past the end of the volume"),
}
"""Readers with a fault, and what has to be found."""


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fuzz.judge.CPU_SECONDS", 0.2)
    reader, what = PLANTED[name]
    sums = (f"{__name__}.checksum",) if name == "checksum" else ()
    target = Target(name, volume, reader, sums, 8 * 4096)
    done = fuzz(target, volume(tmp_path), SEED, SECONDS, first_finding=True)
    ((finding, (text, damage)),) = done.findings.items()
    assert finding.startswith(what)
    assert damage.patches
    assert ("test_fuzz_readers.py" in text) is (name in ("crash", "checksum", "hang", "memory"))


def test_a_reader_without_a_fault(tmp_path: Path) -> None:
    target = Target("good", volume, good, (f"{__name__}.checksum",), 8 * 4096)
    done = fuzz(target, volume(tmp_path), SEED, 20.0, 1000)
    assert not done.findings
    assert done.answered > 50
    assert done.reasons["wrong checksum"] > 50


def test_a_run_ends_in_time(tmp_path: Path) -> None:
    target = Target("good", volume, good)
    begin = time.monotonic()
    fuzz(target, volume(tmp_path), SEED, 1.0)
    assert 1.0 <= time.monotonic() - begin < 20.0
