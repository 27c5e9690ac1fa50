"""A disk in use through a pipe or into parts: what changed follows the first pass, and counts."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imager.capture import CaptureOptions, CaptureResult, capture
from imager.check import check
from imager.export import ExportFormat, export
from imager.extents import Extents
from imager.live import abi
from imager.live.precopy import TooBusyError
from imager.live.tracing import Recorder
from imager.store.folder import open_store
from imager.store.prune import prune
from imager.store.retention import Rules
from tests.command import IMAGER, ROOT, failure, imager, same_bytes, zstd_refuses
from tests.disks import MIB, get
from tests.golden.make import failing
from tests.image_files import small_parts
from tests.live_disk import LiveDisk, by_zstd, manifest, require_same, settle
from tests.loop import run


@contextmanager
def pipe_into(path: Path) -> Iterator[int]:
    """The writing end of a pipe whose other end goes to a file."""
    reading, writing = os.pipe()
    with path.open("wb") as out, os.fdopen(reading, "rb") as end:
        cat = subprocess.Popen(["cat"], stdin=end, stdout=out)
    try:
        yield writing
    finally:
        os.close(writing)
        assert cat.wait() == 0


def catch(live: LiveDisk, image: Path, frozen: Path, **more: Any) -> CaptureResult:
    """Capture `live` into a pipe, or parts, while something is written to it."""
    options = CaptureOptions(
        inside_freeze=lambda: live.copy(frozen), max_pause=50.0, chunk_size=1 << 18, **more
    )
    if options.split:
        with small_parts():
            result = capture(live.path, image, options)
    else:
        with pipe_into(image) as fd:
            result = capture(live.path, fd, options)
    assert (result.verdict, result.consistency, result.revised) == ("ok", "frozen", True)
    assert result.instant is not None and result.instant.written > 0
    return result


def test_pipe_parts_and_an_increment_are_the_frozen_disk(tmp_path: Path) -> None:
    names = ("pipe", "parts", "night")
    with LiveDisk(tmp_path, ("ext4", "ext4"), 96) as live, live.workload():
        settle()
        catch(live, tmp_path / "pipe", tmp_path / "frozen-pipe")
        catch(live, tmp_path / "parts", tmp_path / "frozen-parts", split=8 * MIB)
        assert len(list(tmp_path.glob("parts.*"))) > 1
        parent = tmp_path / "parts"
        more = catch(
            live, tmp_path / "night", tmp_path / "frozen-night", split=8 * MIB, parent=parent
        )
        assert more.inherited
    for name in names:
        image, plain = tmp_path / name, tmp_path / f"plain-{name}"
        checked = check(image)
        assert (checked.verdict, checked.problems) == ("ok", ())
        assert zstd_refuses(image if name == "pipe" else next(tmp_path.glob(f"{name}.0001*")))
        imager("export", image, plain)
        imager("restore", "--yes", image, tmp_path / "restored")
        disk = by_zstd(plain, tmp_path)
        assert same_bytes(disk, tmp_path / "restored")
        (tmp_path / "restored").unlink()
        if name == "pipe":
            with image.open("rb") as file:
                words = ("--yes", "--verify-while-writing", "-", tmp_path / "piped")
                imager("restore", *words, stdin=file)
            assert same_bytes(disk, tmp_path / "piped")
        require_same(live, disk, tmp_path / f"frozen-{name}", plain)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveDisk]:
    with LiveDisk(tmp_path, ("ext4",), 96) as disk:
        yield disk


def test_output_and_image_say_that_zstd_will_not_do(live: LiveDisk) -> None:
    image = live.folder / "image"
    done = imager("capture", live.path, image, "--split", "64M", "--max-pause", "50")
    assert "zstd alone cannot restore it" in done.out and "imager export" in done.out
    assert "imager export" in str(manifest(image)["plain_zstd"])
    told = imager("info", image).out
    assert "some chunks replace others: needs imager restore, or imager export" in told
    assert b"imager export IMAGE NEW" in next(live.folder.glob("image.0001*")).read_bytes()[:512]


def test_without_revisions_the_same_comparison_fails(
    live: LiveDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is known to see what was not sent again."""
    monkeypatch.setattr("imager.image_filler.ImageFiller.revise", lambda *more: None)
    image, plain, frozen = (live.folder / name for name in ("image", "plain", "frozen"))
    with live.workload():
        settle()
        catch(live, image, frozen)
    imager("export", image, plain)
    with pytest.raises(AssertionError):
        require_same(live, by_zstd(plain, live.folder), frozen, image)


def test_a_reader_that_goes_away_ends_it(live: LiveDisk) -> None:
    """With everything thawed, and nothing left of the recording."""
    first = subprocess.Popen(
        [*IMAGER, "capture", str(live.path), "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert first.stdout is not None and first.stderr is not None
    first.stdout.close()
    told = first.stderr.read()
    assert first.wait() == 7 and told.startswith("imager: standard output: "), told
    (live.places[0] / "written").write_text("x")
    run("sync", "-f", live.places[0])


def test_a_store_in_parts_takes_it_and_gives_back_what_is_not_needed(live: LiveDisk) -> None:
    """Each night an increment upon the one before; then the first one's frames go, but for its own."""
    place = live.folder / "store"
    imager("store", "init", place)
    words = ("--store", place, "--split", "64M", "--max-pause", "50", "--chunk-size", "64KiB")
    (live.places[0] / "old").write_bytes(os.urandom(4 * MIB))
    imager("capture", live.path, *words)
    for name in ("old", "new"):
        (live.places[0] / name).write_bytes(os.urandom(4 * MIB))
        done = imager("capture", live.path, *words)
        assert "incremental, against" in done.out
    now = datetime.datetime.now().astimezone()
    store = open_store(place)
    for days in (1, 9):
        report = prune(store, Rules(last=1), now + datetime.timedelta(days=days))
    assert report.freed > 3 * MIB and not report.notes
    (last,) = (path for path in place.rglob("*.last") if path.is_file())
    assert check(last).verdict == "ok"


def test_more_places_than_memory_holds_are_not_frozen(
    live: LiveDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr("imager.live.abi.freeze", frozen.append)
    monkeypatch.setattr("imager.image_reviser._ROOM", MIB)
    waiting = Extents.of((n * 4 * MIB, n * 4 * MIB + 4096) for n in range(1, 6))
    monkeypatch.setattr(Recorder, "waiting", lambda self: waiting)
    with (
        pipe_into(live.folder / "image") as fd,
        pytest.raises(TooBusyError, match="with a smaller --chunk-size"),
    ):
        capture(live.path, fd, CaptureOptions(max_pause=50))
    assert frozen == []


def test_a_table_that_changes_meanwhile_spoils_it(live: LiveDisk) -> None:
    hook = f"sfdisk --no-reread --force --part-label {live.path} 1 renamed >&2"
    image = live.folder / "image"
    words = ("--split", "64M", "--before-freeze", hook, "--max-pause", "50")
    done = imager("capture", live.path, image, *words, status=11)
    assert "the partition table changed while the disk was captured" in done.err
    assert not list(live.folder.glob("image*"))


def test_an_interrupted_one_is_begun_anew(live: LiveDisk) -> None:
    (live.folder / "image.0001.partial").write_bytes(b"left over" * 100_000)
    (live.folder / "image.0002.partial").write_bytes(b"left over" * 100_000)
    image = live.folder / "image"
    told = failure("capture", live.path, image, "--split", "64M", status=5)
    assert "left from an interrupted" in told
    words = ("--split", "64M", "--resume", "--max-pause", "50")
    done = imager("capture", "--json", live.path, image, *words)
    assert json.loads(done.out)["begun_anew"] is True
    assert check(image).verdict == "ok"
    assert [path.name for path in live.folder.glob("image*")] == ["image.0001.last"]


def test_what_cannot_be_read_is_listed_once(live: LiveDisk) -> None:
    """Though it is tried in each pass: something else in its chunk is written meanwhile."""
    place = live.places[0] / "bad"
    place.write_bytes(b"x" * MIB)
    run("sync", "-f", live.places[0])
    fd = os.open(place, os.O_RDONLY)
    (extent, *_) = abi.file_extents(fd)
    os.close(fd)
    start = MIB + extent.physical + 8 * 512  # sfdisk puts the first partition at 1 MiB
    bad = [(start, start + 3 * 512)]
    image = live.folder / "image"
    options = CaptureOptions(
        split=64 * MIB,
        max_pause=50,
        continue_on_read_error=True,
        before_freeze=f"printf changed | dd of={place} conv=notrunc oflag=dsync status=none",
    )
    with failing(bad):
        result = capture(live.path, image, options)
    assert result.instant is not None and sum(result.instant.rounds) > 0
    assert (result.verdict, result.unreadable) == ("degraded", Extents.of(bad))
    checked = check(image)
    assert (checked.verdict, checked.unreadable) == ("degraded", Extents.of(bad))
    export(image, live.folder / "raw", ExportFormat.RAW)
    content = get(live.folder / "raw", start - 8 * 512, 16 * 512)
    assert content == b"changed".ljust(8 * 512, b"x") + bytes(3 * 512) + b"x" * (5 * 512)
