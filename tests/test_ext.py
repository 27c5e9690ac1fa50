"""The allocation of clean ext2/3/4 volumes, compared with dumpe2fs and partclone."""

from __future__ import annotations

from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume, read_allocation
from imager.filesystems.ext.checksum import CRC_START, crc16, crc32_be, crc32c
from tests.ext_images import (
    MIB,
    allocated,
    allocated_by_dumpe2fs,
    copy,
    debugfs,
    digest,
    fill,
    make,
    mounted,
    run,
    sync,
    write_files,
)
from tests.loop import LoopDevice
from tests.oracles import allocated_by_partclone
from tests.volumes import FileVolume

CONFIGURATIONS = {
    "ext2-1k": "-t ext2 -b 1024",
    "ext2-4k": "-t ext2 -b 4096 -g 2048",
    "ext2-revision-0": "-t ext2 -b 1024 -r 0 -O none",
    "ext2-no-sparse-super": "-t ext2 -b 1024 -O ^sparse_super,^resize_inode",
    "ext3-1k": "-t ext3 -b 1024",
    "ext3-4k": "-t ext3 -b 4096 -g 1024",
    "ext4-1k": "-t ext4 -b 1024",
    "ext4-2k": "-t ext4 -b 2048",
    "ext4-4k": "-t ext4 -b 4096 -g 1024",
    "ext4-odd-group": "-t ext4 -b 4096 -g 1560",
    "ext4-32bit": "-t ext4 -b 1024 -O ^64bit",
    "ext4-no-checksums": "-t ext4 -b 1024 -O ^metadata_csum",
    "ext4-crc16": "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg",
    "ext4-crc16-32bit": "-t ext4 -b 4096 -g 1024 -O ^metadata_csum,^64bit,uninit_bg",
    "ext4-checksum-seed": "-t ext4 -b 1024 -O metadata_csum_seed",
    "ext4-no-flex-bg": "-t ext4 -b 1024 -O ^flex_bg",
    "ext4-flex-bg-4": "-t ext4 -b 1024 -G 4",
    "ext4-flex-bg-all": "-t ext4 -b 1024 -G 1024",
    "ext4-packed": "-t ext4 -b 1024 -E packed_meta_blocks=1",
    "ext4-meta-bg": "-t ext4 -b 1024 -O meta_bg,^resize_inode",
    "ext4-meta-bg-no-flex": "-t ext4 -b 1024 -O meta_bg,^resize_inode,^flex_bg -g 256 -N 4000",
    "ext4-meta-bg-no-sparse": "-t ext4 -b 1024 -O meta_bg,^resize_inode,^sparse_super",
    "ext4-sparse-super2": "-t ext4 -b 1024 -O sparse_super2,^resize_inode",
    "ext4-sparse-super2-one": ("-t ext4 -b 1024 -O sparse_super2,^resize_inode -E num_backup_sb=1"),
    "ext4-sparse-super2-none": (
        "-t ext4 -b 1024 -O sparse_super2,^resize_inode -E num_backup_sb=0"
    ),
    "ext4-bigalloc-1k": "-t ext4 -b 1024 -O bigalloc -C 8192 -g 8192",
    "ext4-bigalloc-4k": "-t ext4 -b 4096 -O bigalloc -C 65536 -g 4096",
    "ext4-bigalloc-meta-bg": "-t ext4 -b 1024 -O bigalloc,meta_bg,^resize_inode -C 4096 -g 2048",
    "ext4-bigalloc-cut": "-t ext4 -b 1024 -O bigalloc -C 65536 -g 512",
    "ext4-bigalloc-large": "-t ext4 -b 4096 -O bigalloc -C 1048576",
    "ext4-bigalloc-packed": "-t ext4 -b 1024 -O bigalloc -C 4096 -E packed_meta_blocks=1",
    "ext4-resize-inode": "-t ext4 -b 1024 -E resize=67108864",
    "ext4-small-inodes": "-t ext4 -b 1024 -I 128",
    "ext4-no-journal": "-t ext4 -b 1024 -O ^has_journal",
    "ext4-fast-commit": "-t ext4 -b 1024 -O fast_commit",
    "ext4-orphan-file": "-t ext4 -b 1024 -O orphan_file",
    "ext4-mmp": "-t ext4 -b 1024 -O mmp",
    "ext4-files": "-t ext4 -b 1024 -O inline_data,ea_inode,large_dir,encrypt,verity,stable_inodes",
}
"""Name to mke2fs options; all of these mount on any kernel with ext4."""

NOT_MOUNTED = {
    "quota": "-t ext4 -b 1024 -O quota,project",
    "casefold": "-t ext4 -b 1024 -O casefold -E encoding=utf8",
    "64k": "-t ext4 -b 65536",
}
"""These need what many kernels are built without."""

PARTCLONE = ("ext2-1k", "ext3-4k", "ext4-4k", "ext4-crc16", "ext4-meta-bg", "ext4-no-flex-bg")
LARGE = 128 * MIB
GIB = 1 << 30


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_allocation_is_what_dumpe2fs_says(name: str, tmp_path: Path) -> None:
    image = make(tmp_path / "image", LARGE - 3 * 1024, *CONFIGURATIONS[name].split())
    fill(image)
    before = digest(image)
    allocation = allocated(image, name[:4])
    assert allocation.allocated == allocated_by_dumpe2fs(image)
    assert allocation.size <= LARGE - 3 * 1024
    assert allocation.notes == ()
    assert digest(image) == before
    if name in PARTCLONE:
        assert allocation.allocated == allocated_by_partclone("extfs", image, tmp_path)


@pytest.mark.parametrize("name", NOT_MOUNTED)
def test_allocation_of_a_volume_filled_without_the_kernel(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    files = write_files(source, 30, 2)
    image = make(tmp_path / "image", LARGE, *NOT_MOUNTED[name].split(), "-d", str(source))
    debugfs(image, *(f"rm /{file.name}" for file in files[::4]))
    assert allocated(image).allocated == allocated_by_dumpe2fs(image)


@pytest.mark.parametrize("options", ["-t ext4 -b 1024", "-t ext4 -b 1024 -O ^metadata_csum"])
@pytest.mark.parametrize("size", [40, 150, 400])
def test_resized_offline(options: str, size: int, tmp_path: Path) -> None:
    image = make(tmp_path / "image", 200 * MIB, *options.split())
    fill(image, 20)
    run("e2fsck", "-fy", image)
    run("resize2fs", image, f"{size}M")
    with image.open("r+b") as file:
        file.truncate(max(size, 200) * MIB)
    allocation = allocated(image)
    assert allocation.size == size * MIB
    assert allocation.allocated == allocated_by_dumpe2fs(image)


def test_meta_bg_from_a_later_descriptor_block_on(tmp_path: Path) -> None:
    """As after a file system has grown beyond what was reserved for descriptors."""
    image = make(tmp_path / "image", 64 * MIB, "-t", "ext4", "-b", "1024", "-O", "^resize_inode")
    debugfs(image, "feature meta_bg", "ssv first_meta_bg 1")
    run("e2fsck", "-fy", image)
    run("resize2fs", image, "400M")
    run("e2fsck", "-fn", image)
    fill(image, 20)
    assert "First meta block group:   1\n" in run("dumpe2fs", "-h", image)
    assert allocated(image).allocated == allocated_by_dumpe2fs(image)


def test_block_numbers_beyond_32_bits(tmp_path: Path) -> None:
    options = "-t ext4 -b 1024 -O bigalloc -C 1048576 -J size=4 -N 10000"
    size = 5 << 40
    image = make(tmp_path / "image", size, *options.split())
    allocation = allocated(image)
    assert allocation.size == size
    assert allocation.allocated.end > 1024 << 32
    assert allocation.allocated == allocated_by_dumpe2fs(image)


def test_uninitialised_groups_are_not_read(tmp_path: Path) -> None:
    class Counting(FileVolume):
        bytes_read = 0

        def read(self, offset: int, size: int) -> bytes:
            Counting.bytes_read += size
            return super().read(offset, size)

    image = make(tmp_path / "image", 2 << 40, "-t", "ext4", "-J", "size=4")
    volume: Volume = Counting(image)
    allocation = read_allocation("ext4", volume)
    assert allocation.size == 2 << 40
    descriptors = (2 << 40) // (128 * MIB) * 64
    assert Counting.bytes_read < descriptors + 16 * MIB


def test_mounted_and_synced(tmp_path: Path) -> None:
    """A journal that is in use but empty needs no replay, and recovery of nothing is no doubt."""
    image = make(tmp_path / "image", 64 * MIB, "-t", "ext4")
    with mounted(image) as point:
        write_files(point, 5, 4)
        run("fsfreeze", "-f", point)
        try:
            frozen = copy(image, "frozen")
        finally:
            run("fsfreeze", "-u", point)
    assert allocated(frozen).allocated == allocated_by_dumpe2fs(frozen)


def test_space_behind_the_file_system_is_left_to_the_caller(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64 * MIB, "-t", "ext4", "-b", "4096")
    with image.open("r+b") as file:
        file.truncate(65 * MIB)
    allocation = allocated(image)
    assert allocation.size == 64 * MIB
    assert allocation.allocated.end <= 64 * MIB


def test_boot_block_is_kept(tmp_path: Path) -> None:
    for options in ("-b 1024", "-b 4096", "-b 1024 -O bigalloc -C 16384"):
        image = make(tmp_path / "image", 64 * MIB, "-t", "ext4", *options.split())
        assert allocated(image).allocated.covers(0, 2048)


def test_external_journal(tmp_path: Path) -> None:
    """One that is on another device counts as long as it is in use, and then it is not seen."""
    device = make(tmp_path / "journal", 16 * MIB, "-O", "journal_dev", "-b", "1024")
    with pytest.raises(NotUnderstoodError, match="external ext journal"):
        allocated(device)
    with LoopDevice(device) as loop:
        options = ("-t", "ext4", "-b", "1024", "-J", f"device={loop.path}")
        image = make(tmp_path / "image", 64 * MIB, *options)
        with mounted(image, f"journal_path={loop.path}") as point:
            for file in write_files(point, 20, 1):
                sync(file)
            crashed = copy(image, "crashed")
    with pytest.raises(NotUnderstoodError, match="on another device, was not replayed"):
        allocated(crashed)
    allocation = allocated(image)
    assert allocation.allocated == allocated_by_dumpe2fs(image)
    assert allocation.notes == ("its journal is on another device, and empty",)


def test_blocks_that_files_share(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 16 * MIB, "-t", "ext4", "-b", "1024")
    fill(image, 10)
    debugfs(image, "feature shared_blocks")
    assert allocated(image).allocated == allocated_by_dumpe2fs(image)


def test_huge_journal(tmp_path: Path) -> None:
    """Its blocks are kept, and those of an empty log not read."""
    options = ("-t", "ext4", "-J", "size=8192", "-E", "lazy_journal_init=1,lazy_itable_init=1")
    image = make(tmp_path / "image", 64 * GIB, *options)
    assert allocated(image).allocated == allocated_by_dumpe2fs(image)


def test_checksums_against_the_published_check_values() -> None:
    text = b"123456789"
    assert crc32c(CRC_START, text) ^ 0xFFFFFFFF == 0xE3069283
    assert crc32_be(CRC_START, text) == 0x0376E6E7  # CRC-32/MPEG-2
    assert crc16(0xFFFF, text) == 0x4B37  # CRC-16/MODBUS
    assert crc32_be(crc32_be(CRC_START, text[:4]), text[4:]) == 0x0376E6E7
