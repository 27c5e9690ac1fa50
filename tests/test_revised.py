"""Revised images: of each place of the disk what was written last counts, whatever is damaged."""

from __future__ import annotations

import os
import random
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.check import check
from imager.errors import ImageError, UnsupportedImageError, WriteFailedError
from imager.export import ExportFormat, export
from imager.extents import Extents
from imager.image.format import FOOTER_RECORD_SIZE, INDEX_ITEM, RangeKind
from imager.image.hashing import hash_algorithm
from imager.image.head import decode_head
from imager.image.index import Segment
from imager.image.origin import FileOrigin, StreamOrigin
from imager.image.reader import ImageReader
from imager.image.revision import Span, in_force
from imager.restore import RestoreOptions, plan_restore, restore
from tests.command import zstd_refuses
from tests.image_files import CHUNK, Frame, read_disk, walk
from tests.revised_images import (
    History,
    make_history,
    read_naively,
    revised_bytes,
    write_revised_parts,
)

SIMPLE = make_history(7)
IMAGE = revised_bytes(SIMPLE)
FRAMES = walk(IMAGE)

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=30)


@given(spans)
def test_of_overlapping_segments_the_last_one_counts(made: list[tuple[int, int]]) -> None:
    written = [Span(start, start + size) for start, size in made]
    expected = {n: number for number, span in enumerate(written) for n in range(*span)}
    found = list(in_force(written))
    assert {n: each.number for each in found for n in range(each.start, each.end)} == expected
    for one, other in pairwise(found):
        assert one.end <= other.start
        assert one.end < other.start or one.number != other.number


def restored(image: Path, target: Path, salvage: bool = False) -> bytes:
    with FileOrigin(image) as origin:
        options = RestoreOptions(salvage=salvage)
        restore(origin, plan_restore(origin, target, options))
    return target.read_bytes()


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1 << 32), st.integers(0, 5))
def test_every_way_to_read_it_gives_the_last_content(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rounds: int
) -> None:
    history = make_history(seed, rounds)
    folder = tmp_path_factory.mktemp("revised")
    image = folder / "image"
    image.write_bytes(revised_bytes(history))
    require_good(image, history)
    assert restored(image, folder / "disk") == history.last.stored
    export(image, folder / "raw", ExportFormat.RAW)
    assert (folder / "raw").read_bytes() == history.last.stored
    assert from_pipe(image, folder / "piped") == history.last.stored


def require_good(image: Path, history: History) -> None:
    """AssertionError unless a check says so, and the content is that of the history's end."""
    result = check(image)
    assert (result.verdict, result.problems) == ("ok", ())
    assert read_disk(image) == (history.last.stored, Extents())
    with ImageReader(image) as reader:
        unused = Extents()
        for segment in reader.segments():
            assert isinstance(segment, Segment)
            unused |= segment.map(RangeKind.UNUSED)
        assert unused == history.last.unused


def from_pipe(image: Path, target: Path) -> bytes:
    """What a restore makes of it that sees it once, front to back."""
    reading, writing = os.pipe()
    if not os.fork():
        os.close(reading)
        with os.fdopen(writing, "wb") as out:
            out.write(image.read_bytes())
        os._exit(0)
    os.close(writing)
    origin = StreamOrigin(reading)
    try:
        restore(origin, plan_restore(origin, target, RestoreOptions(verify_first=False)))
    finally:
        origin.close()
        os.close(reading)
        os.wait()
    return target.read_bytes()


def test_the_document_is_enough_to_read_it() -> None:
    assert read_naively(IMAGE) == SIMPLE.last.stored


def test_plain_zstd_refuses_it_and_what_export_makes_it_takes(tmp_path: Path) -> None:
    image, plain = tmp_path / "image", tmp_path / "plain"
    image.write_bytes(IMAGE)
    assert zstd_refuses(image)
    assert b"imager export IMAGE NEW" in IMAGE[:512]
    export(image, plain)
    assert not zstd_refuses(plain)
    with ImageReader(plain) as reader:
        assert not reader.head.revised
        assert reader.manifest is not None
        assert not {"segments", "plain_zstd"} & set(reader.manifest.facts)


def test_parts_hold_it_as_well(tmp_path: Path) -> None:
    write_revised_parts(tmp_path / "image", SIMPLE, 14_000)
    assert len(list(tmp_path.iterdir())) > 3
    require_good(tmp_path / "image", SIMPLE)
    assert restored(tmp_path / "image", tmp_path / "disk") == SIMPLE.last.stored


def test_an_older_release_says_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imager.image.head.KNOWN_INCOMPATIBLE", 7)
    with pytest.raises(UnsupportedImageError, match="unknown features 0x8"):
        decode_head(IMAGE[512 + 32 :][:4096])


def named(name: str) -> list[Frame]:
    return [frame for frame in FRAMES if frame.name == name]


def damaged(*frames: Frame) -> bytes:
    """The image with the middle of these frames overwritten."""
    data = bytearray(IMAGE)
    for frame in frames:
        middle = (frame.start + frame.end) // 2
        data[middle : middle + 4] = bytes(byte ^ 0x55 for byte in data[middle : middle + 4])
    return bytes(data)


def stays_right(path: Path) -> Extents:
    """AssertionError if anything that is not reported lost is not what it was; what is lost."""
    content, lost = read_disk(path)
    expected = SIMPLE.last.stored
    for start, end in lost.complement(0, len(expected)):
        assert content[start:end] == expected[start:end]
    return lost


def test_every_damaged_frame_is_noticed(tmp_path: Path) -> None:
    """Replaced ones too, which cost nothing."""
    path = tmp_path / "image"
    costs = 0
    one_of_each = {frame.name: frame for frame in FRAMES}.values()
    for frame in [*one_of_each, *random.Random(3).sample(named("DATA"), 15)]:
        path.write_bytes(damaged(frame))
        result = check(path)
        assert result.verdict == "failed" and result.problems, frame
        assert stays_right(path) == result.lost
        costs += bool(result.lost)
        if frame.name != "DATA":
            assert not result.lost, frame
        else:
            assert result.lost.total <= CHUNK
    assert 0 < costs < 15


def test_without_its_index_all_of_it_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(damaged(*named("INDX")))
    assert stays_right(tmp_path / "image") == Extents()
    assert restored(tmp_path / "image", tmp_path / "disk") == SIMPLE.last.stored


@pytest.mark.parametrize("which", (0, 2, 9, len(named("SEGM")) - 1))
def test_what_a_lost_segment_replaced_is_not_taken_for_true(which: int, tmp_path: Path) -> None:
    """Neither with the index, which says what it covers, nor without, when nothing is known."""
    segment, copy = named("SEGM")[which], named("SEGC")[which]
    path = tmp_path / "image"
    path.write_bytes(damaged(segment, copy))
    lost = stays_right(path)
    assert lost == check(path).lost
    path.write_bytes(damaged(segment, copy, *named("INDX")))
    assert stays_right(path) == check(path).lost
    assert check(path).lost.total == SIMPLE.first.size
    with pytest.raises(ImageError, match="cannot be restored"):
        restored(path, tmp_path / "disk")


def test_cut_anywhere_it_is_unfinished_and_holds_what_was_sent(tmp_path: Path) -> None:
    path = tmp_path / "image"
    rng = random.Random(5)
    for frame in rng.sample(FRAMES[4:], 10):
        path.write_bytes(IMAGE[: (frame.start + frame.end) // 2])
        assert check(path, quick=True).verdict == "failed"
        with pytest.raises(ImageError, match="cut short"):
            restored(path, tmp_path / "disk")
        piped = pytest.raises(ImageError, match=r"cut short|end is not|no manifest")
        with piped:
            from_pipe(path, tmp_path / "piped")


@pytest.mark.parametrize(
    "change",
    [
        {"start": 5 * CHUNK + 512},
        {"end": SIMPLE.first.size + CHUNK},
        {"start": 9 * CHUNK, "end": 9 * CHUNK},
        {"start": 200 * CHUNK, "end": 100 * CHUNK},
    ],
)
def test_an_index_that_lies_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """Its hashes are right: only its numbers are not."""
    with ImageReader(write(tmp_path / "honest", IMAGE)) as reader:
        algorithm, items = reader.algorithm, list(reader.written_items())
    data = bytearray(IMAGE)
    (index,) = named("INDX")
    place = index.start + 32 + 8 + (len(items) - 1) * INDEX_ITEM.size
    INDEX_ITEM.pack_into(data, place, *items[-1]._replace(**change))
    data[index.end - 32 : index.end] = algorithm.digest(data[index.start : index.end - 32])
    for footer in named("FOOT"):
        data[footer.start + 32 + 168 : footer.start + 32 + 200] = algorithm.digest(
            data[index.start : index.end]
        )
        end = footer.start + FOOTER_RECORD_SIZE
        data[end - 32 : end] = algorithm.digest(data[footer.start : end - 32])
    with pytest.raises(ImageError, match="the index"):
        check(write(tmp_path / "lying", bytes(data)))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def renumbered(number: int, to: int) -> bytes:
    """The image with another number in one segment, all of whose hashes are right."""
    data = bytearray(IMAGE)
    segment = named("SEGM")[number]
    struct.pack_into("<I", data, segment.start + 32, to)
    digest = hash_algorithm("blake3").digest(data[segment.start : segment.end - 32])
    data[segment.end - 32 : segment.end] = digest
    return bytes(data)


def test_a_stream_whose_segments_are_not_in_order_is_refused(tmp_path: Path) -> None:
    for number, to in ((4, 5), (len(named("SEGM")) - 1, 0), (1, 1 << 31)):
        image = write(tmp_path / "image", renumbered(number, to))
        with pytest.raises(ImageError, match="not in order"):
            from_pipe(image, tmp_path / f"piped-{number}")


def test_an_image_with_too_many_segments_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imager.image.writer.MAX_REVISED_SEGMENTS", len(named("SEGM")) - 1)
    with pytest.raises(WriteFailedError, match="too many chunks change"):
        revised_bytes(SIMPLE)


def test_nor_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = write(tmp_path / "image", IMAGE)
    monkeypatch.setattr("imager.image.revision.MAX_REVISED_SEGMENTS", len(named("SEGM")) - 1)
    with pytest.raises(ImageError, match="too many segments"):
        check(image)
