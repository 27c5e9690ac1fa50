"""Disks captured, restored over garbage, and found equal file by file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import sample_disk
from tests.command import (
    all_zero,
    failure,
    imager,
    info,
    plain_zstd,
    same_bytes,
    volumes,
    zstd_refuses,
)
from tests.comparing import digest, disk_facts, files_of, gpt_is_sound, table_of
from tests.disks import MIB, clone, copy_into, get, parted_partitions, put, run
from tests.loop import LoopDevice, mounted, sparse_file
from tests.small_disk import (
    NOISE,
    SMALL_KINDS,
    SMALL_PARTS,
    SMALL_SIZE,
    ScannedLoopDevice,
    Small,
    garbage,
    garbage_device,
    partition,
)

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


def test_restores_onto_a_larger_disk(sample: Sample, tmp_path: Path) -> None:
    size = sample.size + 9 * MIB
    with LoopDevice(garbage(tmp_path / "t", size), 0, sample.device.sector_size) as target:
        imager("restore", "--yes", "--no-read-back", sample.image, target.path)
        target.scan()
        assert table_of(target.path) == sample.facts["table"]
        assert gpt_is_sound(target.path)
        assert parted_partitions(target.path) == parted_partitions(sample.device.path)


def test_plain_zstd_restores_the_same(sample: Sample, tmp_path: Path) -> None:
    assert not zstd_refuses(sample.image)
    imager("restore", "--yes", sample.image, tmp_path / "blank")
    assert same_bytes(plain_zstd(sample.image, tmp_path), tmp_path / "blank")


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
            imager("check", "--quick", "--against", target.path, small.image)
            noise = SMALL_PARTS[NOISE][0] * 512
            # The table fitted to the size is all that may differ.
            for offset in (446 + 12, 520, 2 * 512 + 3, SMALL_SIZE + 30 * MIB - 512 + 60, noise):
                was = get(target.path, offset, 1)
                put(target.path, offset, bytes((was[0] ^ 1,)))
                done = imager("check", "--quick", "--against", target.path, small.image, status=8)
                assert "differ" in done.out
                put(target.path, offset, was)
            imager("check", "--quick", "--against", target.path, small.image)


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


def test_file_that_ends_amid_a_sector(tmp_path: Path) -> None:
    """What is kept of its end, and what is unused before, must still be whole sectors."""
    disk = sparse_file(tmp_path / "disk", 80 * MIB + 100)
    run("mkfs.ext4", "-q", "-F", disk, "80M")
    put(disk, 80 * MIB + 90, b"the end")
    imager("capture", disk, tmp_path / "image")
    imager("check", tmp_path / "image", "--against", disk)
    imager("restore", "--yes", tmp_path / "image", tmp_path / "restored")
    assert same_bytes(disk, tmp_path / "restored")
