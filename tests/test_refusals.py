"""What would destroy something, or give an image that is no good, is refused."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.command import IMAGER, ROOT, failure, imager, info, volumes
from tests.comparing import digest
from tests.disks import MIB, clone, put, run
from tests.loop import LoopDevice, mounted, swapped_on
from tests.small_disk import NOISE, SMALL_SIZE, ScannedLoopDevice, Small, garbage, garbage_device


class TestRefusals:
    """What would destroy something, or give an image that is no good, touches nothing."""

    def test_larger_sectors(self, tmp_path: Path) -> None:
        with LoopDevice(tmp_path / "disk", 8 * MIB, 4096) as device:
            put(device.file, 0, b"content")
            imager("capture", device.path, tmp_path / "image")
        with garbage_device(tmp_path, 8 * MIB) as target:
            assert "sectors of 512 bytes" in self.refused(tmp_path / "image", target)

    def test_too_small(self, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE - 512) as target:
            assert f"{SMALL_SIZE} are needed" in self.refused(small.image, target)

    def test_mounted(self, small: Small, tmp_path: Path) -> None:
        with (
            self.copy(small, tmp_path) as target,
            mounted(target.partition(1), tmp_path / "at", "ro") as place,
        ):
            assert f"is mounted on {place}" in self.refused(small.image, target)
            # But its neighbour is not in use.
            imager("restore", "--yes", "--partition", 2, small.image, target.partition(2))

    def test_swapped_on(self, small: Small, tmp_path: Path) -> None:
        with self.copy(small, tmp_path) as target:
            run("mkswap", target.partition(NOISE))
            with swapped_on(target.partition(NOISE)):
                assert "swap" in self.refused(small.image, target)

    def test_held(self, small: Small, tmp_path: Path) -> None:
        with self.copy(small, tmp_path) as target:
            fd = os.open(target.path, os.O_RDONLY | os.O_EXCL)
            try:
                assert "in use" in self.refused(small.image, target)
            finally:
                os.close(fd)

    def test_holds_the_image(self, small: Small, tmp_path: Path) -> None:
        with LoopDevice(tmp_path / "store", 2 * SMALL_SIZE) as target:
            run("mkfs.ext4", "-q", target.path)
            with mounted(target.path, tmp_path / "at") as place:
                run("cp", small.image, place / "image")
            with mounted(target.path, tmp_path / "at", "ro") as place:
                assert "holds the image" in self.refused(place / "image", target)

    def test_attached_file(self, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            before = digest(target.file)
            line = failure("restore", "--yes", small.image, target.file, status=5)
            assert f"attached to {target.path}" in line
            assert digest(target.file) == before

    def test_nobody_confirms(self, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            before = digest(target.file)
            # A session without a terminal cannot be asked.
            line = failure(
                "restore", small.image, target.path, status=5, program=("setsid", "-w", *IMAGER)
            )
            assert "--yes" in line
            assert digest(target.file) == before

    @pytest.mark.parametrize("answer", ["right", "wrong", "nothing"])
    def test_asked(self, answer: str, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            before = digest(target.file)
            typed = {"right": target.path.name, "wrong": "sda", "nothing": ""}[answer]
            words = [*IMAGER, "restore", str(small.image), str(target.path)]
            done = subprocess.run(
                ["script", "--quiet", "--return", "--command", shlex.join(words), "/dev/null"],
                input=typed + "\n",
                capture_output=True,
                text=True,
                cwd=ROOT,
                check=False,
            )
            assert f"Type {target.path.name} to go on" in done.stdout
            if answer == "right":
                assert done.returncode == 0, done
                imager("check", "--against", target.path, small.image)
            else:
                assert done.returncode == 5, done
                assert "not confirmed: nothing was written" in done.stdout
                assert digest(target.file) == before

    def test_write_protected(self, small: Small, tmp_path: Path) -> None:
        garbage(tmp_path / "target", SMALL_SIZE)
        with LoopDevice(tmp_path / "target", read_only=True) as target:
            assert "read-only" in self.refused(small.image, target)

    def test_source_mounted(self, small: Small, tmp_path: Path) -> None:
        with self.copy(small, tmp_path) as source:
            with mounted(source.partition(1), tmp_path / "at") as place:
                offline = ("capture", "--consistency", "offline", source.path)
                line = failure(*offline, tmp_path / "image", status=5)
                assert str(place) in line and "at one instant" in line
                assert not (tmp_path / "image").exists()
                crash = ("capture", "--consistency", "crash", source.path)
                line = failure(*crash, place / "image", status=5)
                assert "lies on the disk" in line
                imager(*crash, tmp_path / "image")
            described = info(tmp_path / "image")
            assert described["head"]["consistency"] == "crash"
            assert {v["stored"] for v in volumes(described)} == {"raw"}
            assert {v["reason"] for v in volumes(described)} == {"the disk was in use"}

    def test_source_mounted_read_only(self, small: Small, tmp_path: Path) -> None:
        with (
            self.copy(small, tmp_path) as source,
            mounted(source.partition(1), tmp_path / "at", "ro"),
        ):
            imager("capture", source.path, tmp_path / "image")

    def test_image_is_never_overwritten(self, small: Small, tmp_path: Path) -> None:
        for name in ("image", "split.0001", "split.0001.last", "begun.partial"):
            (tmp_path / name).write_text("precious")
        for name, word in (("image", "exists"), ("split", "exists"), ("begun", "--resume")):
            line = failure("capture", small.disk, tmp_path / name, status=5)
            assert word in line
        for name in ("image", "split.0001", "split.0001.last", "begun.partial"):
            assert (tmp_path / name).read_text() == "precious"

    def copy(self, small: Small, folder: Path) -> LoopDevice:
        return ScannedLoopDevice(clone(small.disk, folder / "copy"))

    def refused(self, image: Path, target: LoopDevice) -> str:
        before = digest(target.path)
        line = failure("restore", "--yes", image, target.path, status=5)
        assert digest(target.path) == before
        return line
