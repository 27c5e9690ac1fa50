"""What is asked of a live capture, and what it refuses: hooks, swap, parts, parents, busy disks."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.capture import CaptureOptions, capture
from imager.check import check
from imager.cli.text import duration_argument
from imager.extents import Extents
from imager.live.freezer import FreezeError
from imager.live.precopy import TooBusyError
from imager.live.swap import swap_in_use
from imager.live.tracefs import buffer_size
from imager.live.tracing import LostWritesError, Recorder
from tests.command import failure, imager, info, zstd_refuses
from tests.disks import MIB, get
from tests.live_disk import (
    LiveDisk,
    by_zstd,
    differences,
    manifest,
    settle,
    unused_in,
    view,
)
from tests.loop import LoopDevice, mounted, run, sparse_file


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveDisk]:
    with LiveDisk(tmp_path, ("ext4",), 96) as disk:
        yield disk


def test_the_output_says_when_and_how_long(live: LiveDisk) -> None:
    image = live.folder / "image"
    done = imager("capture", live.path, image, "--max-pause", "50")
    assert "the disk as it was at 20" in done.out and "it stood still for " in done.out
    assert info(image)["head"]["consistency"] == "frozen"
    facts = manifest(image)
    assert {"instant", "pause", "read_again", "written_meanwhile"} <= set(facts)


def test_a_disk_at_rest_is_offline_whatever_is_asked_for(tmp_path: Path) -> None:
    with LiveDisk(tmp_path, ("ext4",), 96) as live:
        run("mount", "-o", "remount,ro", live.places[0])
        for number, asked in enumerate(("auto", "frozen", "crash", "offline", "snapshot")):
            image = tmp_path / f"image-{number}"
            imager("capture", live.path, image, "--consistency", asked)
            assert info(image)["head"]["consistency"] == "offline"


def test_offline_and_snapshot_refuse_a_disk_in_use(live: LiveDisk) -> None:
    image = live.folder / "image"
    message = failure("capture", live.path, image, "--consistency", "offline", status=5)
    assert f"is in use ({live.places[0]}): unmount it" in message
    message = failure("capture", live.path, image, "--consistency", "snapshot", status=5)
    assert "plain LVM volume" in message or "need Linux" in message
    assert not list(live.folder.glob("image*"))


def test_crash_is_stored_whole_and_never_by_itself(live: LiveDisk) -> None:
    image = live.folder / "image"
    done = imager("capture", live.path, image, "--consistency", "crash")
    assert "as a power cut would leave it" in done.out
    assert info(image)["head"]["consistency"] == "crash"
    assert unused_in(image) == []


def test_the_disk_itself_cannot_hold_its_image(live: LiveDisk) -> None:
    message = failure("capture", live.path, live.places[0] / "image", status=5)
    assert "lies on the disk that is to be captured" in message


def test_a_file_in_use_names_what_to_do(live: LiveDisk, tmp_path: Path) -> None:
    message = failure("capture", tmp_path / "disk", tmp_path / "image", status=5)
    assert "capture the device that it is attached to" in message


def test_what_an_interrupted_one_left_is_overwritten(live: LiveDisk) -> None:
    image = live.folder / "image"
    (live.folder / "image.partial").write_bytes(b"left over" * 100_000)
    assert "left from an interrupted" in failure("capture", live.path, image, status=5)
    done = imager("capture", live.path, image, "--resume", "--max-pause", "50")
    assert "begun anew in spite of --resume" in done.out
    assert check(image).verdict == "ok"


def test_a_partition_alone_is_caught(tmp_path: Path) -> None:
    with LiveDisk(tmp_path, ("ext4", "ext4"), 96) as live:
        image, frozen = tmp_path / "image", tmp_path / "frozen"

        def copy() -> None:
            run("dd", f"if={live.device.partition(2)}", f"of={frozen}", "bs=1M", "iflag=direct")

        with live.workload():
            settle()
            options = CaptureOptions(inside_freeze=copy, max_pause=50)
            result = capture(live.device.partition(2), image, options)
        assert result.consistency == "frozen"
        assert differences(by_zstd(image, tmp_path), frozen, unused_in(image)) == []


def test_a_partition_left_out_is_not_followed(tmp_path: Path) -> None:
    with LiveDisk(tmp_path, ("ext4", "ext4"), 96) as live:
        image, frozen = tmp_path / "image", tmp_path / "frozen"
        with live.workload():
            settle()
            options = CaptureOptions(
                inside_freeze=lambda: live.copy(frozen), max_pause=50, exclude=(1,)
            )
            capture(live.path, image, options)
    assert check(image).verdict == "ok"
    assert zstd_refuses(image)
    target = sparse_file(tmp_path / "target", live.size)
    imager("restore", "--yes", image, target)
    start = 1 * MIB + 96 * MIB  # sfdisk puts the first partition at 1 MiB
    assert get(target, start, 96 * MIB) != bytes(96 * MIB)
    assert view(target, 2, "ext4", tmp_path) == view(frozen, 2, "ext4", tmp_path)


def test_increments_of_a_disk_in_use_are_what_it_was(tmp_path: Path) -> None:
    with LiveDisk(tmp_path, ("ext4", "btrfs"), 200) as live, live.workload(0.005):
        settle()
        parent: Path | None = None
        for night in range(3):
            image, frozen = tmp_path / f"night-{night}", tmp_path / f"frozen-{night}"

            def copy(target: Path = frozen) -> None:
                live.copy(target)

            options = CaptureOptions(inside_freeze=copy, max_pause=50, parent=parent)
            result = capture(live.path, image, options)
            assert (result.verdict, result.consistency) == ("ok", "frozen")
            assert bool(result.inherited) == (parent is not None)
            parent = image
    for night in range(3):
        image, out = tmp_path / f"night-{night}", tmp_path / f"out-{night}"
        assert check(image).verdict == "ok"
        imager("restore", "--yes", image, out)
        imager("check", image, "--against", out)
        for number, kind in ((1, "ext4"), (2, "btrfs")):
            frozen = tmp_path / f"frozen-{night}"
            assert view(out, number, kind, tmp_path) == view(frozen, number, kind, tmp_path)


def test_hooks_run_around_the_freeze(live: LiveDisk) -> None:
    log = live.folder / "log"
    place = live.places[0]
    imager(
        "capture", live.path, live.folder / "image", "--max-pause", "50",
        "--before-freeze", f"echo before >> {log}; echo flushed > {place}/flushed",
        "--after-thaw", f"echo after >> {log}; echo late > {place}/late",
    )  # fmt: skip
    assert log.read_text() == "before\nafter\n"
    imager("restore", "--yes", live.folder / "image", live.folder / "out")
    with LoopDevice(live.folder / "out") as device:
        device.scan()
        with mounted(device.partition(1), live.folder / "look") as look:
            assert (look / "flushed").read_text() == "flushed\n"
            assert not (look / "late").exists()


def test_what_a_hook_prints_does_not_spoil_the_result(live: LiveDisk) -> None:
    words = ("--json", "--before-freeze", "echo noise", "--max-pause", "50")
    done = imager("capture", live.path, live.folder / "image", *words)
    assert json.loads(done.out)["consistency"] == "frozen"
    assert "noise" in done.err


def test_a_hook_that_fails_before_leaves_no_image(live: LiveDisk) -> None:
    log = live.folder / "log"
    message = failure(
        "capture", live.path, live.folder / "image",
        "--before-freeze", "exit 3", "--after-thaw", f"echo after >> {log}",
        status=11,
    )  # fmt: skip
    assert message == "the --before-freeze command exited with status 3"
    assert not list(live.folder.glob("image*"))
    assert not log.exists()


def test_a_hook_that_fails_afterwards_is_told(live: LiveDisk) -> None:
    words = ("--after-thaw", "exit 4", "--max-pause", "50")
    done = imager("capture", live.path, live.folder / "image", *words)
    assert "note: the --after-thaw command exited with status 4" in done.out
    assert check(live.folder / "image").verdict == "ok"


def test_the_second_hook_runs_though_the_freeze_failed(live: LiveDisk) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    log = live.folder / "log"
    options = CaptureOptions(
        inside_freeze=fail, before_freeze="true", after_thaw=f"echo after >> {log}", max_pause=50
    )
    with pytest.raises(ZeroDivisionError):
        capture(live.path, live.folder / "image", options)
    assert log.read_text() == "after\n"


def test_lost_events_discard_the_capture(live: LiveDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imager.live.tracing.buffer_size", lambda cpus: 8192)
    monkeypatch.setattr("imager.live.tracing._INTERVAL", 1000.0)
    assert buffer_size(1) > 8192
    image = live.folder / "image"
    writes = live.places[0] / "writes"

    def fill() -> None:
        run("dd", "if=/dev/urandom", f"of={writes}", "bs=4k", "count=1500", "oflag=direct")

    def waiting(recorder: Recorder) -> Extents:
        fill()
        return recorder.take()

    monkeypatch.setattr(Recorder, "waiting", waiting)
    with pytest.raises(LostWritesError, match="nothing of this capture is kept"):
        capture(live.path, image, CaptureOptions(max_pause=50))
    assert not list(live.folder.glob("image*"))


def test_a_disk_too_busy_is_not_frozen_at_all(
    live: LiveDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if most of it were written between one look and the next."""
    frozen: list[int] = []
    monkeypatch.setattr("imager.live.abi.freeze", frozen.append)
    waiting = Extents.span(8 * MIB, 64 * MIB)
    monkeypatch.setattr(Recorder, "waiting", lambda self: waiting)
    options = CaptureOptions(max_pause=0.001, target_pause=0.001)
    with pytest.raises(TooBusyError, match=r"58\.7 MB are left, a pause of about"):
        capture(live.path, live.folder / "image", options)
    assert frozen == []
    assert not list(live.folder.glob("image*"))


def test_a_swap_partition_in_use_is_kept_as_a_header(tmp_path: Path) -> None:
    disk = sparse_file(tmp_path / "disk", 160 * MIB)
    run("sfdisk", disk, stdin="label: gpt\nsize=64MiB\nsize=64MiB\n")
    with LoopDevice(disk) as device:
        device.scan()
        run("mkfs.ext4", "-q", device.partition(1))
        run("mkswap", device.partition(2))
        with mounted(device.partition(1), tmp_path / "mounted"):
            run("swapon", device.partition(2))
            try:
                start = 65 * MIB
                expected = Extents.span(start + 4096, start + 64 * MIB)
                assert swap_in_use(device.path, 0) == expected
                assert swap_in_use(device.partition(2), start) == expected.shift(-start)
                assert swap_in_use(device.partition(1), MIB) == Extents()
                result = capture(device.path, tmp_path / "image", CaptureOptions(max_pause=50))
            finally:
                run("swapoff", device.partition(2))
    assert result.consistency == "frozen"
    restored = by_zstd(tmp_path / "image", tmp_path)
    assert get(restored, start + 4086, 10) == b"SWAPSPACE2"
    assert Extents.of(unused_in(tmp_path / "image")).covers(start + 65536, start + 64 * MIB)


def test_a_swap_file_in_use_is_kept_as_a_header(live: LiveDisk) -> None:
    """Its content is nobody's; the file, its size and its header are there again."""
    file = live.places[0] / "swapfile"
    file.write_bytes(os.urandom(16 * MIB))
    file.chmod(0o600)
    run("mkswap", file)
    run("swapon", file)
    try:
        ignored = swap_in_use(live.path, 0)
        assert ignored.total == 16 * MIB - 4096
        image = live.folder / "image"
        result = capture(live.path, image, CaptureOptions(max_pause=50))
    finally:
        run("swapoff", file)
    assert result.consistency == "frozen"
    assert ignored - Extents.of(unused_in(image)) == Extents()
    with LoopDevice(by_zstd(image, live.folder)) as device:
        device.scan()
        with mounted(device.partition(1), live.folder / "look") as look:
            again = (look / "swapfile").read_bytes()
            assert len(again) == 16 * MIB
            assert again[4086:4096] == b"SWAPSPACE2"
            assert not any(again[4096:])
        run("e2fsck", "-fn", device.partition(1))


def test_swap_given_back_meanwhile_spoils_the_capture(live: LiveDisk) -> None:
    """What was ignored as swap may be anything by now."""
    file = live.places[0] / "swapfile"
    file.write_bytes(bytes(16 * MIB))
    file.chmod(0o600)
    run("mkswap", file)
    run("swapon", file)
    image = live.folder / "image"
    try:
        options = CaptureOptions(max_pause=50, before_freeze=f"swapoff {file}")
        with pytest.raises(FreezeError, match="swap space was given back"):
            capture(live.path, image, options)
    finally:
        subprocess.run(["swapoff", file], capture_output=True, check=False)
    assert not list(live.folder.glob("image*"))


def test_preview_of_a_disk_in_use(live: LiveDisk) -> None:
    facts = json.loads(imager("capture", "--dry-run", "--json", live.path).out)
    assert 0 < facts["used"] < live.size


@pytest.mark.parametrize("words", [("3s", "2s"), ("1s", "61s")])
def test_pauses_that_make_no_sense(words: tuple[str, str], tmp_path: Path) -> None:
    target, most = words
    message = failure(
        "capture", "/dev/null", tmp_path / "image", "--target-pause", target, "--max-pause", most,
        status=2,
    )  # fmt: skip
    assert "a pause has up to 60 seconds" in message


@pytest.mark.parametrize("text", ["0", "soon", "-1s", "nan", "1h"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time such as 150ms or 2s"):
        duration_argument(text)


def test_times_are_seconds() -> None:
    assert [duration_argument(text) for text in ("150ms", "2s", "0.5")] == [0.15, 2.0, 0.5]
