"""A dry run: what a full or an incremental image would hold, guessed from a sample."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from imager.capture import CaptureOptions, capture
from imager.extents import Extents
from imager.preview import preview, sample_of
from tests.command import failure, imager
from tests.disks import MIB, put
from tests.small_store import CHUNK


@given(
    st.lists(st.tuples(st.integers(0, 1 << 24), st.integers(1, 1 << 22)), max_size=30),
    st.integers(1, 40),
    st.sampled_from((1 << 16, 1 << 20)),
)
def test_a_sample_is_even(ranges: list[tuple[int, int]], count: int, chunk_size: int) -> None:
    used = Extents.of((start, start + size) for start, size in ranges)
    size = used.end if used else 1 << 20
    every = list(sample_of(used, size, chunk_size, 1 << 40))
    assert Extents.of(pair for run in every for pair in run.used) == used
    some = list(sample_of(used, size, chunk_size, count))
    assert min(count, len(every)) <= len(some) < 2 * count or some == every
    places = [every.index(run) for run in some]
    assert all(b - a == places[1] for a, b in itertools.pairwise(places))


def test_a_sample_of_an_exabyte_takes_no_time() -> None:
    assert 256 <= len(list(sample_of(Extents.span(0, 1 << 60), 1 << 60, 1 << 16, 256))) < 512


def test_what_an_incremental_image_would_take(tmp_path: Path) -> None:
    """Few chunks: all of them are in the sample, and the guess is the truth."""
    disk = tmp_path / "disk"
    disk.write_bytes(random.Random(1).randbytes(40 * CHUNK))
    options = CaptureOptions(chunk_size=CHUNK)
    capture(disk, tmp_path / "a", options)
    based = CaptureOptions(chunk_size=CHUNK, parent=tmp_path / "a")
    same = preview(disk, based)
    assert same.changed == 0 and same.parent is not None
    put(disk, 3 * CHUNK, random.Random(2).randbytes(2 * CHUNK))
    put(disk, 9 * CHUNK + 5, b"a little")
    found = preview(disk, based)
    assert found.changed == 3 * CHUNK and found.sampled == found.used == 40 * CHUNK
    size = capture(disk, tmp_path / "b", based).image.size
    assert abs(found.expected_size - size) < CHUNK // 2
    assert preview(disk, options).expected_size > 39 * CHUNK


def test_from_the_command_line(tmp_path: Path) -> None:
    disk, store = tmp_path / "disk", tmp_path / "store"
    disk.write_bytes(random.Random(1).randbytes(5 * MIB))
    imager("capture", disk, tmp_path / "a.img")
    put(disk, MIB, b"changed")
    words = ("capture", disk, "--dry-run", "--parent", tmp_path / "a.img")
    out = imager(*words).out
    assert "what differs from its parent" in out and "  a.img of 20" in out
    assert "1.0 MB that differ of 5.2 MB compared" in out
    facts = json.loads(imager(*words, "--json").out)
    assert facts["parent"]["file"] == "a.img" and facts["changed"] == MIB
    assert not list(tmp_path.glob("*.partial"))
    imager("store", "init", store)
    imager("capture", disk, "--store", store)
    assert "0 B that differ" in imager("capture", disk, "--store", store, "--dry-run").out
    put(disk, disk.stat().st_size, bytes(MIB))
    assert "is of a disk of 5242880 bytes" in failure(*words, status=5)
