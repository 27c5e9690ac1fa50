"""Damaged and hostile ext2/3/4 volumes: stored whole, or read right; never anything else."""

from __future__ import annotations

import random
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from tests.ext_images import (
    MIB,
    allocated,
    commits,
    copy,
    crash,
    debugfs,
    fill,
    make,
    mounted,
    run,
    sync,
    write_files,
)
from tests.fuzz.forged import forged
from tests.volumes import BytesVolume

BLOCK = 1024
SIZE = 24 * MIB


class Image:
    """An image in memory that can be damaged and made whole again, and its places by dumpe2fs."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        self._whole = bytes(self.data)
        text = run("dumpe2fs", path)
        self.desc_size = 64 if " 64bit " in text else 32
        self.descriptors = 2 * BLOCK
        self.block_bitmaps = _places(text, "Block bitmap at")
        self.inode_bitmaps = _places(text, "Inode bitmap at")
        self.inode_tables = _places(text, "Inode table at")
        inode_size = int(_places(text, "Inode size:")[0])
        self.journal_inode = self.inode_tables[0] * BLOCK + 7 * inode_size
        blocks = run("debugfs", "-R", "blocks <8>", path).split()
        self.journal = [int(block) for block in blocks]
        stat = run("debugfs", "-R", "stat <8>", path)
        self.journal_map = [int(at) for at in re.findall(r"\(D?IND\):(\d+)", stat)]

    def put(self, offset: int, form: str, *values: int | bytes) -> Image:
        """Overwrite a structure's fields."""
        struct.pack_into(form, self.data, offset, *values)
        return self

    def superblock(self, offset: int, form: str, *values: int | bytes) -> Image:
        return self.put(1024 + offset, form, *values)

    def descriptor(self, group: int, offset: int, form: str, *values: int | bytes) -> Image:
        return self.put(self.descriptors + group * self.desc_size + offset, form, *values)

    def flip(self, offset: int, value: int = 0xFF) -> Image:
        self.data[offset] ^= value
        return self

    def heal(self) -> None:
        self.data[:] = self._whole

    def read(self) -> Allocation:
        return read_allocation("ext4", BytesVolume(self.data))

    def refused(self, match: str | None = None) -> None:
        """The reader refuses, for this reason."""
        with pytest.raises(NotUnderstoodError, match=match):
            self.read()

    def metadata(self) -> list[int]:
        """The blocks that the reader looks at."""
        blocks = [1, 2, *self.block_bitmaps, *self.journal_map, *self.journal]
        return [*blocks, self.journal_inode // BLOCK]


def _places(text: str, label: str) -> list[int]:
    return [int(number) for number in re.findall(rf"{label}\s+(\d+)", text)]


def _crashed(folder: Path, *options: str) -> Path:
    image = make(folder / "image", SIZE, "-b", "1024", "-J", "size=1", *options)
    fill(image, 10)

    def change(point: Path) -> None:
        for number in range(3):
            for file in write_files(point, 3, 40 + number):
                sync(file)

    return crash(image, "", change, lambda copied: len(commits(copied)) >= 3)


@pytest.fixture(scope="module")
def checksummed(tmp_path_factory: pytest.TempPathFactory) -> Image:
    image = make(
        tmp_path_factory.mktemp("ext") / "image", SIZE, "-t", "ext4", "-b", "1024", "-J", "size=1"
    )
    fill(image, 10)
    return Image(image)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Without checksums, so that damage reaches the checks behind them."""
    folder = tmp_path_factory.mktemp("ext")
    options = ("-t", "ext4", "-b", "1024", "-J", "size=1", "-O", "^metadata_csum")
    image = make(folder / "image", SIZE, *options)
    fill(image, 10)
    return Image(image)


@pytest.fixture(scope="module")
def ext3(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """No checksums, no extents, no flex_bg, a dirty journal."""
    return Image(_crashed(tmp_path_factory.mktemp("ext"), "-t", "ext3"))


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Checksums everywhere and a dirty journal."""
    return Image(_crashed(tmp_path_factory.mktemp("ext"), "-t", "ext4"))


@pytest.fixture(scope="module")
def dirty_plain(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Extents and a dirty journal without checksums."""
    folder = tmp_path_factory.mktemp("ext")
    return Image(_crashed(folder, "-t", "ext4", "-O", "^metadata_csum"))


@pytest.fixture(autouse=True)
def heal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Images are shared by the tests of this module; each leaves them whole."""
    yield
    for name in ("checksummed", "plain", "ext3", "dirty", "dirty_plain"):
        if name in request.fixturenames:
            request.getfixturevalue(name).heal()


def test_every_byte_of_the_superblock_is_checked(checksummed: Image) -> None:
    for offset in range(1024, 2048):
        checksummed.flip(offset).refused()
        checksummed.flip(offset)
    assert checksummed.read().allocated


def test_every_byte_of_the_descriptors_is_checked(checksummed: Image) -> None:
    groups = len(checksummed.block_bitmaps)
    for offset in range(groups * checksummed.desc_size):
        at = checksummed.descriptors + offset
        checksummed.flip(at, 1).refused("wrong checksum of group descriptor")
        checksummed.flip(at, 1)
    assert checksummed.read().allocated


def test_every_bitmap_on_disk_is_checked(checksummed: Image) -> None:
    detected = 0
    for group, block in enumerate(checksummed.block_bitmaps):
        flags = checksummed.data[checksummed.descriptors + group * checksummed.desc_size + 0x12]
        checksummed.flip(block * BLOCK + 100, 4)
        if flags & 2:
            assert checksummed.read().allocated
        else:
            checksummed.refused(f"wrong checksum of the block bitmap of group {group}")
            detected += 1
        checksummed.flip(block * BLOCK + 100, 4)
    assert detected


def test_the_journal_inode_and_superblock_are_checked(checksummed: Image) -> None:
    for offset in range(128):
        checksummed.flip(checksummed.journal_inode + offset).refused()
        checksummed.flip(checksummed.journal_inode + offset)
    for offset in range(256):
        checksummed.flip(checksummed.journal[0] * BLOCK + offset).refused("journal")
        checksummed.flip(checksummed.journal[0] * BLOCK + offset)
    assert checksummed.read().allocated


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (0x38, "<H", 0xEF52, "no ext superblock"),
        (0x4C, "<I", 2, "revision 2 is not known"),
        (0x4C, "<I", 0, "revision 0"),
        (0x3A, "<H", 3, "marked as having errors"),
        (0x3A, "<H", 0, "not cleanly unmounted"),
        (0x3A, "<H", 0x21, "state 0x21 is not known"),
        (0x5C, "<I", 0x1_0000, "compatible ext features 0x10000 are not known"),
        (0x60, "<I", 0x1, "incompatible ext features 0x1 are not known"),
        (0x60, "<I", 0x4000_0002, "incompatible ext features 0x40000000 are not known"),
        (0x64, "<I", 0x80, "read-only compatible ext features 0x80 are not known"),
        (0x60, "<I", 0x8, "external ext journal"),
        (0xE4, "<I", 0x801, "not clear where the journal is"),
        (0xE0, "<I", 0, "not clear where the journal is"),
        (0xE0, "<I", 0xFFFF_FFFF, "journal inode is out of range"),
        (0xE0, "<I", 2, "inode 2 is not a file"),
        (0x18, "<I", 7, "block size"),
        (0x18, "<I", 0xFFFF_FFFF, "block size"),
        (0x1C, "<I", 1, "cluster size"),
        (0x1C, "<I", 0xFFFF_FFFF, "cluster size"),
        (0x14, "<I", 0, "first data block"),
        (0x20, "<I", 0, "blocks per group"),
        (0x20, "<I", 8, "blocks per group"),
        (0x20, "<I", 8188, "blocks per group"),
        (0x20, "<I", 8200, "blocks per group"),
        (0x28, "<I", 0, "inodes per group"),
        (0x28, "<I", 0xFFFF_FFFF, "inodes per group"),
        (0x00, "<I", 17, "inode count"),
        (0x04, "<I", 0, "no blocks"),
        (0x04, "<I", 1, "no blocks"),
        (0x04, "<I", 0xFFFF_FFFF, "larger than its volume"),
        (0x150, "<I", 1, "larger than its volume"),
        (0x58, "<H", 0, "inode size"),
        (0x58, "<H", 192, "inode size"),
        (0x58, "<H", 2048, "inode size"),
        (0xFE, "<H", 0, "group descriptors of 0 bytes"),
        (0xFE, "<H", 96, "group descriptors of 96 bytes"),
        (0xCE, "<H", 0xFFFF, "group descriptors outgrow their group"),
    ],
)
def test_superblock_fields(plain: Image, offset: int, form: str, value: int, reason: str) -> None:
    plain.superblock(offset, form, value).refused(reason)


@pytest.mark.parametrize(
    ("group", "offset", "form", "value", "reason"),
    [
        (0, 0x00, "<I", 0, "structures of group 0 are out of range"),
        (1, 0x04, "<I", SIZE // BLOCK, "structures of group 1 are out of range"),
        (1, 0x08, "<I", SIZE // BLOCK - 1, "structures of group 1 are out of range"),
        (2, 0x24, "<I", 1, "structures of group 2 are out of range"),
        (2, 0x28, "<I", 0xFFFF_FFFF, "structures of group 2 are out of range"),
        (1, 0x00, "<I", 1, "overlap"),
        (1, 0x12, "<H", 2, "uninitialised without a checksum"),
        (1, 0x12, "<H", 0x80, "flags 0x80 of group 1"),
    ],
)
def test_descriptor_fields(
    plain: Image, group: int, offset: int, form: str, value: int, reason: str
) -> None:
    plain.descriptor(group, offset, form, value).refused(reason)


def test_used_group_that_is_marked_as_uninitialised(tmp_path: Path) -> None:
    """One flag would free all of it; the number of free blocks beside it tells."""
    options = ("-t", "ext4", "-b", "1024", "-g", "2048", "-O", "^metadata_csum,uninit_bg")
    path = make(tmp_path / "image", SIZE, *options)
    fill(path, 20)
    image = Image(path)
    sound = image.read().allocated
    refused = 0
    for group in range(SIZE // BLOCK // 2048):
        at = image.descriptors + group * image.desc_size + 0x12
        image.data[at] |= 2
        with forged(("imager.filesystems.ext.groups.crc16",)):
            try:
                assert image.read().allocated == sound
            except NotUnderstoodError as refusal:
                assert f"group {group} is marked as uninitialised but is in use" in str(refusal)
                refused += 1
        image.heal()
    assert refused > 3


def test_structures_that_share_a_block(plain: Image) -> None:
    plain.descriptor(1, 0x00, "<I", plain.block_bitmaps[0]).refused("overlap")


def test_bitmaps_that_call_metadata_free(plain: Image) -> None:
    for block in (plain.inode_bitmaps[1], plain.inode_tables[2] + 3, 2):
        plain.flip(plain.block_bitmaps[0] * BLOCK + (block - 1) // 8, 1 << (block - 1) % 8)
        plain.refused("bitmaps call metadata free")
        plain.heal()
    block = plain.journal[-1]
    group, bit = divmod(block - 1, 8192)
    plain.flip(plain.block_bitmaps[group] * BLOCK + bit // 8, 1 << bit % 8)
    plain.refused("bitmaps call the journal free")


def test_an_mmp_block_that_is_free(tmp_path: Path) -> None:
    options = ("-t", "ext4", "-b", "1024", "-O", "mmp,^metadata_csum")
    image = Image(make(tmp_path / "image", SIZE, *options))
    assert image.read().allocated
    (block,) = struct.unpack_from("<Q", image.data, 1024 + 0x168)
    image.superblock(0x168, "<Q", SIZE).refused("mmp block is out of range")
    image.superblock(0x168, "<Q", SIZE // BLOCK - 1).refused("bitmaps call the mmp block free")
    image.superblock(0x168, "<Q", block)
    assert image.read().allocated


def test_padding_of_the_last_bitmap(tmp_path: Path) -> None:
    path = make(tmp_path / "image", 20 * MIB, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum")
    image = Image(path)
    assert image.read().size == 20 * MIB
    last = len(image.block_bitmaps) - 1
    assert (20 * MIB // BLOCK - 1) % 8192 == 4095
    image.flip(image.block_bitmaps[last] * BLOCK + 512, 1)
    image.refused(f"block bitmap of group {last} is not padded with ones")


def test_ext2_that_was_not_unmounted(tmp_path: Path) -> None:
    image = make(tmp_path / "image", SIZE, "-t", "ext2", "-b", "1024")
    with mounted(image) as point:
        write_files(point, 3, 50)
        run("sync", "-f", point)
        crashed = copy(image, "crashed")
    with pytest.raises(NotUnderstoodError, match="not cleanly unmounted"):
        allocated(crashed, "ext2")
    debugfs(image, "feature needs_recovery")
    with pytest.raises(NotUnderstoodError, match="no journal"):
        allocated(image, "ext2")


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (0x00, "<H", 0x41ED, "is not a file"),
        (0x1A, "<H", 0, "is not a file"),
        (0x04, "<I", 0, "size of inode 8 is out of range"),
        (0x6C, "<I", 0xFFFF_FFFF, "size of inode 8 is out of range"),
        (0x04, "<I", 2 * MIB, "holes"),
        (0x20, "<I", 0x1000_0000, "inline"),
        (0x28, "<H", 0, "extent tree"),
        (0x2A, "<H", 0xFFFF, "extent tree"),
        (0x2A, "<H", 0, "holes"),
        (0x2C, "<H", 0xFFFF, "extent tree"),
        (0x2E, "<H", 6, "extent tree"),
        (0x34, "<I", 1, "journal has holes"),
        (0x38, "<H", 0, "never written"),
        (0x38, "<H", 0x8001, "never written"),
        (0x3A, "<H", 1, "journal is out of range"),
        (0x3C, "<I", 0, "journal is out of range"),
    ],
)
def test_journal_inode_fields(
    plain: Image, offset: int, form: str, value: int, reason: str
) -> None:
    plain.put(plain.journal_inode + offset, form, value).refused(reason)


def test_extent_trees_that_lead_nowhere(plain: Image) -> None:
    """A tree of five levels, each node a copy of the last: its levels must come down to 0."""
    node = plain.journal[5]
    header = struct.Struct("<HHHHI").pack(0xF30A, 1, 4, 5, 0)
    entry = struct.Struct("<IIHH").pack(0, node, 0, 0)
    plain.data[plain.journal_inode + 0x28 : plain.journal_inode + 0x40] = header + entry
    plain.data[node * BLOCK : node * BLOCK + 24] = header + entry
    plain.refused("damaged extent tree")
    plain.put(node * BLOCK + 6, "<H", 4)
    plain.refused("damaged extent tree")


def test_indirect_blocks_that_point_to_themselves(ext3: Image) -> None:
    node = ext3.journal_map[0]
    for index in range(256):
        ext3.put(node * BLOCK + 4 * index, "<I", node)
    ext3.put(ext3.journal_inode + 0x28 + 4 * 12, "<III", node, node, node)
    ext3.put(ext3.journal_inode + 0x04, "<I", SIZE)
    start = time.monotonic()
    ext3.refused("blocks of inode 8 are in use twice")
    assert time.monotonic() - start < 5
    ext3.put(ext3.journal_inode + 0x28 + 4 * 12, "<I", 0xFFFF_FFFF).refused("out of range")


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0x00, 0, "no journal superblock"),
        (0x04, 3, "no journal superblock"),
        (0x0C, 2048, "journal superblock is out of range"),
        (0x10, 1025, "journal superblock is out of range"),
        (0x10, 0, "journal superblock is out of range"),
        (0x14, 0, "journal superblock is out of range"),
        (0x14, 5000, "journal superblock is out of range"),
        (0x1C, 5000, "journal superblock is out of range"),
        (0x1C, 0xFFFF_FFFF, "journal superblock is out of range"),
        (0x20, 5, "journal is marked as having errors"),
        (0x24, 2, "journal features 0x2 are not known"),
        (0x28, 0x40, "journal features 0x40 are not known"),
        (0x28, 0x8, "checksum of the journal superblock"),
        (0x2C, 1, "journal features 0x1 are not known"),
        (0x40, 2, "journal superblock is out of range"),
    ],
)
def test_journal_superblock_fields(plain: Image, offset: int, value: int, reason: str) -> None:
    plain.put(plain.journal[0] * BLOCK + offset, ">I", value).refused(reason)


def test_every_block_of_the_log_is_checked(dirty: Image) -> None:
    """Only the last commit's own header can be lost without a trace: then it never happened."""
    log = run_of_log(dirty)
    assert len(log) > 20
    for block in log[:-1]:
        for offset in (0, 5, 11, 12, 500, 1023):
            dirty.flip(block * BLOCK + offset).refused("journal is damaged")
            dirty.flip(block * BLOCK + offset)
    dirty.flip(log[-1] * BLOCK + 16).refused("journal is damaged")


def run_of_log(image: Image) -> list[int]:
    """The blocks from the log's start to its last commit block."""
    (start,) = struct.unpack_from(">I", image.data, image.journal[0] * BLOCK + 0x1C)
    last = 0
    for index, block in enumerate(image.journal):
        header = image.data[block * BLOCK : block * BLOCK + 8]
        if header == struct.pack(">4sI", bytes.fromhex("c03b3998"), 2):
            last = max(last, index)
    assert start <= last
    return image.journal[start : last + 1]


def test_replayed_metadata_has_to_be_right_too(dirty_plain: Image) -> None:
    """Without checksums in the log, a replayed superblock is still judged like any other."""
    journal = dirty_plain.journal
    superblocks = [
        block * BLOCK
        for block in journal
        if dirty_plain.data[block * BLOCK + 0x38 : block * BLOCK + 0x3A] == b"\x53\xef"
    ]
    assert superblocks
    for at in superblocks:
        dirty_plain.put(at + 0x3A, "<H", 3)
    dirty_plain.refused("marked as having errors")
    for at in superblocks:
        dirty_plain.put(at + 0x3A, "<H", 1).put(at + 0xCE, "<H", 1)
    dirty_plain.refused("journal changes the file system's layout")


@pytest.mark.parametrize("name", ["checksummed", "plain", "ext3", "dirty", "dirty_plain"])
def test_random_damage(name: str, request: pytest.FixtureRequest) -> None:
    """Flipped bytes and blocks of garbage in metadata: refused, or nothing in use is lost."""
    image: Image = request.getfixturevalue(name)
    truth = image.read().allocated
    noise = random.Random(name)
    blocks = image.metadata()
    understood = refused = 0
    longest = 0.0
    begin = time.monotonic()
    # On a machine that is busy it takes longer until there are some of both.
    while time.monotonic() < begin + (2 if min(understood, refused) > 10 else 60):
        for _ in range(noise.choice((1, 1, 3))):
            # The journal has most blocks; the few others matter more.
            at = noise.choice(blocks if noise.random() < 0.4 else blocks[: -len(image.journal)])
            if noise.random() < 0.9:
                image.flip(at * BLOCK + noise.randrange(BLOCK), 1 << noise.randrange(8))
            else:
                image.data[at * BLOCK : (at + 1) * BLOCK] = noise.randbytes(BLOCK)
        start = time.monotonic()
        try:
            found = image.read().allocated
        except (NotUnderstoodError, ReadFailedError):
            refused += 1
        else:
            understood += 1
            if name in ("checksummed", "dirty"):
                assert _missing(name, image, truth, found) == Extents()
        longest = max(longest, time.monotonic() - start)
        image.heal()
    assert understood > 10
    assert refused > 10
    assert longest < 2


def _missing(name: str, image: Image, truth: Extents, found: Extents) -> Extents:
    """What is lost; a log whose last commit was hit may end before it, as it does for Linux."""
    if name == "dirty":
        truth = truth & Extents.of((at * BLOCK, (at + 1) * BLOCK) for at in image.metadata())
    return truth - found


@pytest.mark.parametrize("size", [0, 1024, 2047, 2048, 3000, 100_000, SIZE - 1])
def test_volume_cut_short(plain: Image, size: int) -> None:
    with pytest.raises((NotUnderstoodError, ReadFailedError)):
        read_allocation("ext4", BytesVolume(plain.data[:size]))


class Endless:
    """A volume of 2^62 bytes: one superblock, and zeros."""

    size = 1 << 62
    sector_size = 512

    def __init__(self, superblock: bytes) -> None:
        self._superblock = superblock

    def read(self, offset: int, size: int) -> bytes:
        assert size <= 2 * MIB
        return self._superblock if offset == 1024 else bytes(size)


def test_an_absurdly_large_file_system_costs_nothing(plain: Image) -> None:
    plain.superblock(0x04, "<I", 0xFFFF_FFFF).superblock(0x150, "<I", 0xFFFFF)
    with pytest.raises(NotUnderstoodError, match="too many block groups"):
        read_allocation("ext4", Endless(bytes(plain.data[1024:2048])))
    plain.superblock(0x04, "<I", 0).superblock(0x150, "<I", 2)  # 2^33 blocks, 2^20 groups
    plain.superblock(0x28, "<I", 16).superblock(0x00, "<I", 16 << 20)
    with pytest.raises(NotUnderstoodError, match="structures of group 0 are out of range"):
        read_allocation("ext4", Endless(bytes(plain.data[1024:2048])))
