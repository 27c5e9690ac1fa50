"""A GPT moved to a disk of another size, as sgdisk, sfdisk and libparted judge it."""

from __future__ import annotations

from pathlib import Path

import pytest

from imager.errors import RefusedError
from imager.layout.relocate import relocate
from imager.layout.table import read_table
from tests.disks import (
    MIB,
    attached,
    clone,
    get,
    make_disk,
    parted_partitions,
    put,
    run,
    sfdisk_json,
)
from tests.volumes import FileVolume

SIZE = 64 * MIB
BOOT_CODE = b"\xeb\x63\x90" + b"boot code" * 10


@pytest.fixture(scope="module", params=[512, 4096])
def sector(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


@pytest.fixture(scope="module")
def made(sector: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk whose partitions end at 40 MiB."""
    path = make_disk(tmp_path_factory.mktemp("gpt") / "disk", SIZE)
    unit = MIB // sector
    with attached(path, sector) as device:
        run(
            "sfdisk",
            device,
            text=f"label: gpt\nstart={unit} size={unit} type=U name=esp\n"
            f"start={20 * unit} size={20 * unit} attrs=LegacyBIOSBootable\n",
        )
    put(path, 0, BOOT_CODE)
    return path


@pytest.fixture
def disk(made: Path, tmp_path: Path) -> Path:
    return clone(made, tmp_path / "copy")


def moved(disk: Path, sector: int, size: int) -> Path:
    """A disk of `size` bytes with nothing on it but the relocated table."""
    target = make_disk(disk.with_name("target"), size)
    for offset, data in relocate(FileVolume(disk, sector_size=sector), size):
        put(target, offset, data)
    return target


def no_problems(target: Path, source: Path, sector: int) -> None:
    """All tools find the table on `target` healthy, with the partitions of `source`."""
    with attached(source, sector) as device:
        before = sfdisk_json(device), parted_partitions(device)
    with attached(target, sector) as device:
        assert "No problems found" in run("sgdisk", "-v", device)
        run("sfdisk", "--verify", device)
        after = sfdisk_json(device), parted_partitions(device)
    assert after[1] == before[1]
    assert after[0]["id"] == before[0]["id"]
    for ours, theirs in zip(after[0]["partitions"], before[0]["partitions"], strict=True):
        assert {**ours, "node": ""} == {**theirs, "node": ""}
    table = read_table(FileVolume(target, sector_size=sector))
    assert table.notes == ()
    assert table.extents.end == target.stat().st_size // sector * sector
    last = target.stat().st_size // sector - 1
    assert after[0]["lastlba"] == last - 16384 // sector - 1
    assert int.from_bytes(get(target, 446 + 12, 4), "little") == min(last, 0xFFFFFFFF)


@pytest.mark.parametrize("size", [SIZE + 4096, 300 * MIB, 3 << 40, 41 * MIB])
def test_another_size(disk: Path, sector: int, size: int) -> None:
    target = moved(disk, sector, size)
    no_problems(target, disk, sector)
    assert get(target, 0, len(BOOT_CODE)) == BOOT_CODE


def test_the_same_size_changes_nothing(disk: Path, sector: int) -> None:
    for offset, data in relocate(FileVolume(disk, sector_size=sector), SIZE):
        assert get(disk, offset, len(data)) == data


def test_smallest(disk: Path, sector: int) -> None:
    smallest = 40 * MIB + 16384 + sector
    no_problems(moved(disk, sector, smallest), disk, sector)
    with pytest.raises(RefusedError, match=f"needs at least {smallest} bytes"):
        relocate(FileVolume(disk, sector_size=sector), smallest - sector)


def test_smallest_without_partitions(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "empty", SIZE)
    run("sfdisk", path, text="label: gpt\n")
    smallest = read_first_usable(path) * 512 + 33 * 512
    assert relocate(FileVolume(path), smallest)
    with pytest.raises(RefusedError):
        relocate(FileVolume(path), smallest - 512)


def read_first_usable(path: Path) -> int:
    return int(sfdisk_json(path)["firstlba"])


def test_repairs_a_damaged_copy(disk: Path, made: Path, sector: int) -> None:
    put(disk, sector, bytes(3 * sector))
    no_problems(moved(disk, sector, 2 * SIZE), made, sector)
    clone(made, disk)
    put(disk, SIZE - sector, bytes(sector))
    no_problems(moved(disk, sector, 2 * SIZE), made, sector)


def test_hybrid_records_stay(disk: Path, sector: int) -> None:
    with attached(disk, sector) as device:
        run("sgdisk", "-h", "2", device)
    target = moved(disk, sector, 2 * SIZE)
    assert get(target, 0, sector) == get(disk, 0, sector)
    with attached(target, sector) as device:
        assert "No problems found" in run("sgdisk", "-v", device)


def test_last_written_is_what_makes_it_visible(disk: Path, sector: int) -> None:
    pieces = relocate(FileVolume(disk, sector_size=sector), 2 * SIZE)
    assert [offset for offset, _ in pieces][-2:] == [sector, 0]
    assert pieces[1][0] == 2 * SIZE - sector
