"""Incremental images that lie: refused in one line, in bounded time and memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imager.check import check
from imager.image.codec import ChunkEncoder
from imager.image.format import BASE, INCOMPATIBLE_INCREMENTAL, Base, Entry
from imager.image.hashing import ContentDigest
from imager.image.opening import INCREMENTAL, guard_opening
from tests.forgery import ALGORITHM, DISK, Chunk, Forgery, encoded_map, head_with, zstd_frame
from tests.hostile_images import HUGE
from tests.image_files import CHUNK, UUID
from tests.test_hostile import Outcomes, assert_sound, run_all

CHILD = bytes(range(16, 32))
NEW = b"LAST" + DISK.content[-CHUNK + 4 :]
OLD = DISK.content[-CHUNK:]
PARENT_HASHES = b"".join(
    ALGORITHM.digest(DISK.content[start : start + CHUNK]) for start in range(0, DISK.size, CHUNK)
)
BOTH = {"incompatible": INCOMPATIBLE_INCREMENTAL, "minor": 1}


def digest_of(*hashes: bytes) -> bytes:
    digest = ContentDigest(ALGORITHM, DISK.size, CHUNK)
    for content_hash in hashes:
        digest.add(content_hash)
    return digest.result()


def chunk_hashes(last: bytes = OLD) -> list[bytes]:
    found = [PARENT_HASHES[place : place + 32] for place in range(0, 96, 32)]
    return [*found, ALGORITHM.digest(last)]


def parent_run(count: int = 3, **lies: Any) -> Chunk:
    """A reference to the parent's first chunks; what is hashed is their hashes."""
    honest = {"stored_size": 0, "frame_hash": bytes(16), **lies}
    return Chunk(b"", 0, PARENT_HASHES[: 32 * count], count, 3, honest)


def delta(frame: bytes | None = None, **lies: Any) -> Chunk:
    """The last chunk, coded against the parent's."""
    if frame is None:
        frame = ChunkEncoder(ALGORITHM, 3, CHUNK).encode_delta(memoryview(NEW), OLD)
    return Chunk(frame, CHUNK, NEW, 1, 4, {"bases": 1, **lies})


def base(**lies: Any) -> bytes:
    honest = Base(0, CHUNK, 3 * CHUNK, ALGORITHM.digest(OLD))
    return BASE.pack(*honest._replace(**lies))


def reference(**lies: Any) -> dict[str, Any]:
    return {
        "uuid": str(uuid.UUID(bytes=UUID)),
        "content_digest": digest_of(*chunk_hashes()).hex(),
        "created": "2026-01-02T03:04:05+00:00",
        "file": "parent.img",
        "disk_size": DISK.size,
        "chunk_size": CHUNK,
        **lies,
    }


def child(*chunks: Chunk, **changes: Any) -> Forgery:
    """An honest incremental image but for these changes."""
    fields: dict[str, Any] = {
        "version": BOTH,
        "head": head_with(parents=[reference()]),
        "uuid": CHILD,
        "opening": guard_opening(INCREMENTAL),
        "chunks": list(chunks) or [parent_run(), delta()],
        "bases": [base()],
        "footer": {"content_digest": digest_of(*chunk_hashes(NEW))},
        **changes,
    }
    return Forgery(**fields)


def with_parents(parents: Any) -> Forgery:
    return child(head=head_with(parents=parents))


def with_reference(**lies: Any) -> Forgery:
    return with_parents([reference(**lies)])


def bomb(window: int) -> bytes:
    """A frame of the right size that asks for a window of 2^(10 + window / 8) bytes and more."""
    honest = ChunkEncoder(ALGORITHM, 3, CHUNK).encode_delta(memoryview(NEW), OLD)
    assert honest[4] == 0x64  # single segment, checksum, two bytes of size
    size = CHUNK.to_bytes(8, "little")
    return honest[:4] + b"\xc4" + bytes([window]) + size + honest[7:]


def named(frame: bytes) -> bytes:
    """The frame, with a dictionary ID."""
    return frame[:4] + bytes([frame[4] | 3]) + (77).to_bytes(4, "little") + frame[5:]


HONEST_DELTA = ChunkEncoder(ALGORITHM, 3, CHUNK).encode_delta(memoryview(NEW), OLD)

_TABLES: list[Any] = [None, [], 7, "x", {}, [7], [[]], [{}], [reference()] * 9]

HOSTILE: dict[str, Forgery] = {
    **{f"parents is {parents!r}": with_parents(parents) for parents in _TABLES},
    **{
        f"parent's {key} is {value!r}": with_reference(**{key: value})
        for key, value in (
            ("uuid", "x"),
            ("uuid", 1),
            ("uuid", "\ud800" * 36),
            ("uuid", str(uuid.UUID(int=5))),
            ("uuid", str(uuid.UUID(bytes=CHILD))),
            ("content_digest", "00"),
            ("content_digest", "zz"),
            ("content_digest", "00" * 32),
            ("content_digest", None),
            ("created", "yesterday\x1b[2J"),
            ("created", 5),
            ("file", 5),
            ("disk_size", DISK.size + CHUNK),
            ("disk_size", 1 << 200),
            ("chunk_size", 2 * CHUNK),
            ("chunk_size", True),
        )
    },
    "a run without a parent's table": child(version={"incompatible": 0, "minor": 0}),
    "run of 2^32-1 chunks": child(parent_run(3, chunks=(1 << 32) - 1), delta()),
    "unknown flag of a run": child(parent_run(flags=2), delta()),
    "run of no chunks": child(parent_run(chunks=0), delta()),
    "run with a frame's size": child(parent_run(stored_size=7), delta()),
    "run with a frame's hash": child(parent_run(frame_hash=b"x" * 16), delta()),
    "run with bases": child(parent_run(bases=1), delta()),
    "run with a base": child(parent_run(reference=1), delta()),
    "run of other chunks than it says": child(parent_run(content_hash=b"x" * 32), delta()),
    "maps in what is inherited": child(maps=[encoded_map(1, 512, 1024)]),
    "delta of two chunks": child(parent_run(2), delta(chunks=2)),
    "delta without a base": child(parent_run(), delta(bases=0)),
    "delta with two bases": child(parent_run(), delta(bases=2)),
    "delta with a flag": child(parent_run(), delta(flags=1)),
    "delta with a base outside of the table": child(parent_run(), delta(reference=1)),
    "delta with base 2^32-1": child(parent_run(), delta(reference=(1 << 32) - 1)),
    "table of 2^32-1 bases": child(segment_header={"bases": (1 << 32) - 1}),
    "table of more bases than entries": child(bases=[base()] * 3),
    "table without a delta": child(parent_run(4), bases=[base()]),
    "no table": child(bases=[]),
    "base in an image that is not there": child(
        head=head_with(parents=[reference(), reference(uuid=str(uuid.UUID(int=9)))]),
        bases=[base(parent=1)],
    ),
    "base in the image itself": child(
        head=head_with(parents=[reference(), reference(uuid=str(uuid.UUID(bytes=CHILD)))]),
        bases=[base(parent=1)],
    ),
    **{
        f"base's {key} is {value!r}": child(bases=[base(**{key: value})])
        for key, value in (
            ("parent", 1),
            ("parent", (1 << 32) - 1),
            ("length", 0),
            ("length", CHUNK - 1),
            ("length", (1 << 32) - 1),
            ("offset", 0),
            ("offset", 3 * CHUNK + 512),
            ("offset", 4 * CHUNK),
            ("offset", HUGE),
            ("content_hash", b"x" * 32),
        )
    },
    **{
        f"delta's window {window}": child(parent_run(), delta(bomb(window)))
        for window in (0x80, 0xA8, 0xF8, 0xFF)
    },
    "delta that names a dictionary": child(parent_run(), delta(named(HONEST_DELTA))),
    "delta that is no delta": child(parent_run(), delta(zstd_frame(OLD))),
    "delta that is garbage": child(parent_run(), delta(b"\x28\xb5\x2f\xfd" + b"\xff" * 50)),
    "delta cut short": child(parent_run(), delta(HONEST_DELTA[:-5])),
    "delta with something behind": child(parent_run(), delta(HONEST_DELTA * 2)),
    "a delta that is not coded against the base": child(
        parent_run(),
        delta(ChunkEncoder(ALGORITHM, 3, CHUNK).encode_delta(memoryview(NEW), NEW)),
    ),
    "plain opening": child(opening=Forgery().opening),
    "another content digest": child(footer={"content_digest": bytes(32)}),
    "kind 5": child(parent_run(), delta(kind=5)),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "parent.img").write_bytes(Forgery().build())
    return run_all(folder, {name: forgery.build() for name, forgery in HOSTILE.items()})


def test_the_forger_is_honest_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "parent.img").write_bytes(Forgery().build())
    (tmp_path / "child.img").write_bytes(child().build())
    result = check(tmp_path / "child.img")
    assert not result.problems and result.verdict == "ok"


@pytest.mark.parametrize("name", HOSTILE)
def test_lies_are_refused_in_one_line(outcomes: Outcomes, name: str) -> None:
    for outcome in outcomes[name].values():
        assert_sound(outcome)
    assert outcomes[name]["check"].status == 4
    assert outcomes[name]["pipe"].status in (4, 5)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry._replace(chunks=5),
        lambda entry: entry._replace(kind=1),
    ],
)
def test_a_run_behind_the_disk(change: Callable[[Entry], Entry], tmp_path: Path) -> None:
    forged = child(parent_run(4), bases=[])
    forged.chunks[0].lies = {**change(Entry(0, 0, 4, 3, 0, 0, 0, b"", bytes(16)))._asdict()}
    del forged.chunks[0].lies["content_hash"], forged.chunks[0].lies["offset"]
    (tmp_path / "parent.img").write_bytes(Forgery().build())
    (tmp_path / "child.img").write_bytes(forged.build())
    assert check(tmp_path / "child.img").verdict == "failed"


@pytest.mark.parametrize("hint", ["../x/parent.img", "/etc/passwd", ".", "..", "", "x" * 5000])
def test_a_hint_leads_nowhere_else(hint: str, tmp_path: Path) -> None:
    """It is no path; the parent is found by its id all the same."""
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "parent.img").write_bytes(Forgery().build())
    (folder / "child.img").write_bytes(with_reference(file=hint).build())
    assert check(folder / "child.img").verdict == "ok"
    (folder / "parent.img").rename(tmp_path / "parent.img")
    assert check(folder / "child.img").verdict == "failed"
