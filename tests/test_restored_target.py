"""What a restore does to its target beside the content."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from tests.command import imager, same_bytes
from tests.comparing import disk_facts, files_of
from tests.disks import MIB, put, run
from tests.faulty import Fault, faulty
from tests.loop import LoopDevice, sparse_file
from tests.small_disk import (
    SMALL_KINDS,
    SMALL_PARTS,
    SMALL_SIZE,
    Small,
    blkid,
    garbage,
    garbage_device,
    partition,
)


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
        """At the old partitions' ends, also where they are amid what is unused now, or behind it."""
        old = {
            1: (2048, 60_000),
            2: (62_048 + 2048 * 11, 60_000),
            3: (160_000, 40_000),
            4: (SMALL_SIZE // 512 + 8000, 40_000),
        }
        kinds = {1: "LVM2_member", 2: "ext4", 3: "linux_raid_member", 4: "ext4"}
        with LoopDevice(tmp_path / "target", SMALL_SIZE + 40 * MIB) as target:
            partition(target.path, old)
            target.scan()
            run("pvcreate", "-y", "--devices", target.partition(1), target.partition(1))
            for number in (2, 4):
                run("mkfs.ext4", "-q", target.partition(number))
            put_md_superblock(target.partition(3))
            put_zfs_label(target.partition(1))
            assert {number: blkid(target.partition(number)) for number in old} == kinds
            run("partx", "--delete", target.path)
            words = ("restore", "--yes", small.image, target.path)
            # On a disk that cannot discard what is not written stays as it was.
            imager(*words, program=faulty(Fault("discard", str(target.path), "EOPNOTSUPP")))
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
