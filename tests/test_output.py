"""What scripts and people see."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import failure, imager
from tests.comparing import digest
from tests.disks import clone, put
from tests.small_disk import NOISE, SMALL_PARTS, SMALL_SIZE, Small, garbage, garbage_device


class TestOutput:
    """What scripts and people see."""

    def test_json(self, small: Small, tmp_path: Path) -> None:
        target = garbage(tmp_path / "target", SMALL_SIZE)
        for words in (
            ("capture", small.disk, tmp_path / "image"),
            ("capture", "--dry-run", small.disk),
            ("capture", "--verify", small.disk, tmp_path / "verified"),
            ("check", small.image),
            ("check", "--quick", small.image),
            ("check", "--against", small.disk, small.image, small.image),
            ("info", small.image),
            ("restore", "--dry-run", small.image, target),
            ("restore", "--yes", small.image, target),
            ("devices",),
        ):
            done = imager(*words, "--json")
            assert json.loads(done.out) and not done.err, words

    def test_quiet(self, small: Small, tmp_path: Path) -> None:
        target = garbage(tmp_path / "target", SMALL_SIZE)
        for words in (
            ("capture", small.disk, tmp_path / "image"),
            ("check", small.image),
            ("info", small.image),
            ("restore", "--yes", small.image, target),
        ):
            done = imager(*words, "--quiet")
            assert (done.out, done.err) == ("", ""), words

    def test_quiet_failure_says_one_line(self, small: Small, tmp_path: Path) -> None:
        damaged = clone(small.image, tmp_path / "image")
        put(damaged, small.image.stat().st_size // 2, b"damage")
        assert f"{damaged}: failed" in failure("check", "--quiet", damaged, status=4)

    def test_dry_run_touches_nothing(self, small: Small, tmp_path: Path) -> None:
        done = imager("capture", "--dry-run", small.disk, tmp_path / "image")
        assert "expected image: about" in done.out
        assert list(tmp_path.iterdir()) == []
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            before = digest(target.file)
            done = imager("restore", "--dry-run", small.image, target.path)
            assert digest(target.file) == before
        for words in ("On it now", "volume-1", "volume-4"):
            assert words in done.out

    def test_expected_size_is_about_right(self, small: Small) -> None:
        done = imager("capture", "--dry-run", "--json", small.disk)
        expected = json.loads(done.out)["expected_image_size"]
        assert 0.8 < expected / small.image.stat().st_size < 1.25

    def test_map(self, small: Small) -> None:
        out = imager("info", "--map", small.image).out
        assert "#" in out and "." in out and "used" in out

    def test_check_verified_right_afterwards(self, small: Small, tmp_path: Path) -> None:
        done = imager("capture", "--verify", small.disk, tmp_path / "image")
        assert "checked: ok" in done.out

    def test_check_against_another_disk(self, small: Small, tmp_path: Path) -> None:
        disk = clone(small.disk, tmp_path / "disk")
        put(disk, SMALL_PARTS[NOISE][0] * 512 + 999, b"changed")
        done = imager("check", "--against", disk, small.image, status=8)
        assert "the disk differs" in done.out and "partition 3" in done.out
