"""Disks captured, restored over garbage, and found equal file by file."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import pytest

from tests import sample_disk
from tests.command import (
    IMAGER,
    ROOT,
    all_zero,
    failure,
    imager,
    plain_zstd,
    same_bytes,
    zstd_refuses,
)
from tests.comparing import digest, disk_facts, files_of, gpt_is_sound
from tests.disks import MIB, clone, copy_into, get, parted_partitions, put, run
from tests.loop import LoopDevice, mounted, sparse_file, swapped_on

SAMPLE_KINDS = {1: "vfat", 2: "ext4", 3: "ntfs", 4: "swap"}


@dataclass(frozen=True)
class Sample:
    """A filled disk, attached, and its image."""

    device: LoopDevice
    image: Path
    facts: dict[object, object]
    digest: str
    captured: dict[str, object]

    @property
    def size(self) -> int:
        return self.device.file.stat().st_size


@pytest.fixture(scope="module", params=[(512, 200 * MIB), (4096, 440 * MIB)], ids=["512", "4096"])
def sample(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sample]:
    sector_size, size = request.param
    folder = tmp_path_factory.mktemp("sample")
    with LoopDevice(folder / "disk", size, sector_size) as device:
        sample_disk.fill(device, folder)
        facts = disk_facts(device, SAMPLE_KINDS, folder)
        before = digest(device.path)
        image = folder / "image"
        done = imager("capture", "--json", device.path, image)
        yield Sample(device, image, facts, before, json.loads(done.out))


def garbage(path: Path, size: int) -> Path:
    """A file in which no sector is zero, as a used disk has them."""
    block = random.Random(99).randbytes(MIB)
    with path.open("xb") as file:
        for start in range(0, size, MIB):
            file.write(block[: size - start])
    return path


def test_capture_leaves_the_source_as_it_was(sample: Sample) -> None:
    assert digest(sample.device.path) == sample.digest
    assert digest(sample.device.file) == sample.digest


def test_restores_a_whole_disk_over_garbage(sample: Sample, tmp_path: Path) -> None:
    with LoopDevice(garbage(tmp_path / "t", sample.size), 0, sample.device.sector_size) as target:
        done = imager("restore", "--yes", sample.image, target.path)
        assert "read back and compared: equal" in done.out
        assert disk_facts(target, SAMPLE_KINDS, tmp_path) == sample.facts
        assert gpt_is_sound(target.path)
        imager("check", "--against", target.path, sample.image)
    imager("check", "--against", sample.device.path, sample.image)


def test_plain_zstd_restores_the_same(sample: Sample, tmp_path: Path) -> None:
    assert not zstd_refuses(sample.image)
    imager("restore", "--yes", sample.image, tmp_path / "blank")
    assert same_bytes(plain_zstd(sample.image, tmp_path), tmp_path / "blank")


# A smaller disk for everything that does not need the large one. Its partitions begin and end amid
# chunks, its middle lies farther from both ends than the 16 MiB that are always stored.
#
#     | GPT | 1: ext4 | 2: ext2, 1 KiB blocks | 3: noise | gap | 4: ext4 | GPT |

SMALL_KINDS = {1: "ext4", 2: "ext2", 4: "ext4"}
SMALL_SIZE = 120 * MIB + 5 * 512
NOISE = 3
SMALL_PARTS = {1: (63, 41_003), 2: (41_066, 61_441), 3: (102_507, 8191), 4: (120_001, 100_000)}
"""First sector and number of sectors, by partition number."""


@dataclass(frozen=True)
class Small:
    disk: Path
    image: Path
    facts: dict[object, object]
    digest: str


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    with LoopDevice(folder / "disk", SMALL_SIZE) as device:
        partition(device.path, SMALL_PARTS)
        device.scan()
        for number, kind in SMALL_KINDS.items():
            node = device.partition(number)
            block = "4096" if kind == "ext4" else "1024"
            run(f"mkfs.{kind}", "-q", "-b", block, "-L", f"volume-{number}", node)
            with mounted(node, folder / f"{number}", fs_type=kind) as place:
                sample_disk.write_tree(place / "home", 2 * MIB, number)
                sample_disk.write_and_delete(place)
        device.partition(NOISE).write_bytes(random.Random(1).randbytes(8191 * 512))
        facts = disk_facts(device, SMALL_KINDS, folder)
    imager("capture", folder / "disk", folder / "image")
    return Small(folder / "disk", folder / "image", facts, digest(folder / "disk"))


def partition(disk: Path, wanted: dict[int, tuple[int, int]]) -> None:
    """Make a GPT with partitions given by first sector and number of sectors."""
    words = [f"--new={n}:{first}:{first + count - 1}" for n, (first, count) in wanted.items()]
    run("sgdisk", "--clear", "--set-alignment=1", *words, disk)


def garbage_device(folder: Path, size: int, sector_size: int = 512) -> LoopDevice:
    """A loop device over garbage, to be entered."""
    return LoopDevice(garbage(folder / "target", size), sector_size=sector_size)


class TestLayouts:
    """Every way to divide a disk, or not to."""

    def test_mbr_with_logical_partitions(self, tmp_path: Path) -> None:
        kinds = {1: "vfat", 5: "ext2", 6: "ext3", 7: "vfat"}
        with LoopDevice(tmp_path / "disk", 96 * MIB) as device:
            table = """label: dos
                start=63, size=40001, type=6, bootable
                start=40064, size=150000, type=f
                start=40100, size=50000, type=83
                start=90200, size=60000, type=83
                start=150300, size=8000, type=1
            """
            run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", device.path, text=table)
            device.scan()
            fill_fat(device.partition(1), 16, tmp_path / "files")
            fill_fat(device.partition(7), 12, tmp_path / "few files")
            for number, kind in ((5, "ext2"), (6, "ext3")):
                run(f"mkfs.{kind}", "-q", "-b", "1024", device.partition(number))
                with mounted(device.partition(number), tmp_path / kind, fs_type=kind) as place:
                    sample_disk.write_tree(place / "home", MIB, number)
                    sample_disk.write_and_delete(place)
            facts = disk_facts(device, kinds, tmp_path)
            before = digest(device.path)
            imager("capture", device.path, tmp_path / "image")
            assert digest(device.path) == before
        described = info(tmp_path / "image")
        assert {v["number"]: v["stored"] for v in volumes(described)} == dict.fromkeys(
            kinds, "used"
        )
        with garbage_device(tmp_path, 96 * MIB) as target:
            imager("restore", "--yes", tmp_path / "image", target.path)
            assert disk_facts(target, kinds, tmp_path) == facts
        (tmp_path / "target").unlink()
        # A larger disk: its end stays free, and the table stays as it is.
        with garbage_device(tmp_path, 130 * MIB) as target:
            done = imager("restore", "--yes", tmp_path / "image", target.path)
            assert "stay unpartitioned" in done.out
            assert disk_facts(target, kinds, tmp_path) == facts
            assert parted_partitions(target.path) == parted_partitions(tmp_path / "disk")

    @pytest.mark.parametrize(
        ("kind", "size", "command"),
        [
            ("ext2", 40 * MIB, ("mkfs.ext2", "-b", "1024")),
            ("ext4", 60 * MIB, ("mkfs.ext4", "-b", "4096")),
            ("ntfs", 50 * MIB, ("mkfs.ntfs", "-q", "-F", "-f")),
            ("vfat", 60 * MIB, ("mkfs.fat", "-F", "16")),
            ("vfat", 4 * MIB, ("mkfs.fat", "-F", "12")),
        ],
        ids=["ext2", "ext4", "ntfs", "fat16", "fat12"],
    )
    def test_file_system_without_a_table(
        self, kind: str, size: int, command: tuple[str, ...], tmp_path: Path
    ) -> None:
        with LoopDevice(tmp_path / "disk", size) as device:
            if kind == "vfat":
                fill_fat(device.path, int(command[-1]), tmp_path / "files")
            else:
                run(*command, device.path)
                fs_type = "ntfs-3g" if kind == "ntfs" else kind
                with mounted(device.path, tmp_path / "fill", fs_type=fs_type) as place:
                    sample_disk.write_tree(place / "home", 2 * MIB, 7)
                    sample_disk.write_and_delete(place)
            facts = files_of(device.path, kind, tmp_path)
            before = digest(device.path)
            imager("capture", device.path, tmp_path / "image")
            assert digest(device.path) == before
        (volume,) = volumes(info(tmp_path / "image"))
        assert (volume["kind"], volume["stored"], volume["number"]) == (kind, "used", None)
        with garbage_device(tmp_path, size) as target:
            imager("restore", "--yes", tmp_path / "image", target.path)
            assert files_of(target.path, kind, tmp_path) == facts

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        sparse_file(tmp_path / "disk", 0)
        line = failure("capture", tmp_path / "disk", tmp_path / "image", status=2)
        assert "empty" in line

    @pytest.mark.parametrize("size", [1, 511, 512, MIB, 3 * MIB + 512, 5 * MIB + 777])
    def test_unknown_content_of_any_size(self, size: int, tmp_path: Path) -> None:
        disk, image = garbage(tmp_path / "disk", size), tmp_path / "image"
        imager("capture", disk, image)
        imager("check", "--against", disk, image)
        imager("restore", "--yes", image, tmp_path / "new")
        assert same_bytes(disk, tmp_path / "new")
        assert same_bytes(disk, plain_zstd(image, tmp_path))

    def test_empty_disk(self, tmp_path: Path) -> None:
        size = 200 * MIB + 3 * 512
        with LoopDevice(tmp_path / "disk", size) as device:
            done = imager("capture", "--json", device.path, tmp_path / "image")
        assert json.loads(done.out)["zero"] == size
        assert (tmp_path / "image").stat().st_size < 100_000
        garbage(tmp_path / "target", 40 * MIB)
        with (tmp_path / "target").open("r+b") as file:
            file.truncate(size)
        with LoopDevice(tmp_path / "target") as target:
            imager("restore", "--yes", tmp_path / "image", target.path)
            assert same_bytes(target.path, tmp_path / "disk")

    def test_damaged_gpt_is_stored_whole(self, small: Small, tmp_path: Path) -> None:
        disk = clone(small.disk, tmp_path / "disk")
        for header in (512, SMALL_SIZE - 512):
            put(disk, header + 40, b"damage")
        done = imager("capture", disk, tmp_path / "image")
        assert "is stored whole" in done.out
        (volume,) = volumes(info(tmp_path / "image"))
        assert volume["stored"] == "raw" and "table is damaged" in str(volume["reason"])
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            imager("restore", "--yes", tmp_path / "image", target.path)
            assert same_bytes(disk, target.path)

    def test_backup_of_a_damaged_gpt_serves(self, small: Small, tmp_path: Path) -> None:
        disk = clone(small.disk, tmp_path / "disk")
        put(disk, 512 + 40, b"damage")
        imager("capture", disk, tmp_path / "image")
        found = {v["number"]: v["stored"] for v in volumes(info(tmp_path / "image"))}
        assert found == {1: "used", 2: "used", NOISE: "raw", 4: "used"}
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            imager("restore", "--yes", tmp_path / "image", target.path)
            for start in (0, SMALL_SIZE - 33 * 512):
                assert same_bytes(disk, target.path, start, 33 * 512)
        (tmp_path / "target").unlink()
        # On a disk of another size the table is made anew, whole.
        with garbage_device(tmp_path, SMALL_SIZE + 10 * MIB) as target:
            imager("restore", "--yes", tmp_path / "image", target.path)
            assert gpt_is_sound(target.path)
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts

    def test_larger_disk_gets_its_gpt_backup_at_the_end(self, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE + 30 * MIB) as target:
            imager("restore", "--yes", small.image, target.path)
            assert gpt_is_sound(target.path)
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts
            assert parted_partitions(target.path) == parted_partitions(small.disk)
            # Where the backup was, there is none any more that could be found.
            assert all_zero(target.path, SMALL_SIZE - 33 * 512, SMALL_SIZE)


class TestOnePartition:
    """A partition by itself, in and out of disks."""

    FIRST = 5003
    """An odd sector, so that chunks of the imaged disk straddle those of the target."""

    @pytest.mark.parametrize("number", [1, 2, NOISE, 4])
    def test_from_a_disk_image(self, number: int, small: Small, tmp_path: Path) -> None:
        with self.target(tmp_path, SMALL_PARTS[number][1]) as target:
            before = tmp_path / "before"
            run("cp", target.file, before)
            imager("restore", "--yes", "--partition", number, small.image, target.partition(1))
            self.check(number, small, target, before, tmp_path)

    @pytest.mark.parametrize("number", [2, NOISE])
    def test_from_an_image_of_the_partition(
        self, number: int, small: Small, tmp_path: Path
    ) -> None:
        with LoopDevice(small.disk, read_only=True) as device:
            device.scan()
            imager("capture", device.partition(number), tmp_path / "image")
            imager("check", "--against", device.partition(number), tmp_path / "image")
        with self.target(tmp_path, SMALL_PARTS[number][1]) as target:
            before = tmp_path / "before"
            run("cp", target.file, before)
            imager("restore", "--yes", tmp_path / "image", target.partition(1))
            self.check(number, small, target, before, tmp_path)
        assert same_bytes(plain_zstd(tmp_path / "image", tmp_path), restored(tmp_path))

    def test_whole_disk_onto_a_partition_is_refused(self, small: Small, tmp_path: Path) -> None:
        with self.target(tmp_path, SMALL_SIZE // 512) as target:
            line = failure("restore", "--yes", small.image, target.partition(1), status=5)
        assert "--partition" in line

    def test_unknown_partition(self, small: Small, tmp_path: Path) -> None:
        line = failure("restore", "--partition", 9, small.image, tmp_path / "new", status=2)
        assert "only: 1, 2, 3, 4" in line

    def target(self, folder: Path, sectors: int) -> LoopDevice:
        """A disk full of garbage with one partition."""
        size = (self.FIRST + sectors + 2000) * 512
        garbage(folder / "target", size)
        partition(folder / "target", {1: (self.FIRST, sectors)})
        return ScannedLoopDevice(folder / "target")

    def check(
        self, number: int, small: Small, target: LoopDevice, before: Path, folder: Path
    ) -> None:
        """The partition is as it was captured, and what lies around it as it was before."""
        first, last = self.FIRST * 512, (self.FIRST + SMALL_PARTS[number][1]) * 512
        node = target.partition(1)
        if number == NOISE:
            assert node.read_bytes() == get(small.disk, SMALL_PARTS[number][0] * 512, last - first)
        else:
            assert files_of(node, SMALL_KINDS[number], folder) == small.facts[number]
        assert same_bytes(before, target.file, 0, first)
        assert same_bytes(before, target.file, last)


class ScannedLoopDevice(LoopDevice):
    """Has its partition nodes from the start."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.scan()
        return self


class TestWhatIsStored:
    """Options that store less or more."""

    @pytest.mark.parametrize("option", [("--exclude", "3"), ("--only", "1,2,4")])
    def test_partition_left_out(
        self, option: tuple[str, str], small: Small, tmp_path: Path
    ) -> None:
        image = tmp_path / "image"
        imager("capture", *option, small.disk, image)
        assert zstd_refuses(image)
        assert "not a whole disk" in imager("info", image).out
        imager("check", image)
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            old = get(target.file, SMALL_PARTS[NOISE][0] * 512, SMALL_PARTS[NOISE][1] * 512)
            imager("restore", "--yes", image, target.path)
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts
            assert target.partition(NOISE).read_bytes() == old
        line = failure("restore", "--yes", "--partition", 3, image, tmp_path / "n", status=2)
        assert "left out" in line

    def test_partition_left_out_at_the_disks_edges(self, small: Small, tmp_path: Path) -> None:
        image = tmp_path / "image"
        imager("capture", "--only", "2", small.disk, image)
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            kept = {n: self.bytes_of(target.file, n) for n in (1, NOISE, 4)}
            imager("restore", "--yes", image, target.path)
            assert {n: self.bytes_of(target.file, n) for n in kept} == kept
            facts = disk_facts(target, {2: "ext2"}, tmp_path)
        assert facts == {key: small.facts[key] for key in ("table", 2)}

    def test_unknown_partition(self, small: Small, tmp_path: Path) -> None:
        line = failure("capture", "--only", "7", small.disk, tmp_path / "image", status=2)
        assert "no partition 7" in line
        assert list(tmp_path.iterdir()) == []

    def test_every_sector(self, small: Small, tmp_path: Path) -> None:
        done = imager("capture", "--raw", "--json", small.disk, tmp_path / "image")
        assert json.loads(done.out)["used"] == SMALL_SIZE
        assert same_bytes(small.disk, plain_zstd(tmp_path / "image", tmp_path))
        imager("restore", "--yes", tmp_path / "image", garbage(tmp_path / "target", SMALL_SIZE))
        assert same_bytes(small.disk, tmp_path / "target")

    def test_gaps(self, tmp_path: Path) -> None:
        disk = sparse_file(tmp_path / "disk", 150 * MIB)
        partition(disk, {1: (2048, 2048), 2: (50 * 2048, 2048), 3: (140 * 2048, 2048)})
        put(disk, 30 * MIB, b"in the first gap")
        put(disk, 90 * MIB, b"in the second gap")
        lost = sparse_file(tmp_path / "lost", 20 * MIB)
        run("mkfs.ext4", "-q", lost)
        copy_into(lost, disk, 70 * MIB)
        done = imager("capture", disk, tmp_path / "image")
        assert "perhaps a lost partition" in done.out and "ext" in done.out
        first, second = ((gap["stored"], gap["start"]) for gap in large_gaps(tmp_path / "image"))
        assert first == (False, 2 * MIB) and second == (True, 51 * MIB)
        stored = plain_zstd(tmp_path / "image", tmp_path)
        assert not any(get(stored, 30 * MIB, 512))
        assert same_bytes(disk, stored, 51 * MIB)
        imager("capture", "--keep-gaps", disk, tmp_path / "all")
        assert same_bytes(disk, plain_zstd(tmp_path / "all", tmp_path))

    def bytes_of(self, disk: Path, number: int) -> bytes:
        first, count = SMALL_PARTS[number]
        return get(disk, first * 512, count * 512)


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

    def test_write_protected(self, small: Small, tmp_path: Path) -> None:
        garbage(tmp_path / "target", SMALL_SIZE)
        with LoopDevice(tmp_path / "target", read_only=True) as target:
            assert "read-only" in self.refused(small.image, target)

    def test_source_mounted(self, small: Small, tmp_path: Path) -> None:
        with self.copy(small, tmp_path) as source:
            with mounted(source.partition(1), tmp_path / "at") as place:
                line = failure("capture", source.path, tmp_path / "image", status=5)
                assert str(place) in line and "--consistency crash" in line
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


class TestOnlyChanges:
    """A target that holds nearly all of it already."""

    EVER = 3 * MIB
    """The first and the last chunk hold the partition table, which is always written."""

    def test_writes_what_differs(self, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            first = self.restore(small, target)
            assert first["unchanged"] == 0
            second = self.restore(small, target)
            assert self.touched(second) <= self.EVER
            assert second["unchanged"] > 0.9 * self.touched(first)
            for mebibyte in (51, 52, 53):  # amid the noise
                put(target.path, mebibyte * MIB + 3 * 512, b"changed")
            run("blockdev", "--flushbufs", target.path)
            third = self.restore(small, target)
            assert self.touched(third) - self.touched(second) == 3 * MIB
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts
            imager("check", "--against", target.path, small.image)

    def test_one_partition(self, small: Small, tmp_path: Path) -> None:
        garbage(tmp_path / "target", SMALL_PARTS[2][1] * 512)
        words = ("--partition", "2", small.image, tmp_path / "target")
        done = imager("restore", "--yes", "--json", "--only-changes", *words)
        before = self.touched(json.loads(done.out))
        put(tmp_path / "target", 40 * 512, b"changed")
        done = imager("restore", "--yes", "--json", "--only-changes", *words)
        assert self.touched(json.loads(done.out)) <= 3 * MIB < before
        with LoopDevice(tmp_path / "target") as target:
            assert files_of(target.path, "ext2", tmp_path) == small.facts[2]

    def restore(self, small: Small, target: LoopDevice) -> dict[str, int]:
        done = imager("restore", "--yes", "--json", "--only-changes", small.image, target.path)
        found: dict[str, int] = json.loads(done.out)
        return found

    def touched(self, result: dict[str, int]) -> int:
        return result["written"] + result["zeroed"]


class TestTarget:
    """What a restore leaves beside the restored."""

    def test_unused_space_is_given_back(self, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            assert target.file.stat().st_blocks * 512 >= SMALL_SIZE
            done = imager("restore", "--yes", "--json", small.image, target.path)
            result = json.loads(done.out)
            assert result["discarded"] > 20 * MIB
            os.sync()
            held = target.file.stat().st_blocks * 512
            assert held <= SMALL_SIZE - result["discarded"] + MIB

    def test_old_signatures_are_gone(self, small: Small, tmp_path: Path) -> None:
        """At the old partitions' ends, also where they are amid what is unused now."""
        old = {1: (2048, 60_000), 2: (62_048 + 2048 * 11, 60_000), 3: (160_000, 40_000)}
        with LoopDevice(tmp_path / "target", SMALL_SIZE) as target:
            partition(target.path, old)
            target.scan()
            run("pvcreate", "-y", "--devices", target.partition(1), target.partition(1))
            run("mkfs.ext4", "-q", target.partition(2))
            put_md_superblock(target.partition(3))
            put_zfs_label(target.partition(1))
            nodes = [target.partition(number) for number in old]
            assert [blkid(node) for node in nodes] == ["LVM2_member", "ext4", "linux_raid_member"]
            run("partx", "--delete", target.path)
            imager("restore", "--yes", small.image, target.path)
            run("partx", "--delete", target.path)
            assert wipefs(target.path) == {"gpt", "PMBR"}
            for number, (first, count) in old.items():
                node = target.partition(number)
                run("addpart", target.path, str(number), str(first), str(count))
                assert wipefs(node) == set(), number
                run("delpart", target.path, str(number))
            assert disk_facts(target, SMALL_KINDS, tmp_path) == small.facts

    def test_kernel_knows_the_new_partitions(self, small: Small, tmp_path: Path) -> None:
        with garbage_device(tmp_path, SMALL_SIZE) as target:
            imager("restore", "--yes", small.image, target.path)
            for number, (first, count) in SMALL_PARTS.items():
                node = Path("/sys/class/block") / target.partition(number).name
                found = tuple(int((node / name).read_text()) for name in ("start", "size"))
                assert found == (first, count)

    def test_zeros_are_written(self, tmp_path: Path) -> None:
        """Zeros in use are content: what the target held there must go."""
        disk = sparse_file(tmp_path / "disk", 64 * MIB)
        put(disk, 5000, b"content")
        imager("capture", disk, tmp_path / "image")
        garbage(tmp_path / "target", 64 * MIB)
        imager("restore", "--yes", tmp_path / "image", tmp_path / "target")
        assert same_bytes(disk, tmp_path / "target")


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


def run_piped(command: list[str], out: IO[bytes]) -> None:
    """Run with standard output to a file by way of a pipe, which cannot be seeked."""
    first = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    subprocess.run(["cat"], stdin=first.stdout, stdout=out, check=True)
    assert first.wait() == 0


def info(image: Path) -> Any:
    return json.loads(imager("info", "--json", image).out)


def volumes(described: Any) -> list[dict[str, object]]:
    found: list[dict[str, object]] = described["head"]["layout"]["volumes"]
    return found


def large_gaps(image: Path) -> list[dict[str, Any]]:
    gaps = info(image)["head"]["layout"]["gaps"]
    return [gap for gap in gaps if gap["size"] > 16 * MIB]


def fill_fat(device: Path, bits: int, folder: Path) -> None:
    """A FAT file system with files, and holes where others were deleted."""
    run("mkfs.fat", "-F", str(bits), "-n", f"FAT{bits}", device)
    folder.mkdir()
    noise = random.Random(bits)
    for number in range(20):
        (folder / f"a long file name {number}.bin").write_bytes(noise.randbytes(1 << 16))
    files = sorted(folder.iterdir())
    run("mcopy", "-i", device, "-s", "-Q", *files, "::")
    run("mdel", "-i", device, *(f"::{file.name}" for file in files[3::3]))
    run("mmd", "-i", device, "::folder")
    run("mcopy", "-i", device, files[0], "::folder/copy.bin")


def restored(folder: Path) -> Path:
    """The partition of the target of `TestOnePartition`, blank before, by the same image."""
    imager("restore", "--yes", folder / "image", folder / "blank")
    return folder / "blank"


def blkid(path: Path) -> str:
    """What blkid finds there, if anything: the file system, or else the partition table."""
    done = subprocess.run(
        ["blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=False
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return found.get("TYPE") or found.get("PTTYPE") or ""


def wipefs(path: Path) -> set[str]:
    """The names of all signatures there."""
    found = json.loads(run("wipefs", "--json", "--no-act", path) or '{"signatures": []}')
    return {signature["type"] for signature in found["signatures"]}


def put_md_superblock(path: Path) -> None:
    """Linux RAID metadata 1.0, which lies 8 KiB before the end (linux/raid/md_p.h)."""
    size = int(run("blockdev", "--getsize64", path))
    at = (size // 512 - 16) // 8 * 8
    block = bytearray(256)
    struct.pack_into("<II", block, 0, 0xA92B4EFC, 1)
    block[16:32] = bytes(range(16))
    struct.pack_into("<Q", block, 80, at)
    struct.pack_into("<Q", block, 144, at)
    total = sum(struct.unpack("<64I", block))
    struct.pack_into("<I", block, 216, (total & 0xFFFFFFFF) + (total >> 32))
    put(path, at * 512, bytes(block))


def put_zfs_label(path: Path) -> None:
    """Uberblock magics of a ZFS label, at 128 KiB (OpenZFS, sys/uberblock_impl.h)."""
    for slot in range(16):
        put(path, (128 + slot) * 1024, struct.pack("<Q", 0x00BAB10C))
