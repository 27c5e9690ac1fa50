"""Images in parts, and images that nobody stores."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import IO

import pytest

from tests.command import IMAGER, ROOT, failure, imager, plain_zstd, same_bytes, zstd_refuses
from tests.comparing import disk_facts, files_of, gpt_is_sound
from tests.disks import MIB
from tests.loop import LoopDevice, sparse_file
from tests.small_disk import SMALL_KINDS, SMALL_SIZE, Small, blkid, garbage, garbage_device


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a disk and its image in three parts."""
    folder = tmp_path_factory.mktemp("split")
    (folder / "disk").write_bytes(random.Random(2).randbytes(150 * MIB))
    imager("capture", "--level", 1, "--split", "64M", folder / "disk", folder / "image")
    return folder


class TestSplit:
    """An image in parts."""

    def test_parts(self, split: Path, tmp_path: Path) -> None:
        names = sorted(path.name for path in split.iterdir())
        assert names == ["disk", "image.0001", "image.0002", "image.0003.last"]
        parts = tuple(split / name for name in names[1:])
        assert all(part.stat().st_size <= 64 * MIB for part in parts)
        assert same_bytes(split / "disk", plain_zstd(parts, tmp_path))

    @pytest.mark.parametrize("name", ["image", "image.0001", "image.0002", "image.0003.last"])
    def test_any_name_will_do(self, name: str, split: Path, tmp_path: Path) -> None:
        imager("check", "--quick", split / name)
        done = imager("info", "--json", split / name)
        assert len(json.loads(done.out)["files"]) == 3
        if name in ("image", "image.0002"):
            imager("restore", "--yes", split / name, tmp_path / "new")
            assert same_bytes(split / "disk", tmp_path / "new")

    @pytest.mark.parametrize("missing", ["image.0001", "image.0002", "image.0003.last"])
    def test_missing_part(self, missing: str, split: Path, tmp_path: Path) -> None:
        for part in split.glob("image.*"):
            if part.name != missing:
                (tmp_path / part.name).symlink_to(part)
        line = failure("restore", "--yes", tmp_path / "image", tmp_path / "new", status=4)
        assert "part" in line and "image" in line
        assert not (tmp_path / "new").exists()
        if missing != "image.0001":
            done = imager("check", tmp_path / "image", status=4)
            assert "can still be read" in done.out

    @pytest.mark.parametrize(
        ("size", "options", "words"),
        [
            (1 << 40, ("--split", "64M"), "larger --split or --chunk-size"),
            (12 << 40, (), "larger --chunk-size"),
        ],
    )
    def test_too_many_chunks_are_refused_at_once(
        self, size: int, options: tuple[str, ...], words: str, tmp_path: Path
    ) -> None:
        disk = sparse_file(tmp_path / "disk", size)
        line = failure(
            *("capture", "--raw", "--chunk-size", "64KiB", *options),
            *(disk, tmp_path / "image"),
            status=2,
        )
        assert words in line
        assert list(tmp_path.iterdir()) == [disk]

    def test_four_gibibytes_fit_onto_fat32(self, small: Small, tmp_path: Path) -> None:
        imager("capture", "--split", "4G", small.disk, tmp_path / "image")
        imager("check", tmp_path / "image.0001.last")


class TestPipes:
    """Without an image file, or without a disk's name."""

    def test_image_from_and_to_a_pipe(self, small: Small, tmp_path: Path) -> None:
        image = tmp_path / "image"
        with image.open("wb") as file:
            run_piped([*IMAGER, "capture", str(small.disk), "-"], file)
        imager("check", "--against", small.disk, image)
        assert not zstd_refuses(image)
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            with image.open("rb") as file:
                done = imager(
                    "restore", "--yes", "--verify-while-writing", "-", target.path, stdin=file
                )
            assert "verified only while it is written" in done.out
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts

    def test_disk_to_disk(self, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE + 3 * MIB) as target:
            capture = subprocess.Popen(
                [*IMAGER, "capture", "-q", small.disk, "-"], stdout=subprocess.PIPE, cwd=ROOT
            )
            options = ("--yes", "--verify-while-writing")
            imager("restore", *options, "-", target.path, stdin=capture.stdout)
            assert capture.wait() == 0
            assert gpt_is_sound(target.path)
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts

    def test_partial_image_through_a_pipe(self, small: Small, tmp_path: Path) -> None:
        image = tmp_path / "image"
        with image.open("wb") as file:
            run_piped([*IMAGER, "capture", "--exclude", "3", str(small.disk), "-"], file)
        assert zstd_refuses(image)
        with image.open("rb") as file:
            words = ("restore", "--yes", "--verify-while-writing", "--partition", "2", "-")
            imager(*words, tmp_path / "new", stdin=file)
        with LoopDevice(tmp_path / "new") as target:
            assert files_of(target.path, "ext2", tmp_path) == small.facts[2]

    def test_needs_to_be_told_that_it_is_verified_late(self, small: Small, tmp_path: Path) -> None:
        with small.image.open("rb") as file:
            line = failure("restore", "--yes", "-", tmp_path / "new", status=2, stdin=file)
        assert "--verify-while-writing" in line

    def test_stream_cut_short(self, small: Small, tmp_path: Path) -> None:
        data = small.image.read_bytes()
        words = ("restore", "--yes", "--verify-while-writing", "-")
        for share in (0.0, 0.0001, 0.4, 0.99):
            (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
            garbage(tmp_path / "target", SMALL_SIZE)
            with (tmp_path / "cut").open("rb") as file:
                line = failure(*words, tmp_path / "target", status=4, stdin=file)
            assert "cut short" in line
            if share > 0.3:
                assert blkid(tmp_path / "target") == ""
            (tmp_path / "target").unlink()


def run_piped(command: list[str], out: IO[bytes]) -> None:
    """Run with standard output to a file by way of a pipe, which cannot be seeked."""
    first = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    subprocess.run(["cat"], stdin=first.stdout, stdout=out, check=True)
    assert first.wait() == 0
