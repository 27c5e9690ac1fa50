"""Damage to a chain: always noticed, and only what needs the damaged place is lost."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.capture import CaptureResult
from imager.check import check
from imager.errors import ImageError, RefusedError
from imager.extents import Extents
from imager.image.ancestors import read_head
from imager.image.chain import Chain as OpenChain
from imager.image.format import ChunkKind
from imager.image.index import Segment
from imager.image.opening import UNFINISHED, guard_opening
from imager.image.origin import FileOrigin
from imager.image.reader import Completeness, ImageReader
from imager.restore import RestoreOptions, RestoreResult, plan_restore, restore
from tests.command import imager
from tests.histories import Chain, capture_disk, changed, three_nights
from tests.image_files import CHUNK, walk
from tests.test_increments import assert_is, entries


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Three nights; not to be changed."""
    return three_nights(tmp_path_factory.mktemp("nights"))


@pytest.fixture
def copy(nights: Chain, tmp_path: Path) -> Chain:
    """The same, to be damaged."""
    shutil.copytree(nights.folder, tmp_path / "copy")
    return Chain(tmp_path / "copy", nights.disks, nights.results)


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)


def salvaged(image: Path, folder: Path) -> tuple[RestoreResult, bytes]:
    target = folder / "salvaged"
    with FileOrigin(image) as origin:
        result = restore(origin, plan_restore(origin, target, RestoreOptions(salvage=True)))
    content = target.read_bytes()
    target.unlink()
    return result, content


def assert_rest_is_right(chain: Chain, number: int, lost: Extents, folder: Path) -> None:
    """A salvage fails, says what is lost, and gives all the rest."""
    result, content = salvaged(chain.path(number), folder)
    assert result.verdict == "failed" and result.lost == lost
    stored = bytearray(chain.disks[number].stored)
    found = bytearray(content)
    for start, end in lost:
        stored[start:end] = found[start:end] = bytes(end - start)
    assert found == stored


def spots(path: Path) -> Iterator[int]:
    """The beginning, the end and some bytes of each frame of an image."""
    noise = random.Random(7)
    for frame in walk(path.read_bytes()):
        inside = range(frame.start, frame.end)
        yield from {frame.start, frame.end - 1, *noise.sample(inside, min(len(inside), 60))}


@pytest.mark.parametrize("number", [1, 2])
def test_every_flipped_bit_is_noticed(number: int, copy: Chain) -> None:
    image = copy.path(number)
    intact = image.read_bytes()
    for place in spots(image):
        image.write_bytes(intact)
        flip(image, place)
        try:
            result = check(image)
        except ImageError:
            continue
        assert result.verdict == "failed", place


@pytest.mark.parametrize("number", [1, 2])
def test_every_cut_is_noticed(number: int, copy: Chain) -> None:
    image = copy.path(number)
    intact = image.read_bytes()
    for end in range(0, len(intact), 997):
        image.write_bytes(intact[:end])
        try:
            assert check(image).verdict == "failed"
        except ImageError:
            assert end < 4096


def test_an_unfinished_one_gives_what_its_segments_cover(copy: Chain, tmp_path: Path) -> None:
    """Cut behind its segment, which inherits from an intact parent."""
    data = copy.path(1).read_bytes()
    end = next(frame.end for frame in walk(data) if frame.name == "SEGM")
    copy.path(1).write_bytes(data[:end])
    result = check(copy.path(1))
    assert result.completeness is Completeness.CUT_SHORT
    assert_rest_is_right(copy, 1, Extents(), tmp_path)


def users(chain: Chain, image: int, start: int) -> list[int]:
    """The nights that need the chunk at `start` of an image."""
    found = []
    for number in range(image, len(chain.disks)):
        with OpenChain(chain.path(number)) as opened:
            layers = opened.find_chunk(start).layers
            # Numbered from the night itself downwards.
            if any(number - piece.image == image for piece, _ in layers):
                found.append(number)
    return found


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_frame_costs_those_who_need_it(damaged: int, copy: Chain, tmp_path: Path) -> None:
    with ImageReader(copy.path(damaged)) as image:
        placed = [
            (start, end, entry.offset)
            for segment in image.segments()
            if isinstance(segment, Segment)
            for start, end, entry in segment.placed(CHUNK)
            if entry.kind in (ChunkKind.DATA, ChunkKind.DELTA)
        ]
    intact = copy.path(damaged).read_bytes()
    needed = set()
    for start, end, offset in placed:
        affected = users(copy, damaged, start)
        copy.path(damaged).write_bytes(intact)
        flip(copy.path(damaged), offset + 20)
        for number in range(damaged, len(copy.disks)):
            result = check(copy.path(number))
            expected = Extents.span(start, end) if number in affected else Extents()
            assert result.lost == expected
            assert result.verdict == ("failed" if expected else "ok")
        needed.add(len(affected))
        last = len(copy.disks) - 1
        if last in affected:
            assert_rest_is_right(copy, last, Extents.span(start, end), tmp_path)
    assert (len(needed) > 1) == (damaged == 0)


def test_a_lost_segment_of_an_ancestor(copy: Chain, tmp_path: Path) -> None:
    with ImageReader(copy.path(0)) as image:
        (item,) = image.items()
    flip(copy.path(0), item.offset + 70)
    assert check(copy.path(2)).verdict == "ok"
    flip(copy.path(0), item.copy_offset + 70)
    result = check(copy.path(2))
    assert result.verdict == "failed"
    assert "night-0.img" in result.problems[0].message
    own = Extents.of(
        (start, end)
        for start, end, kind, _ in entries(copy.path(1))
        if kind in (ChunkKind.DATA, ChunkKind.ZERO)
    )
    disk = copy.disks[2]
    # What night 1 stores whole needs nobody; deltas and the rest do.
    assert result.lost == own.complement(0, disk.size)
    assert_rest_is_right(copy, 2, result.lost, tmp_path)


def test_a_missing_ancestor_loses_what_it_has(copy: Chain, tmp_path: Path) -> None:
    copy.path(1).unlink()
    own = Extents.of(
        (start, end)
        for start, end, kind, _ in entries(copy.path(2))
        if kind in (ChunkKind.DATA, ChunkKind.ZERO)
    )
    result = check(copy.path(2))
    assert result.lost == own.complement(0, copy.disks[2].size)
    assert result.verdict == "failed" and "is missing" in result.problems[0].message
    assert not own, "each of its chunks was meant to need the one that is missing"
    with pytest.raises(ImageError, match="nothing can be restored"):
        salvaged(copy.path(2), tmp_path)


def test_an_ancestor_cut_short_is_named(copy: Chain) -> None:
    data = copy.path(0).read_bytes()
    copy.path(0).write_bytes(data[:-1000])
    line = imager("check", copy.path(2), status=4).out
    assert "night-0.img is cut short" in line


def test_damage_is_mapped_to_partitions(tmp_path: Path) -> None:
    chain = three_nights(tmp_path)
    copied = tmp_path / "copy"
    copied.mkdir()
    left_out = changed(chain.disks[0], excluded=Extents.span(10 * CHUNK, 11 * CHUNK))
    capture_disk(left_out, copied / "a")
    capture_disk(changed(left_out, (0, b"new")), copied / "b", copied / "a")
    with ImageReader(copied / "a") as image:
        segment = next(image.segments())
        assert isinstance(segment, Segment)
        offset = next(e.offset for s, _, e in segment.placed(CHUNK) if s == 12 * CHUNK)
    flip(copied / "a", offset + 30)
    found = json.loads(imager("check", "--json", copied / "b", status=4).out)
    assert found["lost_volumes"] == ["partition 3 (volume 3)"]
    assert found["lost"] == [[12 * CHUNK, 13 * CHUNK]]


class TestInterruptedCapture:
    """What is left of an incremental capture is taken up, as far as it is still true."""

    def cut(self, nights: Chain, folder: Path, end: int, number: int = 1) -> Path:
        """The night's image, not here but for its first `end` bytes."""
        shutil.copytree(nights.folder, folder / "copy")
        image = folder / "copy" / "again.img"
        data = nights.path(number).read_bytes()
        partial = image.with_name("again.img.partial")
        partial.write_bytes(guard_opening(UNFINISHED) + data[512:end])
        return image

    def resume(self, nights: Chain, image: Path, number: int = 1) -> CaptureResult:
        parent = image.with_name(f"night-{number - 1}.img")
        return capture_disk(nights.disks[number], image, parent, resume=True)

    def test_at_every_frame(self, nights: Chain, tmp_path: Path) -> None:
        data = nights.path(1).read_bytes()
        frames = walk(data)
        covered = next(frame.end for frame in frames if frame.name == "SEGM")
        for count, frame in enumerate(frames):
            image = self.cut(nights, tmp_path / f"{count}", frame.end)
            result = self.resume(nights, image)
            expected = nights.disks[1].size if frame.end >= covered else 0
            assert result.resumed == expected
            assert result.inherited == nights.results[1].inherited
            with ImageReader(image) as found, ImageReader(nights.path(1)) as whole:
                assert found.footer and whole.footer
                assert found.footer.content_digest == whole.footer.content_digest
                assert (found.uuid == whole.uuid) == (frame.name != "TEXT" and count > 1)
            assert check(image).verdict == "ok"
            shutil.rmtree(image.parent)

    def test_the_disk_changed_meanwhile(self, nights: Chain, tmp_path: Path) -> None:
        """In what was inherited, of which the unfinished image has no frame."""
        image = self.cut(nights, tmp_path, 10**9, 2)
        disk = changed(nights.disks[2], (10 * CHUNK + 3, b"again"), (22 * CHUNK, b"again"))
        result = capture_disk(disk, image, image.with_name("night-1.img"), resume=True)
        assert result.resumed == 0
        assert_is(image, disk, tmp_path)

    def test_the_maps_changed_meanwhile(self, nights: Chain, tmp_path: Path) -> None:
        image = self.cut(nights, tmp_path, 10**9, 2)
        disk = nights.disks[2]
        disk = changed(disk, unused=disk.unused | Extents.span(5 * CHUNK, 5 * CHUNK + 512))
        capture_disk(disk, image, image.with_name("night-1.img"), resume=True)
        assert_is(image, disk, tmp_path)

    def test_the_parent_has_another_name(self, nights: Chain, tmp_path: Path) -> None:
        image = self.cut(nights, tmp_path, 10**9, 2)
        image.with_name("night-1.img").rename(image.with_name("renamed"))
        result = capture_disk(nights.disks[2], image, image.with_name("renamed"), resume=True)
        assert result.resumed == nights.disks[2].size
        assert_is(image, nights.disks[2], tmp_path)

    def test_another_parent(self, nights: Chain, tmp_path: Path) -> None:
        image = self.cut(nights, tmp_path, 10**9, 2)
        result = capture_disk(nights.disks[2], image, image.with_name("night-0.img"), resume=True)
        assert result.resumed == 0
        assert_is(image, nights.disks[2], tmp_path)

    def test_in_parts(self, nights: Chain, tmp_path: Path) -> None:
        folder = tmp_path / "parts"
        folder.mkdir()
        shutil.copy(nights.path(0), folder)
        noise = random.Random(4).randbytes(12 * CHUNK)
        disk = changed(nights.disks[0], (2 * CHUNK, noise))
        parent = folder / "night-0.img"
        whole = capture_disk(disk, folder / "a", parent, split=3 * CHUNK)
        assert len(whole.image.files) > 3
        for number, part in enumerate(whole.image.files, 1):
            data = part.read_bytes()
            if number == 1:
                data = guard_opening(UNFINISHED) + data[512:]
            (folder / f"b.{number:04}.partial").write_bytes(data)
        result = capture_disk(disk, folder / "b", parent, split=3 * CHUNK, resume=True)
        assert result.resumed == disk.size
        assert_is(folder / "b", disk, tmp_path)

    def test_without_resume_it_is_in_the_way(self, nights: Chain, tmp_path: Path) -> None:
        image = self.cut(nights, tmp_path, 5000)
        with pytest.raises(RefusedError, match="--resume"):
            capture_disk(nights.disks[1], image, image.with_name("night-0.img"))


def test_an_unfinished_head_names_its_parent(nights: Chain, tmp_path: Path) -> None:
    """So that whoever deletes images sees that it is needed."""
    partial = tmp_path / "x.partial"
    partial.write_bytes(guard_opening(UNFINISHED) + nights.path(1).read_bytes()[512:20_000])
    uuid, head = read_head(partial)
    with ImageReader(nights.path(0)) as parent, ImageReader(nights.path(1)) as child:
        assert uuid == child.uuid
        assert [reference.uuid for reference in head.parents] == [parent.uuid]
