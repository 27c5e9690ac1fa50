"""An image that is patched while it is unfinished: afterwards it is as if written in one go.

Each disk is captured in one state and becomes another one meanwhile: chunks change, become zeros or
stop being so, are freed or come into use, and grow so much that what follows has to move.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imager.capture import CaptureOptions
from imager.check import check
from imager.disk.source import SourceDevice
from imager.extents import Extents
from imager.image.format import INCOMPATIBLE_FREE, INCOMPATIBLE_INCREMENTAL, MAX_FREE_RECORD, Tag
from imager.image.free import free_records, free_sizes
from imager.image.hashing import hash_algorithm
from imager.image.head import Head
from imager.image.reader import ImageReader
from imager.image.records import OVERHEAD, decode_record, encode_record
from imager.image.sink import FileSink
from imager.image_filler import ImageFiller
from imager.image_merger import DiskMaps, ImageMerger, Merged
from imager.layout.analyse import Analysis
from imager.layout.model import DiskLayout, PartitionTable
from imager.live.patches import Patches
from imager.parent_image import ParentImage
from imager.pipeline import no_progress
from tests.command import failure, imager
from tests.disks import get, put

CHUNK = 1 << 16
SECTOR = 512
OPTIONS = CaptureOptions(threads=2, chunk_size=CHUNK)


@dataclass(frozen=True)
class State:
    """A disk at one time."""

    content: bytes
    used: Extents

    @property
    def stored(self) -> bytes:
        """What an image of it decodes to."""
        data = bytearray(self.content)
        for start, end in self.used.complement(0, len(data)):
            data[start:end] = bytes(end - start)
        return bytes(data)

    def analysis(self) -> Analysis:
        table = PartitionTable("none", None, (), Extents())
        layout = DiskLayout(len(self.content), SECTOR, table, (), ())
        return Analysis(layout, self.used, Extents())

    def maps(self) -> DiskMaps:
        return DiskMaps(self.used, self.used.complement(0, len(self.content)), Extents())


def head_of(state: State, parent: ParentImage | None = None) -> Head:
    bits = INCOMPATIBLE_FREE | (INCOMPATIBLE_INCREMENTAL if parent else 0)
    facts = {
        "created": "2026-01-02T03:04:05+00:00",
        "parents": [parent.reference.to_json()] if parent else [],
        "layout": state.analysis().layout.to_json(),
        "host": {"name": "test"},
    }
    return Head(len(state.content), CHUNK, SECTOR, False, bits, facts)


def filled(
    folder: Path, image: Path, before: State, after: State, parent: Path | None = None
) -> Merged:
    """The image of a disk that was `before` when it was read first, and `after` at the end."""
    disk = folder / "disk"
    disk.write_bytes(before.content)
    sink = FileSink(image)
    with SourceDevice(disk) as device, opened_parent(parent) as opened:
        patches = Patches(device.readinto, None, threads=2)
        head = head_of(before, opened)
        filler = ImageFiller(device, before.analysis(), head, sink, OPTIONS, no_progress, opened)
        with filler:
            filler.fill(no_progress)
            filler.writer.end_chunks()
            put(disk, 0, after.content)
            patches.read(changed(before, after))
            patches.read(after.used - before.used - patches.covered)
            merger = ImageMerger(
                filler, sink, patches, head_of(after, opened), before.used, after.maps()
            )
            merged = merger.merge(no_progress)
            merged.writer.finish({"verdict": "ok", "used": after.used.total})
            merged.writer.close()
        patches.close()
    sink.close()
    return merged


@contextmanager
def opened_parent(parent: Path | None) -> Iterator[ParentImage | None]:
    if parent is None:
        yield None
    else:
        with ParentImage(parent, Extents(), no_progress) as opened:
            yield opened


def changed(before: State, after: State) -> Extents:
    """The pages in which the two disks differ."""
    return Extents.of(
        (start, min(start + 4096, len(before.content)))
        for start in range(0, len(before.content), 4096)
        if before.content[start : start + 4096] != after.content[start : start + 4096]
    )


def decoded(image: Path) -> bytes:
    """By zstd alone, which must not complain."""
    done = subprocess.run(["zstd", "-dc", image], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


# A chunk's content: zeros, something small when compressed, or something that is not.
_KINDS = st.sampled_from(["zero", "zero", "text", "noise"])


@st.composite
def states(draw: st.DrawFn) -> list[State]:
    """Three states of one disk."""
    chunks = draw(st.sampled_from([1, 3, 70, 150, 400]))
    size = chunks * CHUNK + SECTOR * draw(st.sampled_from([0, 1, 77]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    content = bytearray(size)
    used = Extents.span(0, min(size, CHUNK))
    found = []
    for _ in range(3):
        for _ in range(draw(st.integers(0, 8))):
            first = rng.randrange(chunks)
            count = rng.choice((1, 1, 2, 30, 100))
            start = first * CHUNK + SECTOR * rng.randrange(128)
            end = min(start + count * CHUNK - SECTOR * rng.randrange(100), size)
            kind = draw(_KINDS)
            if kind == "zero":
                content[start:end] = bytes(max(end - start, 0))
            elif kind == "text":
                content[start:end] = (b"%d " % first * CHUNK * count)[: max(end - start, 0)]
            else:
                content[start:end] = rng.randbytes(max(end - start, 0))
            span = Extents.span(start, end)
            used = used - span if rng.random() < 0.3 else used | span
        found.append(State(bytes(content), used.align(SECTOR).clip(0, size)))
    return found


@given(states())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_patched_image_is_the_disk_of_the_end(
    tmp_path_factory: pytest.TempPathFactory, made: list[State]
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    image = folder / "image"
    before, after, _ = made
    merged = filled(folder, image, before, after)
    assert decoded(image) == after.stored
    result = check(image, against=folder / "disk")
    assert (result.verdict, result.problems, list(result.differing)) == ("ok", (), [])
    assert merged.zero == zero_bytes(after.stored)


@given(states())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_patched_increment_is_the_disk_of_the_end(
    tmp_path_factory: pytest.TempPathFactory, made: list[State]
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    base, before, after = made
    filled(folder, folder / "base", base, base)
    filled(folder, folder / "image", before, after, folder / "base")
    result = check(folder / "image", against=folder / "disk")
    assert (result.verdict, result.problems, list(result.differing)) == ("ok", (), [])
    imager("export", "--raw", folder / "image", folder / "out")
    assert (folder / "out").read_bytes() == after.stored


def flip_bits(path: Path, offset: int) -> None:
    """Change one byte, or change it back."""
    put(path, offset, bytes([get(path, offset, 1)[0] ^ 0xFF]))


def zero_bytes(data: bytes) -> int:
    """Bytes in chunks that hold nothing."""
    chunks = (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
    return sum(len(chunk) for chunk in chunks if not any(chunk))


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def whole(content: bytes) -> State:
    return State(content, Extents.span(0, len(content)))


def test_small_changes_move_nothing(tmp_path: Path) -> None:
    """Chunks of noise, some of which become other noise: the frames are as long as they were."""
    content = bytearray(noise(1, 300 * CHUNK))
    before = whole(bytes(content))
    for chunk in (0, 5, 70, 71, 130, 299):
        content[chunk * CHUNK : chunk * CHUNK + 5000] = noise(chunk, 5000)
    image = tmp_path / "image"
    merged = filled(tmp_path, image, before, whole(bytes(content)))
    assert merged.moved == 0
    assert decoded(image) == content


def test_growth_moves_only_what_it_must(tmp_path: Path) -> None:
    """A chunk of zeros among noise becomes noise: slack behind a few segments takes that up."""
    content = bytearray(noise(1, 1000 * CHUNK))
    content[70 * CHUNK : 71 * CHUNK] = bytes(CHUNK)
    before = whole(bytes(content))
    content[70 * CHUNK : 71 * CHUNK] = noise(2, CHUNK)
    image = tmp_path / "image"
    merged = filled(tmp_path, image, before, whole(bytes(content)))
    assert 0 < merged.moved < 5 * 64 * CHUNK
    assert decoded(image) == content


def test_a_disk_of_zeros_that_fills_up_is_cut_into_more_segments(tmp_path: Path) -> None:
    before = whole(bytes(1500 * CHUNK))
    after = whole(noise(1, 1500 * CHUNK))
    image = tmp_path / "image"
    filled(tmp_path, image, before, after)
    assert decoded(image) == after.content
    assert check(image).verdict == "ok"


def test_a_disk_that_becomes_empty_leaves_free_space(tmp_path: Path) -> None:
    before = whole(noise(1, 300 * CHUNK))
    after = State(before.content, Extents.span(0, SECTOR))
    image = tmp_path / "image"
    filled(tmp_path, image, before, after)
    assert decoded(image) == after.stored
    assert check(image).verdict == "ok"


def test_no_older_release_reads_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    filled(tmp_path, image, whole(noise(1, CHUNK)), whole(noise(2, CHUNK)))
    facts = imager("info", image).out
    assert facts
    head = image.read_bytes()[512 + 32 :]
    assert int.from_bytes(head[2:4], "little") == 1
    assert int.from_bytes(head[4:12], "little") == INCOMPATIBLE_FREE


def test_a_damaged_free_space_is_noticed_and_costs_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    content = noise(1, 200 * CHUNK)
    filled(tmp_path, image, whole(content), whole(content))
    data = image.read_bytes()
    places = [place for place in range(0, len(data)) if data.startswith(Tag.FREE, place)]
    assert len(places) >= 3
    for place in places[:3]:
        flip_bits(image, place + 100)
        result = check(image)
        assert result.verdict == "failed"
        assert any("free space" in str(problem) for problem in result.problems)
        assert not result.lost
        flip_bits(image, place + 100)
    assert check(image).verdict == "ok"


def test_nothing_hides_in_free_space(tmp_path: Path) -> None:
    """A record with a right hash that holds something, or is as long as the gap is not."""
    image = tmp_path / "image"
    content = noise(1, 100 * CHUNK)
    filled(tmp_path, image, whole(content), whole(content))
    data = image.read_bytes()
    at = data.index(Tag.FREE, 512) - 8
    size = 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    with ImageReader(image) as reader:
        uuid, algorithm = reader.uuid, reader.algorithm
    for payload in (b"x".ljust(size - OVERHEAD, b"\0"), bytes(size - OVERHEAD + 64)):
        image.write_bytes(data)
        put(image, at, encode_record(Tag.FREE, uuid, algorithm, payload))
        result = check(image)
        assert result.verdict == "failed"
        assert any("free space" in str(problem) for problem in result.problems)


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """Of the golden one: each 997th, and all around the beginnings of records."""
    golden = Path(__file__).parent / "golden/1.1-live/live"
    image = tmp_path / "image"
    image.write_bytes(golden.read_bytes())
    data = golden.read_bytes()
    tags = (Tag.FREE, Tag.SEGMENT, Tag.HEAD, Tag.FOOTER)
    places = {at for at in range(len(data)) if data.startswith(tags, at)}
    near = {at + shift for at in places for shift in (-8, -4, 0, 4, 6, 8, 30)}
    for offset in sorted(near | set(range(0, len(data), 997))):
        flip_bits(image, offset)
        assert check(image).verdict == "failed", offset
        flip_bits(image, offset)
    assert check(image).verdict == "ok"


def test_it_is_restored_from_a_pipe(tmp_path: Path) -> None:
    image = tmp_path / "image"
    after = whole(noise(2, 200 * CHUNK))
    filled(tmp_path, image, whole(noise(1, 200 * CHUNK)), after)
    target = tmp_path / "target"
    with image.open("rb") as stdin:
        imager("restore", "--yes", "--verify-while-writing", "-", target, stdin=stdin)
    assert target.read_bytes() == after.content


def test_nobody_goes_on_with_an_unfinished_one(tmp_path: Path) -> None:
    """What an interrupted live capture left is not what another capture would write."""
    disk = tmp_path / "disk"
    state = whole(noise(1, 40 * CHUNK))
    disk.write_bytes(state.content)
    sink = FileSink(tmp_path / "image")
    with SourceDevice(disk) as device:
        filler = ImageFiller(
            device, state.analysis(), head_of(state), sink, OPTIONS, no_progress, None
        )
        with filler:
            filler.fill(no_progress)
            filler.writer.end_chunks()
    sink.close()
    assert "left from an interrupted" in failure("capture", disk, tmp_path / "image", status=5)
    done = imager("capture", "--resume", "--json", disk, tmp_path / "image")
    assert '"resumed": 0' in done.out
    assert check(tmp_path / "image").verdict == "ok"


@given(st.integers(0, 4 * MAX_FREE_RECORD))
@settings(deadline=None)
def test_free_space_of_any_size_is_filled_exactly(size: int) -> None:
    if 0 < size < OVERHEAD:
        with pytest.raises(ValueError, match="free space"):
            list(free_sizes(size))
        return
    algorithm = hash_algorithm("blake3")
    records = list(free_records(size, bytes(16), algorithm))
    assert [len(record) for record in records] == list(free_sizes(size))
    assert sum(map(len, records)) == size
    for record in records:
        assert len(record) <= MAX_FREE_RECORD
        assert not any(decode_record(record, Tag.FREE).payload)
