"""Images that lie: one line and a refusal, in bounded memory, whatever their numbers say."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imager.check import check
from imager.errors import UnsupportedImageError
from imager.image.format import (
    SEGMENT_HEADER,
    Tag,
)
from imager.image.frames import skippable
from imager.image.stream import ImageStream
from tests.forgery import (
    DISK,
    Forgery,
    head_with,
    record,
    volume_with,
    zstd_frame,
)
from tests.hostile_images import HOSTILE, HUGE, head_text
from tests.image_files import image_bytes, walk

ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202e\ud800"


@dataclass
class Outcome:
    """What one command made of an image."""

    status: int
    out: str
    err: str
    seconds: float


COMMANDS = ("check", "quick", "info", "restore", "salvage", "pipe")
Outcomes = dict[str, dict[str, Outcome]]


def run_all(folder: Path, images: dict[str, bytes]) -> Outcomes:
    """Every command with every image, in one process that may have 600 MiB of address space."""
    commands: list[tuple[list[str], str | None]] = []
    for number, data in enumerate(images.values()):
        path = folder / f"{number}.img"
        path.write_bytes(data)
        targets = []
        for command in ("restore", "salvage", "pipe"):
            target = folder / f"{number}.{command}"
            target.write_bytes(b"\xaa" * DISK.size)
            targets.append(str(target))
        image = str(path)
        yes = ["restore", "--yes", "--quiet"]
        commands += [
            (["check", "--quiet", image], None),
            (["check", "--quick", image], None),
            (["info", "--map", image], None),
            ([*yes, image, targets[0]], None),
            ([*yes, "--salvage", image, targets[1]], None),
            ([*yes, "--verify-while-writing", "-", targets[2]], image),
        ]
    child = subprocess.run(
        [sys.executable, "-m", "tests.hostile_child"],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        # Each arena of malloc takes 64 MiB of addresses, though hardly any memory.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    results = [Outcome(*result) for result in json.loads(child.stdout)]
    found: Outcomes = {}
    for number, name in enumerate(images):
        rows = results[number * len(COMMANDS) : (number + 1) * len(COMMANDS)]
        found[name] = dict(zip(COMMANDS, rows, strict=True))
        for command in ("restore", "salvage", "pipe"):
            target = folder / f"{number}.{command}"
            assert target.stat().st_size == DISK.size, (
                f"{name}: {command} changed the target's size"
            )
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("hostile")
    return run_all(folder, {name: forgery.build() for name, forgery in HOSTILE.items()})


def test_the_forger_is_honest_unless_told_otherwise() -> None:
    assert Forgery().build() == image_bytes(DISK)


def assert_sound(outcome: Outcome) -> None:
    """A documented exit status, and at most one harmless line on standard error."""
    assert outcome.status in (0, 3, 4, 5, 6, 7), outcome
    assert outcome.seconds < 5
    lines = outcome.err.splitlines()
    assert len(lines) <= 1 and outcome.err.startswith("imager: "[: len(outcome.err)])
    for line in (*lines, *outcome.out.splitlines()):
        assert line.isprintable(), repr(line)
        assert len(line) < 2000


@pytest.mark.parametrize("name", HOSTILE)
def test_lies_are_refused_in_one_line(outcomes: Outcomes, name: str) -> None:
    found = outcomes[name]
    for outcome in found.values():
        assert_sound(outcome)
    assert found["check"].status == 4
    if name.startswith("footer's image_size 18"):
        assert found["salvage"].status == 4  # no flag turns a failure into success


# Texts.

LABELS = head_with(
    created=ESCAPES,
    tool=ESCAPES,
    note=ESCAPES,
    consistency=[ESCAPES],
    host={"name": ESCAPES, "system": {ESCAPES: 1}, "firmware": 7},
    source={
        "path": ESCAPES,
        "name": ESCAPES,
        "kind": "disk",
        "model": ESCAPES,
        "serial": ESCAPES,
        "wwn": None,
        "transport": ESCAPES,
        "size": 1,
        "logical_sector": 512,
        "physical_sector": 512,
        "rotational": True,
        "removable": False,
        "read_only": False,
        "backing_file": ESCAPES,
    },
    layout=volume_with(
        label=ESCAPES[:-1], kind=ESCAPES[:-1], reason=ESCAPES[:-1], notes=[ESCAPES[:-1]]
    )["layout"],
)


def test_texts_play_no_tricks_on_the_terminal(tmp_path: Path) -> None:
    damaged = bytearray(Forgery(LABELS).build())
    damaged[walk(bytes(damaged))[2].start + 8] ^= 1
    found = run_all(tmp_path, {"intact": Forgery(LABELS).build(), "damaged": bytes(damaged)})
    for outcomes in found.values():
        for outcome in outcomes.values():
            assert_sound(outcome)
    assert found["intact"]["check"].status == 0
    assert "owned" in found["intact"]["info"].out


def test_names_of_files_play_no_tricks_either(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2Jdisk\udcff.img"
    path.write_bytes(Forgery().build())
    for command, name in (("check", path), ("info", path), ("check", tmp_path / "\x1b\udcfe")):
        child = subprocess.run(
            [sys.executable, "-m", "imager", command, name], capture_output=True, check=False
        )
        assert child.returncode in (0, 4)
        assert b"\x1b" not in child.stdout + child.stderr
        assert b"Traceback" not in child.stderr and b"internal" not in child.stderr


# Versions.


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            {"major": 2, "minor": 3, "release": b"imager 9.9"},
            r"format 2\.3 .*'imager 9\.9' or later",
        ),
        (
            {"incompatible": 1 << 7, "release": b"imager 1.4"},
            r"unknown features 0x80.*'imager 1\.4'",
        ),
        ({"incompatible": 1 << 63}, "unknown features 0x8000000000000000"),
        ({"major": 0}, r"format 0\.0"),
        ({"major": 65535, "release": b"\x1b[2J\r\n\xff"}, "format 65535"),
    ],
)
def test_a_later_version_is_refused_by_name(
    tmp_path: Path, version: dict[str, Any], message: str
) -> None:
    path = tmp_path / "disk.img"
    data = Forgery(version=version).build()
    path.write_bytes(data)
    with pytest.raises(UnsupportedImageError, match=message) as caught:
        check(path)
    assert str(caught.value).isprintable()
    with path.open("rb") as file, pytest.raises(UnsupportedImageError, match=message):
        ImageStream(file.fileno())
    # As well where only the end is left to say so.
    damaged = bytearray(data)
    damaged[600] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UnsupportedImageError, match=message):
        check(path)


def test_what_a_later_release_may_add_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(
        Forgery(
            head_with(more={"x": [1]}), version={"minor": 9, "read_compatible": 8, "optional": HUGE}
        ).build()
    )
    assert check(path).verdict == "ok"


def test_an_unknown_hash_is_not_taken_for_damage(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = bytearray(Forgery().build())
    for frame in walk(bytes(data)):
        if frame.name not in ("TEXT", "DATA", "SEEK"):
            data[frame.start + 12] = 9
    path.write_bytes(data)
    with pytest.raises(UnsupportedImageError, match="hash algorithm number 9"):
        check(path)


# Pipes.


def stream_head() -> bytes:
    frames = walk(Forgery().build())
    return Forgery().build()[: frames[1].end]


STREAMS: dict[str, Callable[[], bytes]] = {
    "many small frames": lambda: zstd_frame(b"x") * 500_000,
    "large frames": lambda: with_block_frame(16 << 20) * 6,
    "a frame without end": lambda: with_block_frame(80 << 20),
    "a record of 4 GiB": lambda: (
        struct.pack("<II4s", 0x184D2A5D, (1 << 32) - 1, b"SEGM") + bytes(1 << 20)
    ),
    "segments that go nowhere": lambda: (
        record(Tag.SEGMENT, SEGMENT_HEADER.pack(0, 0, 0, 0, 0, 0)) * 1000
    ),
    "the end at once": lambda: record(Tag.MANIFEST, b"") * 10,
    "copies instead of segments": lambda: record(Tag.SEGMENT_COPY, bytes(32)) * 10,
    "foreign skippable frames": lambda: skippable(0x184D2A50, bytes(100)) * 1000,
    "nothing more": lambda: b"",
    "zeros": lambda: bytes(1 << 20),
    "noise": lambda: random.Random(1).randbytes(1 << 20),
}


def with_block_frame(size: int) -> bytes:
    """A frame of raw blocks that says nothing of its size."""
    block = bytes.fromhex("000010") + bytes(1 << 17)
    return bytes.fromhex("28b52ffd0088") + block * (size >> 17) + bytes.fromhex("010000")


@pytest.fixture(scope="module")
def stream_outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("streams")
    return run_all(folder, {name: stream_head() + make() for name, make in STREAMS.items()})


@pytest.mark.parametrize("name", STREAMS)
def test_a_pipe_is_not_believed(stream_outcomes: Outcomes, name: str) -> None:
    found = stream_outcomes[name]
    for outcome in found.values():
        assert_sound(outcome)
        assert outcome.status == 4
    assert found["pipe"].err.count("\n") == 1


# What only costs time or memory.


def test_memory_stays_bounded_whatever_is_claimed(tmp_path: Path) -> None:
    """Megabytes of JSON, of index and of seek table that are really there."""
    lists = b'"x":[' + b"[]," * 1_000_000 + b"[]]"
    items = 2_000_000
    found = run_all(
        tmp_path,
        {
            "JSON": Forgery(head_json=head_text(lists)).build(),
            "index": Forgery(items=lambda honest: honest * items).build(),
            "seek table": Forgery(seek_entries=lambda honest: honest + [(8, 0)] * items).build(),
        },
    )
    for outcomes in found.values():
        for outcome in outcomes.values():
            assert outcome.status in (0, 4)
            assert "internal" not in outcome.err and "Traceback" not in outcome.err
    assert [outcomes["check"].status for outcomes in found.values()] == [0, 4, 4]


def test_bait_for_recovery_is_not_worth_much_time(tmp_path: Path) -> None:
    """Hundred thousand records that claim nearly the whole file, none with a right hash."""
    bait = struct.pack("<II4sHH16s", 0x184D2A5D, 3 << 20, b"SEGM", 1, 0, bytes(range(16)))
    path = tmp_path / "disk.img"
    path.write_bytes(stream_head() + bait * 100_000 + bytes(3 << 20))
    begun = time.monotonic()
    result = check(path)
    assert result.verdict == "failed" and result.lost.total == DISK.size
    assert time.monotonic() - begun < 20
