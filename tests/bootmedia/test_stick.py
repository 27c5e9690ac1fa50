"""A stick: the whole ISO on it, a good partition table, a file system for images; else untouched."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootmedia.stick import find_iso, plan_stick, write_stick
from imager.disk.target import TargetDevice
from imager.errors import ImageError, UsageError, VerifyError, WriteFailedError
from tests.bootmedia.iso_parts import small_iso
from tests.command import IMAGER, ROOT, failure, imager
from tests.comparing import digest, gpt_is_sound
from tests.disks import MIB, clone, get, parted_partitions, put
from tests.loop import LoopDevice, mounted
from tests.small_disk import ScannedLoopDevice, Small, blkid, garbage_device

SIZE = 160 * MIB


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small medium; not to be changed."""
    return small_iso(tmp_path_factory.mktemp("iso"))


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[LoopDevice]:
    """A stick full of something."""
    with garbage_device(tmp_path, SIZE) as device:
        yield device


def export(device: Path) -> dict[str, str]:
    """What blkid says of a partition."""
    done = subprocess.run(
        ["blkid", "-p", "-o", "export", device], capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


class TestWritten:
    """What is on a stick afterwards."""

    def test_three_partitions_and_all_of_the_iso(self, iso: Path, stick: LoopDevice) -> None:
        done = json.loads(imager("bootmedia", "write", "--yes", "--json", iso, stick.path).out)
        assert gpt_is_sound(stick.path)
        first, second, third = parted_partitions(stick.path)
        assert parted_partitions(iso)[:2] == [first, second]
        start, size = done["data_start"], done["data_size"]
        assert third[1] == start // 512
        # All but the partition table is the ISO; its own backup table is gone.
        was, size = iso.read_bytes(), iso.stat().st_size
        # 248 entries and a header.
        backup = size - 63 * 512
        assert get(stick.file, 64 * 512, backup - 64 * 512) == was[64 * 512 : backup]
        assert not any(get(stick.file, backup, 63 * 512))
        assert get(stick.file, 0, 440) == was[:440]

    def test_labels(self, iso: Path, stick: LoopDevice) -> None:
        imager("bootmedia", "write", "--yes", iso, stick.path)
        stick.scan()
        live, data = export(stick.partition(1)), export(stick.partition(3))
        assert (live["TYPE"], live["LABEL"]) == ("iso9660", "IMAGER_LIVE")
        assert (data["TYPE"], data["LABEL"]) == ("exfat", "IMAGER_DATA")
        assert blkid(stick.partition(2)) == "vfat"
        check = subprocess.run(["fsck.exfat", "-n", stick.partition(3)], check=False)
        assert check.returncode == 0

    def test_the_protective_record_spans_the_stick(self, iso: Path, stick: LoopDevice) -> None:
        imager("bootmedia", "write", "--yes", iso, stick.path)
        record = get(stick.file, 446, 16)
        assert record[4] == 0xEE
        assert int.from_bytes(record[12:], "little") == SIZE // 512 - 1

    def test_again_over_a_stick(self, iso: Path, stick: LoopDevice, tmp_path: Path) -> None:
        imager("bootmedia", "write", "--yes", iso, stick.path)
        newer = small_iso(tmp_path, seed=2)
        imager("bootmedia", "write", "--yes", newer, stick.path)
        assert gpt_is_sound(stick.path)
        assert get(stick.file, MIB, MIB) == get(newer, MIB, MIB)

    def test_plan_names_what_is_lost_and_what_comes(self, iso: Path, tmp_path: Path) -> None:
        with LoopDevice(tmp_path / "stick", SIZE) as stick:
            subprocess.run(["mkfs.ext4", "-q", "-L", "holiday", stick.path], check=True)
            before = digest(stick.file)
            out = imager("bootmedia", "write", "--dry-run", iso, stick.path).out
            assert "ext4 holiday" in out and "IMAGER_DATA" in out
            assert digest(stick.file) == before


class TestRefused:
    """What would destroy something else, or make no stick, touches nothing."""

    def refused(self, iso: Path, target: Path, status: int = 5) -> str:
        before = digest(target) if target.is_file() else ""
        message = failure("bootmedia", "write", "--yes", iso, target, status=status)
        assert not before or digest(target) == before
        return message

    def test_mounted(self, iso: Path, tmp_path: Path) -> None:
        with LoopDevice(tmp_path / "stick", SIZE) as stick:
            subprocess.run(["mkfs.ext4", "-q", stick.path], check=True)
            with mounted(stick.path, tmp_path / "at", "ro") as place:
                assert f"is mounted on {place}" in self.refused(iso, stick.path)

    def test_the_systems_own_disk(self, iso: Path) -> None:
        root = subprocess.run(
            ["findmnt", "-n", "-o", "SOURCE", "/"], capture_output=True, text=True, check=True
        )
        assert "this system runs from" in self.refused(iso, Path(root.stdout.strip()))

    def test_a_partition(self, small: Small, iso: Path, tmp_path: Path) -> None:
        with ScannedLoopDevice(clone(small.disk, tmp_path / "copy")) as target:
            assert "not a whole disk" in self.refused(iso, target.partition(1))

    def test_too_small(self, iso: Path, tmp_path: Path) -> None:
        with garbage_device(tmp_path, 16 * MIB) as stick:
            assert re.search("needs at least [0-9.]+ MB", self.refused(iso, stick.path))

    def test_larger_sectors(self, iso: Path, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SIZE, 4096) as stick:
            assert "sectors of 4096 bytes" in self.refused(iso, stick.path)

    def test_holds_the_iso(self, iso: Path, tmp_path: Path) -> None:
        assert "holds the image" in self.refused(iso, iso)

    def test_nothing_there(self, iso: Path, tmp_path: Path) -> None:
        assert "imager devices lists" in self.refused(iso, tmp_path / "none")

    def test_not_confirmed_without_a_terminal(self, iso: Path, stick: LoopDevice) -> None:
        before = digest(stick.file)
        words = (*IMAGER, "bootmedia", "write", iso, stick.path)
        done = subprocess.run(
            ["setsid", "-w", *words], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 5 and "no terminal to ask at" in done.stderr
        assert digest(stick.file) == before

    def test_no_medium(self, tmp_path: Path, stick: LoopDevice) -> None:
        other = tmp_path / "other.iso"
        other.write_bytes(bytes(2 * MIB))
        assert "is not a rescue medium" in self.refused(other, stick.path, 2)
        other.write_bytes(b"")
        assert "too small" in self.refused(other, stick.path, 2)

    def test_damaged(self, tmp_path: Path, stick: LoopDevice) -> None:
        iso = small_iso(tmp_path)
        iso.with_name("m.iso.sha256").write_text(
            f"{hashlib.sha256(iso.read_bytes()).hexdigest()}  m.iso\n"
        )
        plan_stick(iso, str(stick.path))
        put(iso, MIB, b"damage")
        with pytest.raises(ImageError, match="another checksum"):
            plan_stick(iso, str(stick.path))

    def test_cut_short(self, tmp_path: Path, stick: LoopDevice) -> None:
        iso = small_iso(tmp_path)
        os.truncate(iso, iso.stat().st_size - MIB)
        with pytest.raises(ImageError, match="damaged"):
            plan_stick(iso, str(stick.path))


class TestFailing:
    """A stick that fails is said to, and does not look as if it could start a machine."""

    def test_reads_back_something_else(
        self, iso: Path, stick: LoopDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = TargetDevice.write

        def forgetful(self: TargetDevice, offset: int, view: memoryview | bytes) -> None:
            if offset != MIB:
                write(self, offset, view)

        monkeypatch.setattr(TargetDevice, "write", forgetful)
        with pytest.raises(VerifyError, match="do not trust this stick"):
            write_stick(plan_stick(iso, str(stick.path)))

    def test_breaks_midway(
        self, iso: Path, stick: LoopDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        imager("bootmedia", "write", "--yes", iso, stick.path)
        write = TargetDevice.write

        def broken(self: TargetDevice, offset: int, view: memoryview | bytes) -> None:
            if offset > MIB:
                raise WriteFailedError("pulled out")
            write(self, offset, view)

        monkeypatch.setattr(TargetDevice, "write", broken)
        with pytest.raises(WriteFailedError, match="pulled out"):
            write_stick(plan_stick(iso, str(stick.path)))
        assert not any(get(stick.file, 0, 512)) and blkid(stick.path) == ""


def test_the_newest_medium_is_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="imager bootmedia build"):
        find_iso((tmp_path, tmp_path / "none"))
    for age, name in enumerate(("imager-rescue-2-amd64.iso", "imager-rescue-1-amd64.iso")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert find_iso((tmp_path,)).name == "imager-rescue-2-amd64.iso"
