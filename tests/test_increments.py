"""Incremental images: what a chain gives is what the disk was, whatever happened in between."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imager.capture import CaptureOptions, capture
from imager.check import check
from imager.errors import ImageError, RefusedError, UsageError
from imager.export import ExportFormat, export
from imager.extents import Extents
from imager.image.chain import Chain as OpenChain
from imager.image.format import (
    INCOMPATIBLE_INCREMENTAL,
    OWN_MAPS,
    ChunkKind,
    RangeKind,
)
from imager.image.index import Segment
from imager.image.origin import FileOrigin
from imager.image.reader import ImageReader
from imager.pipeline import no_progress
from imager.restore import RestoreOptions, plan_restore, restore
from imager.survey import survey
from tests.command import failure, imager, info, zstd_refuses
from tests.histories import Chain, capture_disk, changed, noisy_disk, three_nights
from tests.image_files import CHUNK, Disk


def entries(path: Path) -> list[tuple[int, int, int, int]]:
    """Disk range, kind and flags of each entry of an image itself."""
    with ImageReader(path) as image:
        return [
            (start, end, entry.kind, entry.flags)
            for segment in image.segments()
            if isinstance(segment, Segment)
            for start, end, entry in segment.placed(image.head.chunk_size)
        ]


def kinds(path: Path) -> dict[ChunkKind, int]:
    """How many entries of each kind an image has."""
    found = [ChunkKind(kind) for _, _, kind, _ in entries(path)]
    return {kind: found.count(kind) for kind in found}


def frame_of(path: Path, number: int) -> int:
    """Where the frame of an entry in the image's first segment begins."""
    with ImageReader(path) as image:
        segment = next(image.segments())
        assert isinstance(segment, Segment)
        return segment.entries[number].offset


def restored(image: Path, folder: Path, **options: Any) -> bytes:
    """What a restore onto nothing gives."""
    target = folder / "restored"
    with FileOrigin(image) as origin:
        restore(origin, plan_restore(origin, target, RestoreOptions(**options)))
    content = target.read_bytes()
    target.unlink()
    return content


def exported(image: Path, folder: Path) -> bytes:
    """The bytes of the disk as `export --raw` gives them."""
    out = folder / "exported"
    export(image, out, ExportFormat.RAW)
    content = out.read_bytes()
    out.unlink()
    return content


def assert_is(image: Path, disk: Disk, folder: Path) -> None:
    """The image and its ancestors hold this disk, and say of it what is so."""
    result = check(image)
    assert not result.problems and not result.lost
    assert result.verdict == ("degraded" if disk.unreadable else "ok")
    assert result.unreadable == disk.unreadable
    with OpenChain(image) as chain:
        found = survey(chain, no_progress)
    assert found.problem == ""
    assert found.maps[RangeKind.UNUSED] == disk.unused - disk.excluded
    assert found.maps[RangeKind.EXCLUDED] == disk.excluded
    assert found.maps[RangeKind.UNREADABLE] == disk.unreadable
    assert exported(image, folder) == disk.stored
    assert restored(image, folder) == disk.stored


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Three nights; not to be changed."""
    return three_nights(tmp_path_factory.mktemp("nights"))


def test_each_night_is_what_the_disk_was(nights: Chain, tmp_path: Path) -> None:
    for number, disk in enumerate(nights.disks):
        assert_is(nights.path(number), disk, tmp_path)


def test_only_what_differs_is_stored(nights: Chain) -> None:
    assert kinds(nights.path(1)) == {
        ChunkKind.PARENT: 6,
        ChunkKind.DELTA: 1,
        ChunkKind.DATA: 2,
        ChunkKind.ZERO: 1,
    }
    assert kinds(nights.path(2)) == {ChunkKind.PARENT: 3, ChunkKind.DELTA: 3}
    sizes = [result.image.size for result in nights.results]
    assert sizes[2] < 16_000 < sizes[1] < 100_000 < sizes[0]
    assert nights.results[2].inherited == nights.disks[2].size - 2 * CHUNK - 7 * 512


def test_plain_zstd_refuses_it(nights: Chain) -> None:
    assert not zstd_refuses(nights.path(0))
    assert zstd_refuses(nights.path(1))


def test_a_full_image_is_what_it_was_before_there_were_others(nights: Chain) -> None:
    with ImageReader(nights.path(0)) as image:
        assert image.head.encode()[:4] == b"\x01\0\0\0"
        assert image.head.facts["parents"] == [] and not image.head.incremental


def test_the_head_names_the_parent(nights: Chain) -> None:
    with ImageReader(nights.path(1)) as child, ImageReader(nights.path(0)) as parent:
        assert child.head.encode()[:12] == b"\x01\0\x01\0\x02\0\0\0\0\0\0\0"
        assert child.head.incompatible == INCOMPATIBLE_INCREMENTAL
        (reference,) = child.head.parents
        assert reference.uuid == parent.uuid
        assert parent.footer and reference.content_digest == parent.footer.content_digest
        assert reference.file == "night-0.img"
        assert (reference.disk_size, reference.chunk_size) == (nights.disks[0].size, CHUNK)


def test_an_unchanged_night_is_a_few_entries(nights: Chain, tmp_path: Path) -> None:
    shutil.copytree(nights.folder, tmp_path / "copy")
    image, parent = tmp_path / "copy" / "same.img", tmp_path / "copy" / "night-2.img"
    result = capture_disk(nights.disks[2], image, parent)
    assert entries(image) == [(0, nights.disks[2].size, ChunkKind.PARENT, 0)]
    assert result.image.size < 13_000
    assert result.inherited == nights.disks[2].size
    assert_is(image, nights.disks[2], tmp_path)


def test_a_file_deleted_costs_its_map(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    disk = noisy_disk()
    chain.add(disk)
    # What became unused was zeros: the content is the parent's, the map is not.
    disk = changed(disk, unused=disk.unused | Extents.span(5 * CHUNK, 6 * CHUNK))
    chain.add(disk)
    assert entries(chain.path(1)) == [
        (0, 5 * CHUNK, ChunkKind.PARENT, 0),
        (5 * CHUNK, 6 * CHUNK, ChunkKind.PARENT, OWN_MAPS),
        (6 * CHUNK, disk.size, ChunkKind.PARENT, 0),
    ]
    chain.add(changed(disk, (0, b"changed")))
    for number, each in enumerate(chain.disks):
        assert_is(chain.path(number), each, tmp_path)


def test_unreadable_sectors_are_zeros_and_never_the_parents(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    disk = noisy_disk()
    chain.add(disk)
    bad = Extents.of([(2 * CHUNK + 512, 2 * CHUNK + 1536), (5 * CHUNK, 5 * CHUNK + 512)])
    broken = changed(disk, unreadable=bad)
    assert chain.add(broken).verdict == "degraded"
    chain.add(broken)  # as bad as the night before: all is inherited
    assert kinds(chain.path(2)) == {ChunkKind.PARENT: 1}
    chain.add(disk)  # a new disk reads again
    for number, each in enumerate(chain.disks):
        assert_is(chain.path(number), each, tmp_path)


def test_partitions_left_out_and_taken_in_again(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    disk = noisy_disk()
    without = changed(disk, excluded=Extents.span(12 * CHUNK, 14 * CHUNK))
    for each in (disk, without, without, disk):
        chain.add(each)
    for number, each in enumerate(chain.disks):
        assert_is(chain.path(number), each, tmp_path)


@pytest.mark.parametrize("parent_split", [None, 100_000])
def test_parts(parent_split: int | None, tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    disk = noisy_disk()
    full = capture_disk(disk, chain.path(0), split=parent_split)
    assert (len(full.image.files) > 5) == (parent_split is not None)
    noise = random.Random(3)
    for _ in range(3):
        disk = changed(disk, (2 * CHUNK, noise.randbytes(3 * CHUNK)))
        number = len(chain.disks) + 1
        result = capture_disk(disk, chain.path(number), chain.path(number - 1), split=100_000)
        assert len(result.image.files) > 2
        chain.disks.append(disk)
        assert_is(chain.path(number), disk, tmp_path)


def test_hash_and_chunk_size_are_the_parents(tmp_path: Path) -> None:
    disk = noisy_disk()
    source = tmp_path / "disk"
    source.write_bytes(disk.content)
    small = CaptureOptions(hash_name="sha256", chunk_size=CHUNK)
    capture(source, tmp_path / "a", small)
    capture(source, tmp_path / "b", CaptureOptions(parent=tmp_path / "a"))
    with ImageReader(tmp_path / "b") as image:
        assert image.algorithm.name == "sha256" and image.head.chunk_size == CHUNK


def busy_chain(folder: Path, nights: int) -> Chain:
    """A chunk that changes every night."""
    chain = Chain(folder)
    disk = noisy_disk(12)
    chain.add(disk)
    for number in range(nights):
        disk = changed(disk, (CHUNK + 10 * number, b"night"))
        chain.add(disk)
    return chain


def test_deltas_reach_back(tmp_path: Path) -> None:
    """As far as the night's number has zeros at its end, in base 4; so depth is its digits' sum."""
    chain = busy_chain(tmp_path, 18)
    for number, disk in enumerate(chain.disks):
        with OpenChain(chain.path(number)) as opened:
            assert opened.find_chunk(CHUNK).depth == number % 4 + number // 4 % 4 + number // 16
            assert len(opened.head.parents) == (number > 0) + (number > 0 and number % 4 == 0)
        assert exported(chain.path(number), tmp_path) == disk.stored
    with ImageReader(chain.path(16)) as image:
        assert [reference.file for reference in image.head.parents] == [
            "night-15.img",
            "night-0.img",
        ]
        segment = next(image.segments())
        assert isinstance(segment, Segment) and [base.parent for base in segment.bases] == [1]
    assert max(result.image.size for result in chain.results[1:]) < 16_000


def test_a_base_far_back_that_is_of_no_use(tmp_path: Path) -> None:
    """What was first written after it: the parent's chunk serves."""
    chain = Chain(tmp_path)
    disk = noisy_disk(12)
    for number in range(5):
        if number == 2:
            disk = changed(disk, (5 * CHUNK, random.Random(3).randbytes(CHUNK)))
            disk = changed(disk, (CHUNK, random.Random(4).randbytes(CHUNK)))
        disk = changed(disk, (5 * CHUNK + number, b"x"), (CHUNK + number, b"x"))
        chain.add(disk)
    with ImageReader(chain.path(4)) as image:
        segment = next(image.segments())
        assert isinstance(segment, Segment) and [base.parent for base in segment.bases] == [0, 0]
    assert_is(chain.path(4), disk, tmp_path)


def test_a_full_image_takes_an_incremental_ones_place(tmp_path: Path) -> None:
    """What refers to it finds it by its id; what deltas need besides is found apart from the chain."""
    chain = busy_chain(tmp_path, 6)
    export(chain.path(3), tmp_path / "full-3", same_id=True)
    for number in (1, 2, 3):
        chain.path(number).unlink()
    with OpenChain(chain.path(6)) as opened:
        assert [image.file.path.name for image in opened.images] == [
            "night-6.img",
            "night-5.img",
            "night-4.img",
            "full-3",
            "night-0.img",
        ]
        assert opened.length == 4
    for number in (4, 5, 6):
        assert_is(chain.path(number), chain.disks[number], tmp_path)
    disk = changed(chain.disks[6], (CHUNK + 500, b"another"), (3 * CHUNK, b"x"))
    chain.add(disk)
    assert_is(chain.path(7), disk, tmp_path)
    chain.path(0).unlink()
    result = check(chain.path(6))
    assert "night-0.img" in result.problems[0].message
    # Only the chunk whose deltas reach back to it is lost.
    assert result.lost == Extents.span(CHUNK, 2 * CHUNK)


def test_nothing_but_what_it_needs_is_needed(tmp_path: Path) -> None:
    """All frames that are not needed can be overwritten in the images behind."""
    (tmp_path / "nights").mkdir()
    chain = three_nights(tmp_path / "nights")
    with OpenChain(chain.path(2)) as opened:
        needed = {(image, entry.offset) for image, entry in opened.needs()}
        unneeded = [
            (opened.images[place].file.path, entry)
            for place in (1, 2)
            for segment in opened.images[place].segments()
            if isinstance(segment, Segment)
            for entry in segment.entries
            if entry.stored_size and (place, entry.offset) not in needed
        ]
    assert len(unneeded) == 4
    for path, entry in unneeded:
        with path.open("r+b") as file:
            file.seek(entry.offset)
            file.write(bytes(entry.stored_size))
    assert check(chain.path(0)).verdict == "failed"
    assert_is(chain.path(2), chain.disks[2], tmp_path)


def test_deltas_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imager.parent_image.MAX_DELTA_DEPTH", 3)
    monkeypatch.setattr("imager.parent_image.DELTA_STRIDE", 1000)
    chain = busy_chain(tmp_path, 7)
    stored = [ChunkKind.DELTA in kinds(chain.path(n)) for n in range(1, len(chain.disks))]
    assert stored == [True] * 3 + [False] + [True] * 3
    for number, each in enumerate(chain.disks):
        assert exported(chain.path(number), tmp_path) == each.stored


def test_renamed_and_moved(nights: Chain, tmp_path: Path) -> None:
    """The store's folder has another name, and so have the images."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(nights.folder, folder)
    for number, name in enumerate(("c.img", "a.img", "b.img")):
        (folder / f"night-{number}.img").rename(folder / name)
    # What has the hinted name is another image.
    capture_disk(noisy_disk(seed=9), folder / "night-0.img")
    assert_is(folder / "b.img", nights.disks[2], tmp_path)
    (folder / "a.img").write_bytes(nights.path(0).read_bytes())
    with pytest.raises(
        ImageError, match=r"night-1\.img of 20\d\d-.*\(id [0-9a-f-]{36}\) is missing"
    ):
        restored(folder / "b.img", tmp_path)


def test_a_missing_parent_is_named(nights: Chain, tmp_path: Path) -> None:
    for number in (0, 2):
        shutil.copy(nights.path(number), tmp_path)
    line = failure("restore", "--yes", tmp_path / "night-2.img", tmp_path / "target", status=4)
    with ImageReader(nights.path(2)) as image:
        reference = image.head.parents[0]
    assert reference.describe() in line and "is missing" in line and str(tmp_path) in line
    assert not (tmp_path / "target").exists()
    shown = imager("check", tmp_path / "night-2.img", status=4).out
    assert reference.describe() in shown
    assert reference.describe() in imager("info", tmp_path / "night-2.img", status=4).out
    assert info_of(tmp_path / "night-2.img", 4)["broken"].endswith(f"not in {tmp_path}")


def info_of(image: Path, status: int) -> Any:
    return json.loads(imager("info", "--json", image, status=status).out)


def test_a_parent_that_is_not_what_it_was(nights: Chain, tmp_path: Path) -> None:
    """Its id is the same, its content another: made by somebody who wants to deceive."""
    for number in range(3):
        shutil.copy(nights.path(number), tmp_path)
    with ImageReader(nights.path(0)) as image:
        uuid = image.uuid
    (tmp_path / "night-0.img").unlink()
    with_uuid(changed(nights.disks[0], (CHUNK, b"other")), tmp_path / "night-0.img", uuid)
    result = check(tmp_path / "night-2.img")
    assert result.verdict == "failed"
    assert "another content digest" in result.problems[0].message
    with pytest.raises(ImageError, match="another content digest"):
        restored(tmp_path / "night-2.img", tmp_path)


def with_uuid(disk: Disk, image: Path, uuid: bytes) -> None:
    """Capture `disk` as an image with this id."""

    class Fixed:
        bytes = uuid

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imager.image_filler.uuid.uuid4", Fixed)
        capture_disk(disk, image)


def test_a_loop_ends(tmp_path: Path) -> None:
    """Two images that name each other: made with ids known beforehand."""
    disk = noisy_disk(4)
    ids = [bytes([number]) * 16 for number in (1, 2)]
    with_uuid(disk, tmp_path / "a", ids[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imager.image_filler.uuid.uuid4", lambda: type("Id", (), {"bytes": ids[1]}))
        capture_disk(disk, tmp_path / "b", tmp_path / "a")
        (tmp_path / "a").rename(tmp_path / "old-a")
        patch.setattr("imager.image_filler.uuid.uuid4", lambda: type("Id", (), {"bytes": ids[0]}))
        (tmp_path / "old-a").rename(tmp_path / "a")
        capture_disk(disk, tmp_path / "c", tmp_path / "b")  # has the id of a
    (tmp_path / "a").unlink()
    result = check(tmp_path / "c")
    assert result.verdict == "failed"
    assert "loop" in result.problems[0].message
    with pytest.raises(ImageError, match="loop"):
        restored(tmp_path / "c", tmp_path)


def test_a_long_chain_is_refused_before_it_is_read(
    nights: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("imager.image.chain", "imager.parent_image"):
        monkeypatch.setattr(f"{module}.MAX_CHAIN", 3)
    shutil.copytree(nights.folder, tmp_path / "copy")
    image = tmp_path / "copy" / "night-3.img"
    with pytest.raises(RefusedError, match="full image"):
        capture_disk(nights.disks[2], image, tmp_path / "copy" / "night-2.img")
    monkeypatch.undo()
    capture_disk(nights.disks[2], image, tmp_path / "copy" / "night-2.img")
    monkeypatch.setattr("imager.image.chain.MAX_CHAIN", 3)
    assert "more than 2 others" in check(image).problems[0].message


class TestParentsThatDoNotFit:
    def test_another_disk(self, nights: Chain, tmp_path: Path) -> None:
        shutil.copy(nights.path(0), tmp_path)
        with pytest.raises(RefusedError, match="disk of"):
            capture_disk(noisy_disk(5), tmp_path / "child", tmp_path / "night-0.img")
        assert not list(tmp_path.glob("child*"))

    def test_other_sectors(self, nights: Chain, tmp_path: Path) -> None:
        source = tmp_path / "disk"
        source.write_bytes(bytes(8 * CHUNK))
        capture(source, tmp_path / "a")
        options = CaptureOptions(parent=tmp_path / "a", sector_size=4096)
        with pytest.raises(RefusedError, match="sectors"):
            capture(source, tmp_path / "b", options)

    def test_another_folder(self, nights: Chain, tmp_path: Path) -> None:
        with pytest.raises(RefusedError, match="another folder"):
            capture_disk(nights.disks[0], tmp_path / "child", nights.path(0))

    def test_unfinished(self, nights: Chain, tmp_path: Path) -> None:
        partial = tmp_path / "a.partial"
        partial.write_bytes(nights.path(0).read_bytes()[:100_000])
        with pytest.raises(ImageError, match="unfinished"):
            capture_disk(nights.disks[0], tmp_path / "b", partial)

    def test_damaged_where_it_says_what_it_holds(self, nights: Chain, tmp_path: Path) -> None:
        data = bytearray(nights.path(0).read_bytes())
        with ImageReader(nights.path(0)) as image:
            for item in image.items():
                data[item.offset + 60] ^= 1
                data[item.copy_offset + 60] ^= 1
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(ImageError, match="damaged"):
            capture_disk(nights.disks[0], tmp_path / "b", tmp_path / "a")
        everything = Extents.span(0, nights.disks[0].size)
        capture_disk(nights.disks[0], tmp_path / "b", tmp_path / "a", distrusted=everything)
        assert exported(tmp_path / "b", tmp_path) == nights.disks[0].stored

    def test_nothing_to_distrust(self) -> None:
        with pytest.raises(UsageError):
            CaptureOptions(distrusted=Extents.span(0, 1))


def test_a_damaged_base_is_not_used(nights: Chain, tmp_path: Path) -> None:
    """The capture heals: what changed and has lost its base is stored whole."""
    data = bytearray(nights.path(0).read_bytes())
    data[frame_of(nights.path(0), 1) + 100] ^= 1
    (tmp_path / "a").write_bytes(data)
    disk = changed(nights.disks[0], (CHUNK + 100, b"changed"), (2 * CHUNK, b"changed"))
    capture_disk(disk, tmp_path / "b", tmp_path / "a")
    found = {start: kind for start, _, kind, _ in entries(tmp_path / "b")}
    assert found[CHUNK] == ChunkKind.DATA and found[2 * CHUNK] == ChunkKind.DELTA
    assert_is(tmp_path / "b", disk, tmp_path)


def test_distrusted_ranges_are_stored_again(nights: Chain, tmp_path: Path) -> None:
    shutil.copy(nights.path(0), tmp_path / "a")
    bad = Extents.span(CHUNK, 2 * CHUNK)
    capture_disk(nights.disks[0], tmp_path / "b", tmp_path / "a", distrusted=bad)
    assert entries(tmp_path / "b")[1] == (CHUNK, 2 * CHUNK, ChunkKind.DATA, 0)
    assert_is(tmp_path / "b", nights.disks[0], tmp_path)


def test_the_parent_goes_while_the_capture_runs(nights: Chain, tmp_path: Path) -> None:
    shutil.copy(nights.path(0), tmp_path / "a")

    gone_in = ""

    def vanish(phase: str, *_: object) -> None:
        if phase == gone_in:
            (tmp_path / "a").unlink(missing_ok=True)

    source = tmp_path / "disk"
    source.write_bytes(nights.disks[0].stored)
    options = CaptureOptions(parent=tmp_path / "a")
    gone_in = "survey"
    with pytest.raises(ImageError, match="was given up or moved meanwhile"):
        capture(source, tmp_path / "b", options, vanish)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk"]
    shutil.copy(nights.path(0), tmp_path / "a")
    gone_in = "capture"
    result = capture(source, tmp_path / "b", options, vanish)
    assert result.verdict == "failed"
    assert result.parent and result.parent.describe() in result.parent_problem
    assert (tmp_path / "b").exists()


def test_from_a_pipe_it_is_refused(nights: Chain, tmp_path: Path) -> None:
    with nights.path(1).open("rb") as stream:
        line = failure(
            "restore", "--yes", "--verify-while-writing", "-", tmp_path / "target",
            status=5, stdin=stream,
        )  # fmt: skip
    assert "night-0.img" in line and "imager export" in line
    assert not (tmp_path / "target").exists()


def test_to_a_pipe(nights: Chain, tmp_path: Path) -> None:
    shutil.copy(nights.path(0), tmp_path / "a")
    source = tmp_path / "disk"
    source.write_bytes(nights.disks[0].stored)
    with (tmp_path / "b").open("wb") as out:
        options = CaptureOptions(parent=tmp_path / "a")
        result = capture(source, out.fileno(), options)
    assert not result.parent_problem
    assert exported(tmp_path / "b", tmp_path) == nights.disks[0].stored


def test_one_partition_of_a_chain(nights: Chain, tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    left_out = Extents.span(10 * CHUNK, 12 * CHUNK)
    disk = changed(noisy_disk(), excluded=left_out)
    chain.add(disk)
    disk = changed(disk, (20 * CHUNK + 5, b"changed"))
    chain.add(disk)
    target = tmp_path / "target"
    imager("restore", "--yes", "--partition", 3, chain.path(1), target)
    assert target.read_bytes() == disk.stored[12 * CHUNK :]


class TestExport:
    def test_full_image(self, nights: Chain, tmp_path: Path) -> None:
        out = tmp_path / "full.img"
        imager("export", nights.path(2), out)
        assert not zstd_refuses(out)
        described = info(out)
        assert described["head"]["parents"] == []
        assert described["head"]["exported"]["uuid"] == info(nights.path(2))["uuid"]
        assert described["content_digest"] == info(nights.path(2))["content_digest"]
        assert_is(out, nights.disks[2], tmp_path)

    def test_of_a_degraded_one(self, tmp_path: Path) -> None:
        disk = changed(noisy_disk(), unreadable=Extents.span(3 * CHUNK, 3 * CHUNK + 512))
        capture_disk(disk, tmp_path / "a")
        capture_disk(disk, tmp_path / "b", tmp_path / "a")
        imager("export", tmp_path / "b", tmp_path / "c", status=3)
        assert_is(tmp_path / "c", disk, tmp_path)

    def test_of_a_partial_one(self, tmp_path: Path) -> None:
        disk = changed(noisy_disk(), excluded=Extents.span(3 * CHUNK, 5 * CHUNK))
        capture_disk(disk, tmp_path / "a")
        capture_disk(disk, tmp_path / "b", tmp_path / "a")
        imager("export", tmp_path / "b", tmp_path / "c")
        assert zstd_refuses(tmp_path / "c")
        assert_is(tmp_path / "c", disk, tmp_path)

    def test_raw_is_sparse(self, nights: Chain, tmp_path: Path) -> None:
        imager("export", "--raw", nights.path(2), tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes() == nights.disks[2].stored
        assert (tmp_path / "raw").stat().st_blocks * 512 < nights.disks[2].size

    def test_through_a_pipe(self, nights: Chain, tmp_path: Path) -> None:
        out = tmp_path / "full.img"
        with out.open("wb") as stream:
            export(nights.path(2), stream.fileno())
        assert_is(out, nights.disks[2], tmp_path)

    def test_nothing_is_overwritten(self, nights: Chain, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.write_bytes(b"precious")
        for form in ((), ("--raw",)):
            failure("export", *form, nights.path(2), out, status=5)
        assert out.read_bytes() == b"precious"

    def test_damage_ends_it(self, nights: Chain, tmp_path: Path) -> None:
        shutil.copytree(nights.folder, tmp_path / "copy")
        data = bytearray(nights.path(0).read_bytes())
        data[frame_of(nights.path(0), 0) + 100] ^= 1
        (tmp_path / "copy" / "night-0.img").write_bytes(data)
        for form in ((), ("--raw",)):
            line = failure(
                "export", *form, tmp_path / "copy" / "night-2.img", tmp_path / "out", status=4
            )
            assert "night-0.img is damaged" in line
            assert not list(tmp_path.glob("out*"))

    def test_no_qemu_img(self, nights: Chain, tmp_path: Path) -> None:
        words = ("export", "--qcow2", nights.path(2), tmp_path / "out")
        assert "qemu-utils" in failure(*words, status=9, environ={"PATH": str(tmp_path)})
        assert not list(tmp_path.iterdir())


class TestDiff:
    def test_what_changed(self, nights: Chain) -> None:
        found = json.loads(imager("diff", "--json", nights.path(1), nights.path(2)).out)
        last = nights.disks[2].size // CHUNK * CHUNK
        assert found["changed"] == [
            [CHUNK, CHUNK + 4096],
            [20 * CHUNK, 20 * CHUNK + 4096],
            [last, nights.disks[2].size],
        ]
        assert [volume["number"] for volume in found["volumes"]] == [1]
        assert "differ" in imager("diff", nights.path(0), nights.path(2)).out

    def test_nothing(self, nights: Chain) -> None:
        assert imager("diff", nights.path(2), nights.path(2)).out == "nothing differs\n"

    def test_either_way(self, nights: Chain) -> None:
        there = json.loads(imager("diff", "--json", nights.path(0), nights.path(2)).out)
        back = json.loads(imager("diff", "--json", nights.path(2), nights.path(0)).out)
        assert there["changed"] == back["changed"]

    def test_of_other_disks(self, nights: Chain, tmp_path: Path) -> None:
        capture_disk(noisy_disk(3), tmp_path / "other")
        failure("diff", nights.path(0), tmp_path / "other", status=2)


def sectors(count: int) -> st.SearchStrategy[Extents]:
    """Up to three ranges of sectors of a disk."""
    pairs = st.tuples(st.integers(0, count - 1), st.integers(1, 200))
    return st.lists(pairs, max_size=3).map(
        lambda found: Extents.of((a * 512, min(a + n, count) * 512) for a, n in found)
    )


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Disk, int | None]]:
    """A disk from night to night, and the size of the parts of each image."""
    chunks = draw(st.integers(1, 12))
    count = chunks * (CHUNK // 512) + draw(st.integers(0, 3))
    content = bytearray(count * 512)
    states: list[tuple[Disk, int | None]] = []
    for night in range(draw(st.integers(2, 5))):
        for _ in range(draw(st.integers(0, 4))):
            offset = draw(st.integers(0, len(content) - 1))
            size = draw(st.sampled_from((1, 100, 5000, CHUNK, 3 * CHUNK)))
            data = random.Random(draw(st.integers(0, 3))).randbytes(size)
            if draw(st.integers(0, 3)) == 0:
                data = bytes(size)
            content[offset : offset + size] = data[: len(content) - offset]
        excluded = Extents()
        if draw(st.booleans()):
            first = draw(st.integers(0, chunks - 1))
            excluded = Extents.span(first * CHUNK, (first + 1) * CHUNK)
        if night and draw(st.booleans()):
            excluded = states[-1][0].excluded
        unused = states[-1][0].unused if night and draw(st.booleans()) else draw(sectors(count))
        unreadable = draw(sectors(count)) if draw(st.integers(0, 2)) == 0 else Extents()
        disk = Disk(bytes(content), unused - excluded, excluded, unreadable - unused - excluded)
        states.append((disk, draw(st.sampled_from((None, None, 70_000)))))
    return states


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_any_history(history: list[tuple[Disk, int | None]]) -> None:
    with TemporaryDirectory() as name:
        chain = Chain(Path(name))
        for disk, split in history:
            chain.add(disk, split=split)
        for number, disk in enumerate(chain.disks):
            assert_is(chain.path(number), disk, Path(name))
        export(chain.path(len(history) - 1), Path(name) / "full")
        assert_is(Path(name) / "full", chain.disks[-1], Path(name))


def test_parents_that_lie_elsewhere(nights: Chain, tmp_path: Path) -> None:
    """Three images in three folders, one of them renamed."""
    places = [tmp_path / name for name in ("a", "b", "c")]
    for number, place in enumerate(places):
        place.mkdir()
        shutil.copy(nights.path(number), place)
    (places[0] / "night-0.img").rename(places[0] / "moved.img")
    image = places[2] / "night-2.img"
    assert f"it is not in {places[2]}" in imager("check", image, status=4).out
    words = ("--parents", places[1], "--parents", places[0])
    imager("check", image, *words)
    assert len(json.loads(imager("info", "--json", image, *words).out)["chain"]) == 2
    assert "differ" in imager("diff", nights.path(0), image, *words).out
    for command in (("export", "--raw", image), ("restore", "--yes", image)):
        imager(*command, tmp_path / "out", *words)
        assert (tmp_path / "out").read_bytes() == nights.disks[2].stored
        (tmp_path / "out").unlink()
    line = failure("export", "--raw", image, tmp_path / "out", "--parents", places[1], status=4)
    assert f"not in {places[1]} or {places[1]}" not in line and "night-0.img" in line
    # A folder that is not there costs nothing; a target that holds a parent is refused as ever.
    imager("check", image, *words, "--parents", tmp_path / "missing")
    assert "holds the image" in failure(
        "restore", "--yes", image, places[0] / "moved.img", *words, status=5
    )


def test_a_chain_checked_in_one_go(nights: Chain, tmp_path: Path) -> None:
    """What one image has proved is not looked at again for the next; what is damaged is."""
    for number in range(3):
        shutil.copy(nights.path(number), tmp_path)
    images = [tmp_path / f"night-{number}.img" for number in (2, 0, 1)]
    assert imager("check", *images).out.count(": ok (") == 3
    data = bytearray(images[1].read_bytes())
    data[frame_of(images[1], 2) + 100] ^= 1
    images[1].write_bytes(data)
    reports = json.loads(imager("check", "--json", *images, status=4).out)
    alone = [json.loads(imager("check", "--json", image, status=4).out) for image in images]
    for report in (*reports, *alone):
        del report["seconds"]
    assert reports == alone
