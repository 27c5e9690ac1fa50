"""Kills, full disks, bad sectors and lying media: nothing is lost silently, nothing looks done."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imager.image.format import RangeKind
from imager.image.index import Segment
from imager.image.reader import ImageReader
from tests.command import IMAGER, ROOT, all_zero, failure, imager, info, same_bytes, zstd_refuses
from tests.comparing import digest, disk_facts
from tests.disks import MIB, clone, get, put, run
from tests.faulty import ENDLESS, STILL, Fault, faulty
from tests.loop import LoopDevice
from tests.small_disk import (
    NOISE,
    SMALL_KINDS,
    SMALL_PARTS,
    SMALL_SIZE,
    Small,
    blkid,
    garbage,
    garbage_device,
)

NOISE_START = SMALL_PARTS[NOISE][0] * 512
CAPTURE = ("capture", "--chunk-size", "64K", "--json")
"""Small chunks, so that there are several segments to go on from."""


def reading(path: Path, action: str, start: int = 0, end: int = ENDLESS, skip: int = 0) -> Fault:
    return Fault("read", str(path), action, start, end, skip)


def writing(path: Path, action: str, start: int = 0, end: int = ENDLESS, skip: int = 0) -> Fault:
    return Fault("write", str(path), action, start, end, skip)


HEAD = 600
"""An unfinished image of so many bytes shows what it is; the rest is written in large pieces."""


class TestInterruptedCapture:
    """What `--resume` makes of a `.partial` is byte for byte what an uninterrupted capture makes."""

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
        image = tmp_path_factory.mktemp("whole") / "image"
        imager(*CAPTURE, small.disk, image, program=faulty(STILL))
        return image

    @pytest.mark.parametrize("share", [0.02, 0.29, 0.53, 0.71, 0.9999])
    def test_killed(self, share: float, small: Small, whole: Path, tmp_path: Path) -> None:
        at = int(whole.stat().st_size * share)
        partial = self.kill(small.disk, tmp_path / "image", at)
        assert partial.stat().st_size == at
        assert zstd_refuses(partial)
        failure("check", tmp_path / "image", status=4)
        failure("restore", "--yes", partial, tmp_path / "no", status=4)
        resumed = self.resume(small.disk, tmp_path / "image")
        assert same_bytes(tmp_path / "image", whole)
        assert not partial.exists()
        assert (resumed > 0) == (share > 0.1)

    @pytest.mark.parametrize("tail", ["zeros", "garbage", "lost", "torn"])
    def test_power_loss(self, tail: str, small: Small, whole: Path, tmp_path: Path) -> None:
        """What was written last may be anything."""
        partial = self.kill(small.disk, tmp_path / "image", whole.stat().st_size * 3 // 4)
        size = partial.stat().st_size
        if tail == "zeros":
            put(partial, size - 3 * MIB, bytes(3 * MIB + 5000))
        elif tail == "garbage":
            put(partial, size - MIB, random.Random(8).randbytes(2 * MIB))
        elif tail == "lost":
            os.truncate(partial, size - MIB)
        else:
            # A sector amid what seems to be complete never came to the disk.
            put(partial, size // 2, bytes(512))
        resumed = self.resume(small.disk, tmp_path / "image")
        assert 0 < resumed < SMALL_SIZE
        assert same_bytes(tmp_path / "image", whole)

    def test_source_changed_meanwhile(self, small: Small, whole: Path, tmp_path: Path) -> None:
        disk = clone(small.disk, tmp_path / "disk")
        self.kill(disk, tmp_path / "image", whole.stat().st_size * 3 // 4)
        # A word of a text that lies in the second segment.
        start = segments_of(whole)[1].start
        changed = start + get(disk, start, SMALL_SIZE - start).index(b" cluster ")
        put(disk, changed, b" CLUSTER ")
        resumed = self.resume(disk, tmp_path / "image")
        assert 0 < resumed == start <= changed
        imager(*CAPTURE, disk, tmp_path / "fresh", program=faulty(STILL))
        assert same_bytes(tmp_path / "image", tmp_path / "fresh")

    def test_cut_between_frames(self, small: Small, whole: Path, tmp_path: Path) -> None:
        """Not even then does plain zstd take it for the whole disk."""
        partial = self.kill(small.disk, tmp_path / "image", whole.stat().st_size * 3 // 4)
        with ImageReader(partial) as reader:
            *_, last = reader.items()
        os.truncate(partial, last.offset + last.size)
        assert zstd_refuses(partial)

    def test_another_disk(self, small: Small, tmp_path: Path) -> None:
        self.kill(small.disk, tmp_path / "image", 3 * MIB)
        other = garbage(tmp_path / "other", 4 * MIB)
        assert self.resume(other, tmp_path / "image") == 0
        imager("check", "--against", other, tmp_path / "image")

    def test_other_options(self, small: Small, tmp_path: Path) -> None:
        self.kill(small.disk, tmp_path / "image", 6 * MIB)
        words = ("capture", "--level", "1", "--json")
        done = imager(*words, "--resume", small.disk, tmp_path / "image")
        assert json.loads(done.out)["resumed"] == 0
        imager("check", "--against", small.disk, tmp_path / "image")

    @pytest.mark.parametrize("at", [0, 100, 511, 512, 700])
    def test_hardly_begun(self, at: int, small: Small, whole: Path, tmp_path: Path) -> None:
        self.kill(small.disk, tmp_path / "image", max(at, 1))
        os.truncate(tmp_path / "image.partial", at)
        assert self.resume(small.disk, tmp_path / "image") == 0
        assert same_bytes(tmp_path / "image", whole)

    def test_complete_but_not_renamed(self, small: Small, whole: Path, tmp_path: Path) -> None:
        fault = Fault("rename", str(tmp_path / "image.partial"), "kill")
        imager(*CAPTURE, small.disk, tmp_path / "image", status=-9, program=faulty(STILL, fault))
        assert same_bytes(tmp_path / "image.partial", whole)
        self.resume(small.disk, tmp_path / "image")
        assert same_bytes(tmp_path / "image", whole)

    def test_nothing_to_resume(self, small: Small, whole: Path, tmp_path: Path) -> None:
        assert self.resume(small.disk, tmp_path / "image") == 0
        assert same_bytes(tmp_path / "image", whole)
        line = failure("capture", "--resume", small.disk, tmp_path / "image", status=5)
        assert "never overwritten" in line

    def test_parts(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.write_bytes(random.Random(2).randbytes(70 * MIB))
        split = (*CAPTURE, "--split", "64M", "--level", "1")
        imager(*split, disk, tmp_path / "whole", program=faulty(STILL))
        names = ("image.0001", "image.0002.last")
        partial = tmp_path / "image.0002.partial"
        faults = (writing(partial, "kill", 2 * MIB), Fault("rename", str(partial), "kill"))
        for fault in faults:
            imager(*split, disk, tmp_path / "image", status=-9, program=faulty(STILL, fault))
            if fault.call == "write":
                assert "unfinished" in imager("info", tmp_path / "image", status=4).out
            done = imager(*split, "--resume", disk, tmp_path / "image", program=faulty(STILL))
            assert json.loads(done.out)["resumed"] > 0
            found = sorted(path.name for path in tmp_path.glob("image*"))
            assert found == list(names)
            for name in names:
                part = tmp_path / name
                assert same_bytes(part, tmp_path / name.replace("image", "whole"))
                part.unlink()

    def test_written_by_another(self, small: Small, tmp_path: Path) -> None:
        with running("capture", "--level", "19", small.disk, tmp_path / "image") as first:
            wait_for(tmp_path / "image.partial", HEAD)
            first.send_signal(signal.SIGSTOP)
            for words in ((), ("--resume",)):
                line = failure("capture", *words, small.disk, tmp_path / "image", status=5)
                assert "another capture" in line
            first.kill()

    def kill(self, disk: Path, image: Path, at: int) -> Path:
        """Capture until the image's byte `at`, and not one further."""
        partial = image.with_name(image.name + ".partial")
        fault = writing(partial, "kill", at)
        imager(*CAPTURE, disk, image, status=-9, program=faulty(STILL, fault))
        return partial

    def resume(self, disk: Path, image: Path) -> int:
        """Go on; how many bytes of the disk were taken over."""
        done = imager(*CAPTURE, "--resume", disk, image, program=faulty(STILL))
        found: int = json.loads(done.out)["resumed"]
        return found


class TestSignals:
    """A polite end leaves one line."""

    @pytest.mark.parametrize(
        ("number", "status", "word"),
        [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
    )
    def test_capture(
        self, number: int, status: int, word: str, small: Small, tmp_path: Path
    ) -> None:
        with running("capture", "--level", "19", small.disk, tmp_path / "image") as process:
            wait_for(tmp_path / "image.partial", HEAD)
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (status, f"imager: {word}\n")
        assert zstd_refuses(tmp_path / "image.partial")
        assert not (tmp_path / "image").exists()

    def test_restore(self, small: Small, tmp_path: Path) -> None:
        target = garbage(tmp_path / "target", SMALL_SIZE)
        fault = writing(target, "run", 60 * MIB)
        fault.command = ["sh", "-c", "kill $PPID; sleep 0.2"]
        words = ("restore", "--yes", "-q", small.image, target)
        assert failure(*words, status=143, program=faulty(fault)) == "terminated"
        assert blkid(target) == ""


class TestFullImageStore:
    """The place for the image has no room left."""

    def test_capture(self, small: Small, tmp_path: Path) -> None:
        with tmpfs(tmp_path / "store", 6 * MIB) as store:
            line = failure(*CAPTURE, small.disk, store / "image", status=7)
            assert "the disk is full" in line
            assert [path.name for path in store.iterdir()] == ["image.partial"]
            assert zstd_refuses(store / "image.partial")
            run("mount", "-o", f"remount,size={60 * MIB}", store)
            done = imager(*CAPTURE, "--resume", small.disk, store / "image")
            assert json.loads(done.out)["resumed"] > 0
            imager("check", "--against", small.disk, store / "image")

    def test_no_such_folder(self, small: Small, tmp_path: Path) -> None:
        line = failure("capture", small.disk, tmp_path / "none" / "image", status=7)
        assert "image" in line

    def test_sync_fails(self, small: Small, tmp_path: Path) -> None:
        fault = Fault("sync", str(tmp_path / "image.partial"), "EIO")
        words = ("capture", small.disk, tmp_path / "image")
        line = failure(*words, status=7, program=faulty(fault))
        assert "error" in line
        assert not (tmp_path / "image").exists()
        assert zstd_refuses(tmp_path / "image.partial")

    def test_reader_of_the_pipe_is_gone(self, small: Small) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                [*IMAGER, "capture", small.disk, "-"],
                stdout=writer,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                check=False,
            )
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (7, "imager: standard output: Broken pipe\n")


class TestBadSectorsOfTheSource:
    """A disk on its last legs."""

    BAD = ((NOISE_START + 200 * 512, NOISE_START + 202 * 512), (MIB, MIB + 512))
    """Two sectors of partition 3, and one amid the inodes of partition 1."""

    def faults(self, disk: Path) -> tuple[Fault, ...]:
        return tuple(reading(disk, "EIO", start, end) for start, end in self.BAD)

    def test_capture_stops(self, small: Small, tmp_path: Path) -> None:
        bad = (self.faults(small.disk)[0],)
        words = ("capture", small.disk, tmp_path / "image")
        line = failure(*words, status=6, program=faulty(*bad))
        assert f"LBA {self.BAD[0][0] // 512}" in line
        assert zstd_refuses(tmp_path / "image.partial")

    def test_capture_goes_on_if_told_to(self, small: Small, tmp_path: Path) -> None:
        image, bad = tmp_path / "image", sorted([start, end] for start, end in self.BAD)
        words = ("capture", "--continue-on-read-error", small.disk, image)
        program = faulty(*self.faults(small.disk))
        done = imager(*words, "--json", status=3, program=program)
        result = json.loads(done.out)
        assert (result["verdict"], result["unreadable"]) == ("degraded", bad)
        described = json.loads(imager("info", "--json", image, status=3).out)
        assert described["manifest"]["verdict"] == "degraded"
        assert described["manifest"]["unreadable"] == bad
        assert [
            list(pair)
            for segment in segments_of(image)
            for pair in segment.map(RangeKind.UNREADABLE)
        ] == bad
        out = imager("info", "--map", image, status=3).out
        assert "degraded (1536 bytes could not be read)" in out and "!" in out
        out = imager("check", image, status=3).out
        assert "could not be read when it was captured" in out and "partition 3" in out
        imager("check", "--against", small.disk, image, status=3)
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            done = imager("restore", "--yes", "--json", image, target.path, status=3)
            assert json.loads(done.out)["unreadable"] == bad
            for start, end in bad:
                assert all_zero(target.path, start, end)
                # What is written anew is as it was, then.
                put(target.path, start, get(small.disk, start, end - start))
            run("blockdev", "--flushbufs", target.path)
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts

    def test_capture_says_what_it_lost(self, small: Small, tmp_path: Path) -> None:
        words = ("capture", "--continue-on-read-error", small.disk, tmp_path / "image")
        out = imager(*words, status=3, program=faulty(*self.faults(small.disk))).out
        assert "1536 bytes in 2 places could not be read" in out
        assert "partition 1 (volume-1), partition 3" in out
        assert "verdict: degraded" in out

    def test_bad_metadata(self, small: Small, tmp_path: Path) -> None:
        """Without its bitmap a volume is stored whole."""
        start = SMALL_PARTS[2][0] * 512 + 1024
        bad = faulty(reading(small.disk, "EIO", start, start + 1024))
        words = ("capture", "--continue-on-read-error", small.disk, tmp_path / "image")
        out = imager(*words, status=3, program=bad).out
        assert "partition 2 is stored whole: its metadata cannot be read" in out

    def test_bad_table(self, small: Small, tmp_path: Path) -> None:
        bad = faulty(reading(small.disk, "EIO", 0, 512))
        words = ("capture", "--continue-on-read-error", small.disk, tmp_path / "image")
        out = imager(*words, status=3, program=bad).out
        assert "the partition table cannot be read" in out
        assert same_bytes(small.disk, restored(tmp_path, 3), 512)

    def test_unused_sectors_may_be_bad(self, small: Small, tmp_path: Path) -> None:
        """All of them, also those that lie between used ones."""
        unused = [
            pair for segment in segments_of(small.image) for pair in segment.map(RangeKind.UNUSED)
        ]
        assert len(unused) > 20 and min(end - start for start, end in unused) < 65536
        bad = faulty(*(reading(small.disk, "EIO", start, end) for start, end in unused))
        done = imager("capture", "--json", small.disk, tmp_path / "image", program=bad)
        expected = info(small.image)["content_digest"]
        assert json.loads(done.out)["content_digest"] == expected

    def test_short_reads(self, small: Small, tmp_path: Path) -> None:
        short = faulty(reading(small.disk, "short"))
        imager("capture", small.disk, tmp_path / "image", program=short)
        imager("check", "--against", small.disk, tmp_path / "image")

    def test_source_ends_early(self, small: Small, tmp_path: Path) -> None:
        cut = faulty(reading(small.disk, "end", 90 * MIB))
        for words in (("--only", "1,2"), ("--continue-on-read-error", "--only", "1,2"), ()):
            command = ("capture", *words, small.disk, tmp_path / "image")
            done = subprocess.run(
                [*cut, *map(str, command)], capture_output=True, text=True, cwd=ROOT, check=False
            )
            assert done.returncode in (3, 6) and "Traceback" not in done.stderr, done
            (tmp_path / "image").unlink(missing_ok=True)
            (tmp_path / "image.partial").unlink(missing_ok=True)

    def test_real_device_fails(self, tmp_path: Path) -> None:
        """A loop device that reads directly from a file cut off meanwhile gives EIO.

        Of a page in which only some sectors are bad, the others are saved.
        """
        disk = garbage(tmp_path / "disk", 40 * MIB)
        with LoopDevice(disk) as device:
            run("losetup", "--direct-io=on", device.path)
            good = 40 * MIB - 65536 + 3 * 512
            os.truncate(disk, good)
            line = failure("capture", device.path, tmp_path / "image", status=6)
            assert str(device.path) in line and "LBA" in line
            words = ("capture", "--continue-on-read-error", "--json", device.path)
            done = imager(*words, tmp_path / "degraded", status=3)
            assert json.loads(done.out)["unreadable"] == [[good, 40 * MIB]]


class TestFailingTarget:
    """Whatever goes wrong while writing, the disk does not look restored."""

    @pytest.mark.parametrize("at", [0, 2 * MIB, 60 * MIB, SMALL_SIZE - 512])
    def test_killed(self, at: int, small: Small, tmp_path: Path) -> None:
        target = clone(small.disk, tmp_path / "target")
        assert blkid(target) == "gpt"
        words = ("restore", "--yes", "--no-read-back", small.image, target)
        imager(*words, status=-9, program=faulty(writing(target, "kill", at)))
        assert blkid(target) == ""
        assert "gpt" not in run("wipefs", "--no-act", target) or at < 512
        imager("restore", "--yes", small.image, target)
        with LoopDevice(target) as device:
            assert disk_facts(device, SMALL_KINDS, tmp_path) == small.facts

    @pytest.mark.parametrize("action", ["EIO", "ENOSPC"])
    def test_write_error(self, action: str, small: Small, tmp_path: Path) -> None:
        target = clone(small.disk, tmp_path / "target")
        words = ("restore", "--yes", "-q", small.image, target)
        fault = writing(target, action, NOISE_START, NOISE_START + 512)
        line = failure(*words, status=7, program=faulty(fault))
        assert f"LBA {NOISE_START // 512}" in line and str(target) in line
        assert blkid(target) == ""

    def test_sync_fails(self, small: Small, tmp_path: Path) -> None:
        target = clone(small.disk, tmp_path / "target")
        words = ("restore", "--yes", "-q", small.image, target)
        fault = Fault("sync", str(target), "EIO", skip=1)
        line = failure(*words, status=7, program=faulty(fault))
        assert "did not take all" in line
        assert blkid(target) == ""

    def test_medium_is_full(self, small: Small, tmp_path: Path) -> None:
        """A thin disk whose storage has no room left, as the kernel reports it."""
        with tmpfs(tmp_path / "store", 8 * MIB) as store:
            with LoopDevice(store / "disk", SMALL_SIZE) as target:
                line = failure("restore", "--yes", "-q", small.image, target.path, status=7)
                assert str(target.path) in line
            assert blkid(store / "disk") == ""

    def test_target_shrinks(self, small: Small, tmp_path: Path) -> None:
        """The nearest to a vanished disk that a loop device can do."""
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            fault = writing(target.path, "run", 20 * MIB)
            cut = (
                f"truncate --size {30 * MIB} {target.file} && losetup --set-capacity {target.path}"
            )
            fault.command = ["sh", "-c", cut]
            words = ("restore", "--yes", "-q", small.image, target.path)
            line = failure(*words, status=7, program=faulty(fault))
            assert str(target.path) in line
            assert blkid(target.path) == ""

    def test_short_writes(self, small: Small, tmp_path: Path) -> None:
        target = garbage(tmp_path / "target", SMALL_SIZE)
        words = ("restore", "--yes", small.image, target)
        imager(*words, program=faulty(writing(target, "short")))
        imager("check", "--against", target, small.image)

    @pytest.mark.parametrize("at", [0, 700, NOISE_START + 5 * 512 + 7, SMALL_SIZE - 100])
    def test_lying_medium(self, at: int, small: Small, tmp_path: Path) -> None:
        """One flipped bit, in the table as well as in the content, is seen when reading back."""
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            fault = writing(target.path, "flip", at, at + 1)
            words = ("restore", "--yes", "-q", small.image, target.path)
            line = failure(*words, status=8, program=faulty(fault))
            assert "do not trust this disk" in line
            imager(*words, "--no-read-back", program=faulty(fault))
            imager("check", "-q", "--against", target.path, small.image, status=8)

    @pytest.mark.parametrize("place", ["primary", "backup"])
    def test_lying_medium_at_a_moved_table(self, place: str, small: Small, tmp_path: Path) -> None:
        size = SMALL_SIZE + 8 * MIB
        at = size - 512 + 40 if place == "backup" else 512 + 32
        with garbage_device(tmp_path, size) as target:
            fault = writing(target.path, "flip", at, at + 1)
            words = ("restore", "--yes", "-q", small.image, target.path)
            line = failure(*words, status=8, program=faulty(fault))
            assert "reads back something else" in line

    def test_read_back_fails(self, small: Small, tmp_path: Path) -> None:
        target = garbage(tmp_path / "target", SMALL_SIZE)
        fault = reading(target, "EIO", NOISE_START, NOISE_START + 512)
        words = ("restore", "--yes", "-q", small.image, target)
        line = failure(*words, status=6, program=faulty(fault))
        assert f"LBA {NOISE_START // 512}" in line


class TestFailingImageStore:
    """The medium that the image is on."""

    def test_nothing_is_written_before_it_is_good(self, small: Small, tmp_path: Path) -> None:
        target = garbage(tmp_path / "target", SMALL_SIZE)
        before = digest(target)
        middle = small.image.stat().st_size // 2
        fault = reading(small.image, "EIO", middle, middle + 512)
        words = ("restore", "--yes", "-q", small.image, target)
        line = failure(*words, status=4, program=faulty(fault))
        assert "nothing was written" in line
        assert digest(target) == before

    def test_fails_while_writing(self, small: Small, tmp_path: Path) -> None:
        target = clone(small.disk, tmp_path / "target")
        middle = small.image.stat().st_size // 2
        fault = reading(small.image, "EIO", middle, middle + 512)
        words = ("restore", "--yes", "-q", "--verify-while-writing", small.image, target)
        line = failure(*words, status=6, program=faulty(fault))
        assert str(small.image) in line
        assert blkid(target) == ""

    @pytest.mark.parametrize("place", ["head", "end"])
    def test_ends_are_there_twice(self, place: str, small: Small, tmp_path: Path) -> None:
        size = small.image.stat().st_size
        start = 512 if place == "head" else size - 600
        fault = reading(small.image, "EIO", start, start + 512)
        out = imager("check", small.image, status=4, program=faulty(fault)).out
        assert "nothing of the disk is lost" in out
        words = ("restore", "--yes", small.image, tmp_path / "new")
        imager(*words, program=faulty(fault))
        imager("check", "--against", tmp_path / "new", small.image)

    def test_salvage(self, small: Small, tmp_path: Path) -> None:
        """All but the damaged chunk comes back, and that one is left as it was."""
        image = clone(small.image, tmp_path / "image")
        lost = damage(image, NOISE_START + MIB)
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            before = get(target.path, lost[0], lost[1] - lost[0])
            words = ("restore", "--yes", "--salvage", "--json", image, target.path)
            result = json.loads(imager(*words, status=4).out)
            assert (result["verdict"], result["lost"]) == ("failed", [list(lost)])
            assert result["lost_volumes"] == ["partition 3"]
            assert get(target.path, lost[0], lost[1] - lost[0]) == before
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts

    @pytest.mark.parametrize("extra", [0, 5 * MIB])
    def test_salvage_without_the_table(self, extra: int, small: Small, tmp_path: Path) -> None:
        image = clone(small.image, tmp_path / "image")
        damage(image, 0)
        damage(image, SMALL_SIZE - 1)
        target = garbage(tmp_path / "target", SMALL_SIZE + extra)
        imager("restore", "--yes", "--salvage", image, target, status=4)
        assert blkid(target) == ""


class TestExitStatus:
    """Those that no other test meets."""

    def test_these_are_all(self) -> None:
        """Each of those that the help lists is met by some test here, or in its neighbours."""
        listed = imager("--help").out.partition("Exit status:")[2]
        found = {int(n) for line in listed.splitlines() for n in re.findall(r"\b\d+\b", line[:10])}
        assert found == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 70, 130, 143}

    def test_fault_in_imager_itself(self, small: Small, tmp_path: Path) -> None:
        words = ("capture", small.disk, tmp_path / "image")
        crash = faulty(reading(small.disk, "crash", 20 * MIB))
        assert "internal error" in failure(*words, status=70, program=crash)

    def test_missing_program(self, small: Small, tmp_path: Path) -> None:
        words = ("capture", small.disk, tmp_path / "image")
        line = failure(*words, status=9, program=faulty(Fault("find", "blkid", "")))
        assert "blkid" in line and "util-linux" in line

    def test_nobody_reads_the_output(self, small: Small) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                [*IMAGER, "info", small.image],
                stdout=writer,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                check=False,
            )
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")

    def test_senseless_arguments(self, small: Small, tmp_path: Path) -> None:
        for words in (
            ("capture", small.disk),
            ("capture", "--only", "1", "--exclude", "2", small.disk, tmp_path / "image"),
            ("capture", "--level", "99", small.disk, tmp_path / "image"),
            ("capture", "--chunk-size", "100000", small.disk, tmp_path / "image"),
            ("capture", "--threads", "0", small.disk, tmp_path / "image"),
            ("capture", "--split", "1M", small.disk, tmp_path / "image"),
            ("capture", small.disk, tmp_path / "image.0001"),
            ("capture", small.disk, tmp_path / "image.partial"),
            ("capture", tmp_path / "none", tmp_path / "image"),
            ("capture", "/dev/null", tmp_path / "image"),
            ("restore", "--threads", "0", "--yes", small.image, tmp_path / "image"),
        ):
            failure(*words, status=2)
            assert list(tmp_path.iterdir()) == [], words
        imager("conquer", status=2)
        imager(status=2)

    def test_not_an_image(self, small: Small, tmp_path: Path) -> None:
        (tmp_path / "short").write_bytes(b"hello")
        for path in (small.disk, tmp_path / "short", tmp_path / "none", tmp_path):
            for words in (("info", path), ("check", path), ("restore", "--yes", path, "/dev/none")):
                failure(*words, status=4)


@contextmanager
def running(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`imager` in the background, killed at the end if need be."""
    process = subprocess.Popen(
        [*IMAGER, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(path: Path, size: int) -> None:
    """Until a file has grown to `size` bytes."""
    until = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < until, f"{path} does not grow"
        time.sleep(0.02)


@contextmanager
def tmpfs(place: Path, size: int) -> Iterator[Path]:
    """A file system in memory that holds `size` bytes."""
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    try:
        yield place
    finally:
        run("umount", place)


def segments_of(image: Path) -> list[Segment]:
    with ImageReader(image) as reader:
        return [segment for segment in reader.segments() if isinstance(segment, Segment)]


def damage(image: Path, position: int) -> tuple[int, int]:
    """Destroy the frame of the chunk at a byte of the disk; the range that it covers."""
    with ImageReader(image) as reader:
        chunk_size = reader.head.chunk_size
    for segment in segments_of(image):
        for start, end, entry in segment.placed(chunk_size):
            if start <= position < end:
                put(image, entry.offset + entry.stored_size // 2, b"\xff\x00damage")
                return start, end
    raise AssertionError("no chunk there")


def restored(folder: Path, status: int) -> Path:
    imager("restore", "--yes", folder / "image", folder / "new", status=status)
    return folder / "new"
