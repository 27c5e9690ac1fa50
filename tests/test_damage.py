"""Damage to an image: always noticed, never fatal, and never more costly than the spot it hits."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from imager.check import CheckResult, check
from imager.errors import ImageError
from imager.extents import Extents
from imager.image.origin import FileOrigin
from imager.image.reader import Completeness, ImageReader
from imager.restore import RestoreOptions, plan_restore, restore
from tests.image_files import (
    CHUNK,
    UUID,
    Disk,
    Frame,
    image_bytes,
    join,
    make_image,
    read_disk,
    rich_disk,
    walk,
)

PART = 25_000
OTHER_UUID = b"another image's!"
DISK = rich_disk()
IMAGE = image_bytes(DISK)
FRAMES = walk(IMAGE)
STORED = DISK.stored


def frames_named(*names: str) -> list[Frame]:
    return [frame for frame in FRAMES if frame.name in names]


def hit(start: int, end: int) -> Extents:
    """The disk ranges of the data frames that damage to these bytes of the image hits."""
    return Extents.of(frame.disk for frame in FRAMES if frame.start < end and start < frame.end)


def assert_rest_is_right(path: Path, lost: Extents, stored: bytes = STORED) -> None:
    """What is not lost can still be read, and is what the disk held."""
    content, missing = read_disk(path)
    assert missing == lost
    expected = bytearray(stored)
    for start, end in lost:
        expected[start:end] = bytes(end - start)
    assert content == expected


def assert_noticed(
    path: Path, bound: Extents, stored: bytes = STORED, read: bool = True
) -> CheckResult:
    """The damage is noticed, and costs nothing outside of `bound`."""
    result = check(path, threads=1)
    assert result.verdict == "failed"
    assert not result.lost - bound
    if read:
        assert_rest_is_right(path, result.lost, stored)
    return result


def flips() -> Iterator[tuple[int, int]]:
    """Offset and bit: each byte of every record's ends, and a dense sample of all others."""
    for number, frame in enumerate(FRAMES):
        size = frame.end - frame.start
        if frame.name == "DATA":
            # The magic number, the header, a block, the checksum: over many frames, every byte.
            places: Iterable[int] = {number * 7 % size}
        else:
            places = {*range(36), *range(36, size, size // 16 + 1), size - 1}
        for place in sorted(place for place in places if place < size):
            yield frame.start + place, (frame.start + place) % 8


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(IMAGE)
    assert check(path).verdict == "degraded"
    tried = 0
    with path.open("r+b", buffering=0) as file:
        for offset, bit in flips():
            os.pwrite(file.fileno(), bytes([IMAGE[offset] ^ 1 << bit]), offset)
            result = assert_noticed(path, hit(offset, offset + 1), read=tried % 4 == 0)
            assert result.completeness is Completeness.COMPLETE
            os.pwrite(file.fileno(), IMAGE[offset : offset + 1], offset)
            tried += 1
    assert tried > 700
    assert check(path).verdict == "degraded"


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("how", ["zeros", "garbage"])
def test_every_damaged_sector_is_noticed(tmp_path: Path, sector: int, how: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(IMAGE)
    noise = random.Random(5)
    with path.open("r+b", buffering=0) as file:
        # Of the many small ones every third, another third for each kind of damage.
        step = sector if sector > 512 else 3 * sector
        for start in range(0 if how == "zeros" else step - sector, len(IMAGE), step):
            before = IMAGE[start : start + sector]
            after = bytes(len(before)) if how == "zeros" else noise.randbytes(len(before))
            if after == before:
                continue  # a sector of the padding
            os.pwrite(file.fileno(), after, start)
            assert_noticed(path, hit(start, start + sector))
            os.pwrite(file.fileno(), before, start)


@contextmanager
def unreadable(start: int, end: int) -> Iterator[None]:
    """Reading any byte of [start, end) of any file fails, as on a dying disk."""
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        if offset < end and start < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, size, offset)

    with patch.object(os, "pread", pread):
        yield


def test_every_unreadable_sector_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(IMAGE)
    for start in range(0, len(IMAGE), 4096):
        with unreadable(start, start + 4096):
            result = assert_noticed(path, hit(start, start + 4096))
            assert result.completeness is Completeness.COMPLETE


def end_of_segments(size: int) -> int:
    """The disk byte up to which an image cut to `size` bytes holds segments."""
    disk = 0
    for frame in FRAMES:
        if frame.name == "SEGM" and frame.end <= size:
            disk = frame.disk[0]
    return disk


def cuts() -> list[int]:
    """Sizes to cut to: around the ends of all frames, and anywhere."""
    edges = [frame.end + shift for frame in FRAMES[2:-1] for shift in (-1, 0, 1)]
    records = [frame.end for frame in FRAMES[2:-1] if frame.name != "DATA"]
    noise = random.Random(3)
    anywhere = noise.sample(range(len(IMAGE)), 40)
    return sorted({*noise.sample(edges, 90), *records, *anywhere, len(IMAGE) - 1})


@pytest.mark.parametrize("name", ["disk.img", "disk.img.partial"])
def test_a_cut_is_noticed_wherever_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(IMAGE)
    unfinished = name.endswith(".partial")
    head = frames_named("HEAD")[0].end
    for size in reversed(cuts()[:: 3 if unfinished else 1]):
        os.truncate(path, size)
        if size < head:
            with pytest.raises(ImageError):
                check(path)
            continue
        expected = Extents.span(end_of_segments(size), DISK.size)
        result = assert_noticed(path, expected)
        assert result.lost == expected
        assert result.completeness is (
            Completeness.UNFINISHED if unfinished else Completeness.CUT_SHORT
        )
        words = "unfinished" if unfinished else "cut short"
        with closing(FileOrigin(path)) as origin, pytest.raises(ImageError, match=words):
            origin.require_complete()


@pytest.mark.parametrize("size", [1, 9, 511, 4096, 100_000])
@pytest.mark.parametrize("how", ["zeros", "garbage", "image"])
def test_what_follows_the_end_is_noticed_and_costs_nothing(
    tmp_path: Path, size: int, how: str
) -> None:
    path = tmp_path / "disk.img"
    added = {
        "zeros": bytes(size),
        "garbage": random.Random(1).randbytes(size),
        "image": IMAGE[-size:],
    }
    path.write_bytes(IMAGE + added[how])
    result = assert_noticed(path, Extents())
    if how != "image":
        assert result.completeness is Completeness.COMPLETE
        assert any("follow the image's end" in problem.message for problem in result.problems)


def damaged(*frames: Frame) -> bytes:
    """The image with a flipped bit in the middle of each of these frames."""
    data = bytearray(IMAGE)
    for frame in frames:
        data[(frame.start + frame.end) // 2] ^= 16
    return bytes(data)


def one(name: str, number: int = 0) -> Frame:
    return frames_named(name)[number]


@pytest.mark.parametrize(
    ("spots", "complete"),
    [
        ([("HEAD", 0), ("INDX", 0)], True),
        ([("HEAD", 0), ("SEEK", 0)], True),
        ([("HEAD", 0), ("FOOT", 0)], True),
        ([("HEAD", 0), ("FOOT", 1)], True),
        ([("MANI", 0), ("INDX", 0)], True),
        ([("MANI", 0), ("FOOT", 0), ("INDX", 0)], True),
        ([("INDX", 0), ("SEEK", 0)], True),
        ([("INDX", 0), ("SEGM", 1)], True),
        ([("INDX", 0), ("SEGC", 1)], True),
        ([("INDX", 0), ("SEGM", 0), ("SEGC", 2), ("VOID", 0)], True),
        ([("FOOT", 1), ("SEEK", 0)], True),
        ([("FOOT", 0), ("FOOT", 1)], False),
        ([("FOOT", 0), ("FOOT", 1), ("INDX", 0), ("SEEK", 0), ("MANI", 0)], False),
    ],
)
def test_two_spots_in_what_is_stored_twice(
    tmp_path: Path, spots: list[tuple[str, int]], complete: bool
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(damaged(*(one(*spot) for spot in spots)))
    result = assert_noticed(path, Extents())
    assert (result.completeness is Completeness.COMPLETE) == complete


@pytest.mark.parametrize(
    "spots", [[("HEAD", 0), ("MANI", 0)], [("HEAD", 0), ("FOOT", 0), ("FOOT", 1)]]
)
def test_nothing_says_what_the_image_is_of(tmp_path: Path, spots: list[tuple[str, int]]) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(damaged(*(one(*spot) for spot in spots)))
    with pytest.raises(ImageError, match="both its head and its end are lost"):
        check(path)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("index", [True, False])
def test_a_segment_and_its_copy(tmp_path: Path, number: int, index: bool) -> None:
    path = tmp_path / "disk.img"
    spots = [one("SEGM", number), one("SEGC", number)]
    path.write_bytes(damaged(*spots, *([] if index else [one("INDX")])))
    start = one("SEGM", number - 1).disk[0] if number else 0
    expected = Extents.span(start, one("SEGM", number).disk[0])
    result = assert_noticed(path, expected)
    assert result.lost == expected


def test_a_damaged_run_of_zeros_loses_nothing(tmp_path: Path) -> None:
    (frame,) = [f for f in frames_named("DATA") if f.disk[0] == 100 * CHUNK]
    assert frame.disk[1] - frame.disk[0] > CHUNK
    path = tmp_path / "disk.img"
    path.write_bytes(damaged(frame))
    assert not assert_noticed(path, Extents()).lost


# Records of another image.


def test_records_of_another_image_are_noticed(tmp_path: Path) -> None:
    """Same disk, same layout, same sizes, all hashes right: only the UUID tells."""
    other = image_bytes(DISK, uuid=OTHER_UUID)
    assert [frame[:3] for frame in walk(other)] == [frame[:3] for frame in FRAMES]
    path = tmp_path / "disk.img"
    for frame in FRAMES:
        if frame.name in ("DATA", "TEXT", "GUARD", "SEEK"):
            continue
        data = bytearray(IMAGE)
        data[frame.start : frame.end] = other[frame.start : frame.end]
        path.write_bytes(data)
        result = assert_noticed(path, Extents())
        assert result.completeness is Completeness.COMPLETE, frame


def test_halves_of_two_images(tmp_path: Path) -> None:
    """A file system that mixed up two files: what is left of either is told apart."""
    content = bytearray(DISK.content)
    content[0:4] = b"diff"
    content[150 * CHUNK : 150 * CHUNK + 4] = b"diff"
    other_disk = Disk(bytes(content), DISK.unused, DISK.excluded, DISK.unreadable)
    other = image_bytes(other_disk, uuid=OTHER_UUID)
    path = tmp_path / "disk.img"
    cut = one("SEGM", 0).end
    path.write_bytes(IMAGE[:cut] + other[cut:])
    # The end is that of the other image; of its first segment the frames that are alike survive.
    result = assert_noticed(path, hit(0, cut), other_disk.stored)
    assert Extents.span(0, CHUNK) & result.lost


# Parts.


@dataclass
class Split:
    """A split image, and which of its bytes lie in which part."""

    files: tuple[Path, ...]
    stored: bytes
    frames: list[Frame]

    def hit(self, *numbers: int) -> Extents:
        """The disk ranges of the data frames in these parts."""
        starts = [0]
        for file in self.files:
            starts.append(starts[-1] + file.stat().st_size)
        spans = [(starts[number - 1], starts[number]) for number in numbers]
        return Extents.of(
            frame.disk
            for frame in self.frames
            for start, end in spans
            if start <= frame.start < end
        )


@pytest.fixture
def split(tmp_path: Path) -> Split:
    files = make_image(tmp_path / "disk.img", DISK, split=PART).files
    assert len(files) == 4
    return Split(files, STORED, walk(join(files)))


def test_parts_are_one_image(split: Split) -> None:
    assert check(split.files[2]).verdict == "degraded"
    assert_rest_is_right(split.files[0], Extents())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_part_costs_what_is_in_it(split: Split, number: int) -> None:
    bound = split.hit(number)
    split.files[number - 1].unlink()
    result = assert_noticed(split.files[0].with_name("disk.img"), bound)
    assert any(f"part {number} is missing" in problem.message for problem in result.problems)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_missing_end_costs_what_no_segment_covers(split: Split, kept: int) -> None:
    size = sum(file.stat().st_size for file in split.files[:kept])
    for file in split.files[kept:]:
        file.unlink()
    covered = max(
        (f.disk[0] for f in split.frames if f.name == "SEGM" and f.end <= size), default=0
    )
    result = assert_noticed(split.files[0], Extents.span(covered, DISK.size))
    assert result.completeness is Completeness.CUT_SHORT
    with (
        closing(FileOrigin(split.files[0])) as origin,
        pytest.raises(ImageError, match="cut short"),
    ):
        origin.require_complete()


def test_two_missing_parts(split: Split) -> None:
    bound = split.hit(1, 3)
    for number in (1, 3):
        split.files[number - 1].unlink()
    assert_noticed(split.files[1], bound)


def test_swapped_parts_are_put_right(split: Split) -> None:
    second, third = split.files[1:3]
    spare = second.with_name("spare")
    second.rename(spare)
    third.rename(second)
    spare.rename(third)
    result = assert_noticed(split.files[0], Extents())
    assert any("holds part 3" in problem.message for problem in result.problems)


@pytest.mark.parametrize(("source", "target"), [(2, 3), (3, 2), (1, 2), (1, 3)])
def test_a_part_in_place_of_another(split: Split, source: int, target: int) -> None:
    bound = split.hit(target)
    split.files[target - 1].write_bytes(split.files[source - 1].read_bytes())
    assert_noticed(split.files[0], bound)


def test_a_part_of_another_image(split: Split, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    foreign = rich_disk(seed=2)
    files = make_image(other / "disk.img", foreign, uuid=OTHER_UUID, split=PART).files
    bound = split.hit(2)
    split.files[1].write_bytes(files[1].read_bytes())
    assert_noticed(split.files[0], bound)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("change", [1, 5000, -1, -5000])
def test_a_part_of_another_length(split: Split, number: int, change: int) -> None:
    bound = split.hit(number) if change < 0 else Extents()
    part = split.files[number - 1]
    if change < 0:
        os.truncate(part, part.stat().st_size + change)
    else:
        part.write_bytes(part.read_bytes() + bytes(change))
    if number == 4 and change < 0:
        result = check(part)
        assert result.verdict == "failed" and result.completeness is Completeness.CUT_SHORT
        assert_rest_is_right(part, result.lost)
        assert not result.lost
    else:
        assert_noticed(part, bound)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_every_byte_of_a_parts_header(split: Split, number: int) -> None:
    part = split.files[number - 1]
    data = part.read_bytes()
    for offset in range(80):
        part.write_bytes(
            data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]
        )
        assert_noticed(part, Extents())


# Images inside of images.


RAW = -(1 << 17)
"""zstd's quickest level: literals are not compressed, and hardly a match is found."""


def nested_disk(inner_uuid: bytes) -> tuple[Disk, bytes]:
    """A disk that holds an image's records in raw form, which zstd cannot squeeze."""
    inner = image_bytes(rich_disk(seed=9), uuid=inner_uuid)
    noise = random.Random(4)
    content = bytearray(DISK.content)
    records = [frame for frame in walk(inner) if frame.name not in ("DATA", "GUARD", "TEXT")]
    for number, frame in enumerate(records):
        start = (20 + number) * CHUNK
        content[start : start + CHUNK] = noise.randbytes(CHUNK)
        record = inner[frame.start : frame.end]
        content[start + 1000 : start + 1000 + len(record)] = record
    return Disk(bytes(content)), inner


def test_an_image_stored_in_an_image_does_not_confuse_recovery(tmp_path: Path) -> None:
    disk, inner = nested_disk(b"the inner image.")
    data = image_bytes(disk, level=RAW)
    # Whole records of the inner image lie open in the outer one's data frames.
    assert all(inner[f.start : f.end] in data for f in walk(inner) if f.name == "SEGM")
    path = tmp_path / "disk.img"
    path.write_bytes(data)
    assert check(path).verdict == "ok"
    frames = walk(data)
    for names in (["INDX"], ["INDX", "FOOT"], ["INDX", "HEAD"]):
        broken = bytearray(data)
        for frame in frames:
            if frame.name in names:
                broken[frame.start + 60] ^= 1
        path.write_bytes(broken)
        assert_noticed(path, Extents(), disk.stored)
    last = [frame for frame in frames if frame.name == "SEGM"][-2]
    path.write_bytes(data[: last.end])
    assert_noticed(path, Extents.span(last.disk[0], disk.size), disk.stored)


def test_stale_segments_inside_of_a_chunk_are_not_taken_for_the_images_own(tmp_path: Path) -> None:
    """They have the right UUID where a disk holds what an interrupted capture of it left."""
    disk, _ = nested_disk(UUID)
    data = image_bytes(disk, level=RAW)
    index = next(frame for frame in walk(data) if frame.name == "INDX")
    broken = bytearray(data)
    broken[index.start + 60] ^= 1
    path = tmp_path / "disk.img"
    path.write_bytes(broken)
    assert_noticed(path, Extents(), disk.stored)


# What a restore makes of it.


def salvage(image: Path, target: Path, options: RestoreOptions) -> tuple[str, Extents, bytes]:
    with closing(FileOrigin(image)) as origin:
        result = restore(origin, plan_restore(origin, target, options))
    return result.verdict, result.lost, target.read_bytes()


def flip(name: str, number: int) -> Callable[[], bytes]:
    return lambda: damaged(one(name, number))


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (flip("DATA", 3), hit(one("DATA", 3).start, one("DATA", 3).end)),
        (flip("DATA", 1), hit(one("DATA", 1).start, one("DATA", 1).end)),
        (lambda: damaged(one("SEGM"), one("SEGC")), Extents.span(0, one("SEGM").disk[0])),
        (lambda: IMAGE[: one("SEGM", 1).end], Extents.span(one("SEGM", 1).disk[0], DISK.size)),
    ],
)
def test_salvage_restores_the_rest_and_fails(
    tmp_path: Path, make: Callable[[], bytes], bound: Extents
) -> None:
    image, target = tmp_path / "disk.img", tmp_path / "target"
    image.write_bytes(make())
    before = b"\xaa" * DISK.size
    target.write_bytes(before)
    with closing(FileOrigin(image)) as origin, pytest.raises(ImageError):
        restore(origin, plan_restore(origin, target, RestoreOptions()))
    assert target.read_bytes() == before
    verdict, lost, content = salvage(image, target, RestoreOptions(salvage=True))
    assert (verdict, lost) == ("failed", bound)
    expected = Extents.span(0, DISK.size) - lost - DISK.unused - DISK.excluded
    for start, end in expected:
        assert content[start:end] == STORED[start:end]
    for start, end in DISK.excluded:
        assert content[start:end] == before[start:end]


@pytest.mark.parametrize(
    "name", ["HEAD", "SEGM", "SEGC", "MANI", "INDX", "FOOT", "SEEK", "VOID", "TEXT"]
)
def test_damage_to_what_is_redundant_does_not_keep_from_restoring(
    tmp_path: Path, name: str
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(damaged(one(name)))
    verdict, lost, content = salvage(image, tmp_path / "target", RestoreOptions())
    assert (verdict, lost) == ("degraded", Extents())
    assert content == STORED


def test_problems_are_bounded(tmp_path: Path) -> None:
    content = b"".join(number.to_bytes(2, "little") * (CHUNK // 2) for number in range(1, 1500))
    data = bytearray(image_bytes(Disk(content)))
    for frame in walk(bytes(data)):
        if frame.name == "DATA":
            data[frame.end - 1] ^= 1
    path = tmp_path / "disk.img"
    path.write_bytes(data)
    result = check(path)
    assert result.lost == Extents.span(0, len(content))
    assert len(result.problems) < 1100
    with ImageReader(path) as image:
        assert not image.problems
