"""The image format: what is written comes back, by our reader and by others' tools."""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.check import check
from imager.errors import ImageError, RefusedError, UsageError, WriteFailedError
from imager.extents import Extents
from imager.image.codec import ChunkEncoder
from imager.image.files import ImageFile
from imager.image.format import (
    MAX_JSON,
    MAX_SEGMENT,
    MAX_ZERO_RUN,
    OPENING_SIZE,
    SEGMENT_RANGES,
    RangeKind,
)
from imager.image.frames import zero_frame
from imager.image.hashing import hash_algorithm
from imager.image.head import Head
from imager.image.index import Segment
from imager.image.opening import PARTIAL, UNFINISHED, guard_opening, plain_opening
from imager.image.reader import Completeness, ImageReader
from imager.image.sink import FileSink
from imager.image.stream import ImageStream
from imager.image.writer import ImageWriter
from tests.image_files import (
    CHUNK,
    UUID,
    Disk,
    MemorySink,
    image_bytes,
    join,
    make_image,
    read_disk,
    rich_disk,
    small_parts,
    walk,
    write_disk,
)

SECTOR = 512
SECTORS = CHUNK // SECTOR


def zstd(*arguments: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["zstd", *arguments], input=data, capture_output=True, check=False)


@st.composite
def disks(draw: st.DrawFn) -> Disk:
    """Small disks of any size and with any maps; chunks of zeros, of one byte, of noise."""
    sector = draw(st.sampled_from([512, 4096]))
    sectors = draw(st.integers(0, 12 * CHUNK // sector))
    size = sectors * sector
    content = bytearray(size)
    seed = random.Random(draw(st.integers(0, 1000)))
    for start in range(0, size, CHUNK):
        kind = draw(st.sampled_from("zzbbn"))
        end = min(start + CHUNK, size)
        if kind == "b":
            content[seed.randrange(start, end)] = seed.randrange(1, 256)
        elif kind == "n":
            content[start:end] = seed.randbytes(end - start)
    # Cut the disk at some sectors, and let each piece be of some kind.
    cuts = draw(st.lists(st.integers(0, sectors), max_size=12))
    bounds = sorted({0, sectors, *cuts})
    kinds: dict[str, list[tuple[int, int]]] = {"unused": [], "excluded": [], "unreadable": []}
    for start, end in pairwise(bounds):
        name = draw(st.sampled_from(["used", "used", *kinds]))
        if name in kinds:
            kinds[name].append((start * sector, end * sector))
    return Disk(
        bytes(content),
        unused=Extents.of(kinds["unused"]),
        excluded=Extents.of(kinds["excluded"]),
        unreadable=Extents.of(kinds["unreadable"]),
        sector_size=sector,
    )


def content_digest(stored: bytes) -> bytes:
    """As docs/format.md says, computed anew."""
    hashes = [blake3(stored[at : at + CHUNK]).digest() for at in range(0, len(stored), CHUNK)]
    leaves = [
        blake3(b"".join(hashes[at : at + 1024])).digest() for at in range(0, len(hashes), 1024)
    ]
    head = b"imager content 1\0" + len(stored).to_bytes(8, "little") + CHUNK.to_bytes(8, "little")
    return blake3(head + b"".join(leaves)).digest()


@settings(max_examples=120, deadline=None)
@given(disks(), st.sampled_from(["blake3", "sha256"]))
def test_what_is_written_comes_back(disk: Disk, hash_name: str) -> None:
    stored = disk.stored
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disk.img"
        written = make_image(path, disk, hash_name=hash_name)
        assert written.files == (path,) and written.size == path.stat().st_size
        assert read_disk(path) == (stored, Extents())
        with ImageReader(path) as image:
            assert image.head == disk.head()
            assert image.completeness is Completeness.COMPLETE
            assert not image.problems
            assert image.manifest is not None
            assert image.manifest.verdict == ("degraded" if disk.unreadable else "ok")
            segments = [segment for segment in image.segments() if isinstance(segment, Segment)]
        for kind, extents in (
            (RangeKind.UNUSED, disk.unused),
            (RangeKind.EXCLUDED, disk.excluded),
            (RangeKind.UNREADABLE, disk.unreadable),
        ):
            pairs = [pair for segment in segments for pair in segment.map(kind)]
            assert Extents.of(pairs) == extents
        assert check(path, threads=1).verdict == ("degraded" if disk.unreadable else "ok")
        if hash_name == "blake3":
            assert written.content_digest == content_digest(stored)
        # And without our reader: each frame, at the place that the seek table gives, alone.
        data = path.read_bytes()
        decoded = b"".join(
            zstandard.ZstdDecompressor(max_window_size=1 << 17).decompress(data[frame.start : frame.end])
            for frame in walk(data)
            if frame.name == "DATA"
        )  # fmt: skip
        assert decoded == stored


@settings(max_examples=15, deadline=None)
@given(disks())
def test_zstd_gives_the_disk_or_refuses(disk: Disk) -> None:
    data = image_bytes(disk)
    result = zstd("-dc", data=data)
    if disk.excluded:
        assert result.returncode != 0 and result.stdout == b""
        assert b"Dictionary mismatch" in result.stderr
        assert zstd("-t", data=data).returncode != 0
    else:
        assert result.returncode == 0 and result.stdout == disk.stored


def test_every_kind_of_frame_lies_where_the_document_says() -> None:
    frames = walk(image_bytes(rich_disk(excluded=False)))
    names = [frame.name for frame in frames]
    order = "".join(f"{name} " for name in names)
    assert re.fullmatch(
        r"TEXT HEAD ((DATA ){1,64}SEGM ){3}VOID (SEGC ){3}MANI FOOT INDX FOOT SEEK ", order
    )
    assert frames[0].end == 512
    place = {name: frames[names.index(name)] for name in names}
    last_segment = max(frame.end for frame in frames if frame.name == "SEGM")
    # Whatever is stored twice is stored in different sectors.
    assert place["SEGC"].start - last_segment >= 4096
    assert place["MANI"].start - place["HEAD"].end >= 4096
    footers = [frame for frame in frames if frame.name == "FOOT"]
    assert footers[1].start - footers[0].end >= 4096


@pytest.mark.parametrize("excluded", [False, True])
def test_copies_are_apart_even_in_the_smallest_image(excluded: bool) -> None:
    ranges = Extents.of([(0, 512)] if excluded else [])
    frames = {frame.name: frame for frame in walk(image_bytes(Disk(bytes(1024), excluded=ranges)))}
    assert frames["SEGC"].start - frames["SEGM"].end >= 4096
    assert frames["MANI"].start - frames["HEAD"].end >= 4096


@pytest.mark.parametrize("size", [0, 512, (1 << 63) - 1])
@pytest.mark.parametrize("split", [False, True])
def test_openings_take_one_sector(size: int, split: bool) -> None:
    for opening in (
        plain_opening(size, split),
        guard_opening(UNFINISHED),
        guard_opening(PARTIAL),
    ):
        assert len(opening) == 512
        assert opening.endswith(b"\n")
    text = plain_opening(size, split)[8:].decode("ascii")
    assert str(size) in text and "zstd -t" in text and "conv=fsync" in text


@pytest.mark.parametrize("split", [None, 25_000])
def test_the_commands_in_the_opening_restore_the_disk(tmp_path: Path, split: int | None) -> None:
    disk = rich_disk(excluded=False)
    make_image(tmp_path / "disk.img", disk, split=split)
    first = min(tmp_path.glob("disk.img*"))
    result = run_opening(first.read_bytes(), tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "target").read_bytes() == disk.stored


def test_the_commands_in_the_opening_notice_a_cut_between_two_frames(tmp_path: Path) -> None:
    data = image_bytes(rich_disk(excluded=False))
    cut = data[: walk(data)[20].end]
    assert zstd("-t", data=cut).returncode == 0
    (tmp_path / "disk.img").write_bytes(cut)
    assert run_opening(cut, tmp_path).returncode != 0
    assert not (tmp_path / "target").exists()


def run_opening(image: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the commands that the opening gives, for X = disk.img."""
    text = image[8:512].decode()
    script = text[text.index("overwritten):\n") + len("overwritten):\n") :]
    script = script.replace("/dev/sdX", "target").replace("X", "disk.img")
    return subprocess.run(
        ["sh", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )


def test_an_unfinished_image_is_guarded_until_its_end(tmp_path: Path) -> None:
    disk = rich_disk(excluded=False)
    path = tmp_path / "disk.img"
    sink = FileSink(path)
    partial = tmp_path / "disk.img.partial"
    seen: list[bytes] = []
    original = FileSink.finish

    def finish(self: FileSink, opening: bytes) -> tuple[Path, ...]:
        self.settle()
        seen.append(partial.read_bytes())
        return original(self, opening)

    with patch.object(FileSink, "finish", finish):
        write_disk(sink, disk)
    assert not partial.exists()
    assert seen[0][:512] == guard_opening(UNFINISHED)
    refused = zstd("-dc", data=seen[0])
    assert refused.returncode != 0 and refused.stdout == b""
    assert path.read_bytes()[:512] == plain_opening(disk.size, False)
    assert path.read_bytes()[512:] == seen[0][512:]
    # To a pipe nothing can be exchanged, so it is right from the start.
    assert image_bytes(disk) == path.read_bytes()


class Calls:
    """Records what is done to files, by name."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        """A write of the first sector alone is an "opening"."""

    def _name(self, fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def shims(self) -> Iterator[Any]:
        for name in ("write", "pwrite", "fsync", "ftruncate"):
            yield patch.object(os, name, self._shim(name, getattr(os, name)))
        real_rename = os.rename

        def rename(source: Path, target: Path) -> None:
            self.made.append(("rename", Path(target).name))
            real_rename(source, target)

        yield patch.object(os, "rename", rename)

    def _shim(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def shim(fd: int, *arguments: Any) -> Any:
            opening = name == "pwrite" and (len(arguments[0]), arguments[1]) == (OPENING_SIZE, 0)
            self.made.append(("opening" if opening else name, self._name(fd)))
            return real(fd, *arguments)

        return shim


@pytest.mark.parametrize("split", [None, 25_000])
def test_no_final_name_before_everything_is_synced(tmp_path: Path, split: int | None) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    calls = Calls()
    with small_parts():
        sink = FileSink(folder / "disk.img", split)
        shims = list(calls.shims())
        for shim in shims:
            shim.start()
        try:
            files = write_disk(sink, rich_disk(), split=split is not None).files
        finally:
            for shim in shims:
                shim.stop()
    made = calls.made
    renames = [at for at, (call, _) in enumerate(made) if call == "rename"]
    assert [made[at][1] for at in renames] == [path.name for path in files]
    assert len(files) == (1 if split is None else 4)
    for at, (call, name) in enumerate(made):
        if call in ("pwrite", "opening", "ftruncate"):
            # What was written is synced before any name changes.
            assert at < renames[0]
            assert ("fsync", name) in made[at : renames[0]]
    # The opening comes when all else is safe, alone, and is synced alone.
    (opening,) = (at for at, (call, _) in enumerate(made) if call == "opening")
    assert not [call for call, _ in made[opening:] if call in ("write", "pwrite")]
    for path in files:
        partial = re.sub(r"\.last$", "", path.name) + ".partial"
        last_write = max(at for at, done in enumerate(made) if done == ("pwrite", partial))
        assert ("fsync", partial) in made[last_write:opening]
    # The name that makes it complete becomes durable after the others, and is made durable.
    if len(files) > 1:
        assert ("fsync", "store") in made[renames[-2] : renames[-1]]
    assert made[-1] == ("fsync", "store")


def test_names_and_sizes_of_parts(tmp_path: Path) -> None:
    disk = rich_disk(excluded=False)
    files = make_image(tmp_path / "disk.img", disk, split=25_000).files
    names = [f"disk.img.{number:04}" for number in range(1, len(files) + 1)]
    assert len(names) >= 4
    assert [file.name for file in files] == [*names[:-1], names[-1] + ".last"]
    assert all(file.stat().st_size <= 25_000 for file in files)
    data = join(files)
    assert zstd("-dc", data=data).stdout == disk.stored
    frames = {frame.start: frame for frame in walk(data)}
    start = 0
    for number, file in enumerate(files, 1):
        if number > 1:
            assert frames[start].name == "PART"
            payload = data[start + 32 : frames[start].end - 32]
            assert payload == number.to_bytes(8, "little") + start.to_bytes(8, "little")
        start += file.stat().st_size
    for name in ("disk.img", *(file.name for file in files)):
        with ImageFile(tmp_path / name) as image:
            assert image.paths == files
            assert image.read(0, image.size) == data
    assert check(tmp_path / "disk.img").verdict == "degraded"
    assert read_disk(tmp_path / "disk.img") == (disk.stored, Extents())


def test_parts_have_limits(tmp_path: Path) -> None:
    for size in (0, (1 << 26) - 1, 1 << 32):
        with pytest.raises(UsageError):
            FileSink(tmp_path / "disk.img", size)
    with pytest.raises(WriteFailedError, match="larger --split"):
        make_image(tmp_path / "disk.img", rich_disk(), split=10_000)
    assert all(path.name.endswith(".partial") for path in tmp_path.iterdir())


def test_an_image_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    make_image(path, Disk(bytes(512)))
    before = path.read_bytes()
    with pytest.raises(RefusedError):
        make_image(path, rich_disk())
    other = tmp_path / "other.img"
    sink = FileSink(other)
    other.write_bytes(b"appeared meanwhile")
    with pytest.raises(RefusedError):
        write_disk(sink, rich_disk())
    sink.close()
    assert path.read_bytes() == before and other.read_bytes() == b"appeared meanwhile"


def streamed(data: bytes) -> tuple[ImageStream, list[tuple[Segment, dict[int, bytes]]]]:
    """The image through a real pipe."""
    read_end, write_end = os.pipe()

    def send() -> None:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(data)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        stream = ImageStream(read_end)
        found = []
        for segment, frames in stream.segments():
            found.append((segment, dict(frames)))
        return stream, found
    finally:
        os.close(read_end)
        sender.join()


@pytest.mark.parametrize("split", [None, 25_000])
def test_a_pipe_gives_what_the_file_gives(tmp_path: Path, split: int | None) -> None:
    files = make_image(tmp_path / "disk.img", rich_disk(), split=split).files
    stream, found = streamed(join(files))
    with ImageReader(tmp_path / "disk.img") as image:
        assert stream.head == image.head
        assert stream.uuid == image.uuid == UUID
        assert stream.manifest == image.manifest
        segments = list(image.segments())
        assert [segment for segment, _ in found] == segments
        assert list(stream.segments_again()) == segments
        for segment, frames in found:
            read = image.read_frames(segment.entries)
            assert [memoryview(frames[entry.offset]) for entry in segment.entries] == read
    stream.close()


def test_a_segment_does_not_grow_without_bound() -> None:
    ranges = SEGMENT_RANGES * 2 + 1000
    size = -(-ranges * 2 * SECTOR // CHUNK) * CHUNK
    unused = Extents.of((at * 2 * SECTOR, (at * 2 + 1) * SECTOR) for at in range(ranges))
    head = Head(size, CHUNK, SECTOR)
    algorithm = hash_algorithm("blake3")
    encoder = ChunkEncoder(algorithm, 1, CHUNK)
    sink = MemorySink()
    writer = ImageWriter(sink, head, UUID, algorithm, unused, Extents())
    writer.begin()
    frame, frame_hash = encoder.zero_run(CHUNK)
    for _ in range(head.chunks):
        writer.add_zeros(1, frame, algorithm.digest(bytes(CHUNK)), frame_hash)
    writer.finish({"verdict": "ok"})
    records = [frame for frame in walk(bytes(sink.data)) if frame.name == "SEGM"]
    assert all(frame.end - frame.start < MAX_SEGMENT for frame in records)


def test_a_description_that_no_reader_would_take_is_refused() -> None:
    head = Head(512, CHUNK, SECTOR, facts={"note": "x" * MAX_JSON})
    with pytest.raises(RefusedError, match="partition table"):
        ImageWriter(MemorySink(), head, UUID, hash_algorithm("blake3"), Extents(), Extents())


def test_zero_frames_are_cheap_for_every_decoder() -> None:
    for size in (1, 511, CHUNK, CHUNK + 512, 5 << 20):
        frame = zero_frame(size)
        assert zstandard.ZstdDecompressor(max_window_size=1 << 17).decompress(frame) == bytes(size)
    assert len(zero_frame(MAX_ZERO_RUN)) <= 33 << 10
    with pytest.raises(ValueError):
        zero_frame(MAX_ZERO_RUN + 1)


def test_what_is_no_image_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with pytest.raises(ImageError, match="does not exist"):
        ImageReader(path)
    for content in (b"", b"x", bytes(100_000), os.urandom(100_000)):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="not an imager image"):
            ImageReader(path)
        with path.open("rb") as file, pytest.raises(ImageError):
            ImageStream(file.fileno())
    with pytest.raises(ImageError, match="not a file"):
        ImageReader(tmp_path)


def test_two_tebibytes_of_nothing_take_a_moment(tmp_path: Path) -> None:
    size = 2 << 40
    head = Head(size, 1 << 20, SECTOR, facts={"layout": Disk(b"").layout().to_json()})
    algorithm = hash_algorithm("blake3")
    encoder = ChunkEncoder(algorithm, 1, 1 << 20)
    sink = FileSink(tmp_path / "disk.img")
    writer = ImageWriter(sink, head, UUID, algorithm, Extents.span(0, size), Extents())
    writer.begin()
    frame, frame_hash = encoder.zero_run(MAX_ZERO_RUN)
    zero_hash = algorithm.digest(bytes(1 << 20))
    for _ in range(size // MAX_ZERO_RUN):
        writer.add_zeros(MAX_ZERO_RUN >> 20, frame, zero_hash, frame_hash)
    written = writer.finish({"verdict": "ok"})
    assert written.size < 70 << 20
    result = check(tmp_path / "disk.img")
    assert not result.lost and result.seconds < 10
    # The layout above is that of no disk, and nothing else is wrong.
    assert [problem.message for problem in result.problems] == [
        "the image's layout makes no sense: sizes differ"
    ]
