"""The record of jobs: what is durable when, and what a broken or hostile stick can do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from imager.errors import ReadFailedError, WriteFailedError
from imager.rescue.ledger import MAX_ATTEMPTS, Ledger, Past
from imager.rescue.media import MediaVolume
from tests.comparing import digest
from tests.disks import put
from tests.loop import LoopDevice, mounted, run
from tests.test_media import mounts, volumes_of

NEW = Past(0, None)


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[LoopDevice]:
    with LoopDevice(tmp_path / "stick", 16 << 20) as device:
        run("mkfs.ext4", "-q", "-L", "IMAGER_DATA", device.path)
        yield device


@pytest.fixture
def volume(stick: LoopDevice) -> MediaVolume:
    (found,) = volumes_of(stick)
    return found


def test_a_job_from_beginning_to_end(volume: MediaVolume, stick: LoopDevice) -> None:
    before = digest(stick.file)
    assert Ledger(volume).look("job") == NEW
    assert digest(stick.file) == before, "looking must not write"
    Ledger(volume).begin("job", {"image": "x"})
    assert Ledger(volume).look("job") == Past(1, None)
    Ledger(volume).end("job", "finished: ok", {"image": "x"})
    assert Ledger(volume).look("job") == Past(1, "finished: ok")
    assert Ledger(volume).look("other") == NEW
    assert mounts() == []


def test_files_are_for_people(volume: MediaVolume, stick: LoopDevice, tmp_path: Path) -> None:
    Ledger(volume).begin("room-5", {"image": "x.img"})
    with mounted(stick.path, tmp_path / "place") as place:
        assert os.listdir(place / "imager/jobs") == ["room-5.json"]
        facts = json.loads((place / "imager/jobs/room-5.json").read_text())
        assert facts == {"image": "x.img"}


def test_attempts_are_counted_and_bounded(volume: MediaVolume) -> None:
    for number in range(1, MAX_ATTEMPTS + 1):
        Ledger(volume).begin("job", {})
        assert Ledger(volume).look("job") == Past(number, None)
    with pytest.raises(WriteFailedError, match="has begun 3 times already"):
        Ledger(volume).begin("job", {})


def test_all_is_synced_before_begin_returns(volume: MediaVolume) -> None:
    """The file, then its folder, then the file system; and what is not kept is noticed."""
    calls: list[str] = []

    def fsync(fd: int) -> None:
        calls.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
        real(fd)

    def syncfs(fd: int) -> None:
        calls.append("syncfs")

    real = os.fsync
    with (
        mock.patch("os.fsync", fsync),
        mock.patch("imager.disk.abi.sync_file_system", syncfs),
    ):
        Ledger(volume).begin("job", {})
    assert calls[-3:] == ["fsync job.json", "fsync jobs", "syncfs"]
    with (
        mock.patch("os.write", lambda fd, data: len(data)),
        pytest.raises(WriteFailedError, match="does not keep"),
    ):
        Ledger(volume).begin("lost", {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"end": 5}', b"\xff" * 100, b"[" * 9999])
def test_torn_files_still_count(
    content: bytes, volume: MediaVolume, stick: LoopDevice, tmp_path: Path
) -> None:
    with mounted(stick.path, tmp_path / "place") as place:
        (place / "imager/jobs").mkdir(parents=True)
        (place / "imager/jobs/job.json").write_bytes(content)
        (place / "imager/jobs/job.end.json").write_bytes(content)
    assert Ledger(volume).look("job") == Past(1, "how is not recorded")


def test_no_partition_for_data() -> None:
    assert Ledger(None).look("job") == NEW
    with pytest.raises(WriteFailedError, match="a CD or a plain ISO"):
        Ledger(None).begin("job", {})


def test_full_stick(volume: MediaVolume, stick: LoopDevice, tmp_path: Path) -> None:
    with mounted(stick.path, tmp_path / "place") as place, (place / "all").open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
        for number in range(100_000):
            try:
                (place / f"{number}").write_bytes(b"x")
            except OSError:
                break
    with pytest.raises(WriteFailedError, match="cannot be written: No space left"):
        Ledger(volume).begin("job", {})
    assert mounts() == []


def test_write_protected_stick(volume: MediaVolume, stick: LoopDevice) -> None:
    Ledger(volume).begin("job", {})
    run("blockdev", "--setro", stick.path)
    try:
        with pytest.raises(WriteFailedError):
            Ledger(volume).end("job", "finished", {})
        assert Ledger(volume).look("job") == Past(1, None)
    finally:
        run("blockdev", "--setrw", stick.path)


def test_stick_that_cannot_be_read(volume: MediaVolume, stick: LoopDevice) -> None:
    """It may hold an end: not to know is not the same as to know that there is none."""
    put(stick.file, 1024 + 0x18, b"\xff" * 4)
    run("blockdev", "--flushbufs", stick.path)
    with pytest.raises(ReadFailedError, match="cannot be mounted"):
        Ledger(volume).look("job")


def test_links_are_not_followed(volume: MediaVolume, stick: LoopDevice, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with mounted(stick.path, tmp_path / "place") as place:
        (place / "imager").mkdir()
        (place / "imager/jobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReadFailedError, match="leads elsewhere"):
        Ledger(volume).look("job")
    with pytest.raises((WriteFailedError, ReadFailedError)):
        Ledger(volume).begin("job", {})
    assert os.listdir(tmp_path / "elsewhere") == []
