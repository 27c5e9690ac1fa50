"""Damaged and hostile XFS volumes: stored whole, or read right; never anything else."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.filesystems import Allocation, read_allocation
from imager.filesystems.xfs.checksum import seal
from imager.filesystems.xfs.layout import Layout
from imager.filesystems.xfs.superblock import read_layout
from tests.volumes import BytesVolume
from tests.xfs_images import crash, fragment, make_small, make_v4, mounted, sync, write_files
from tests.xfs_log import HandMade, LogShape

SECTOR = 512
AGF, AGFL = 1, 3


class Image:
    """An image in memory that can be damaged and made whole again."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        self._whole = bytes(self.data)
        self.layout: Layout = read_layout(bytes(self.data[:32768]), len(self.data))
        self.whole = self.read()

    def heal(self) -> None:
        self.data[:] = self._whole

    def read(self) -> Allocation:
        return read_allocation("xfs", BytesVolume(self.data))

    def refused(self, match: str | None = None) -> None:
        """The reader refuses, for this reason."""
        with pytest.raises(NotUnderstoodError, match=match):
            self.read()

    def refused_or_no_smaller(self) -> bool:
        """Whether the reader refuses; AssertionError where it says of less that it is in use."""
        try:
            found = self.read()
        except (NotUnderstoodError, ReadFailedError):
            return True
        assert not self.whole.allocated - found.allocated
        return False

    def flip(self, offset: int, value: int = 0xFF) -> None:
        self.data[offset] ^= value

    def superblock(self, offset: int, form: str, *values: int | bytes) -> Image:
        return self._change(0, SECTOR, 224, offset, form, *values)

    def agf(self, offset: int, form: str, *values: int, group: int = 0) -> Image:
        at = self.layout.group_start(group) + self.layout.sector_size
        return self._change(at, self.layout.sector_size, 216, offset, form, *values)

    def agfl(self, offset: int, form: str, *values: int, group: int = 0) -> Image:
        at = self.layout.group_start(group) + 3 * self.layout.sector_size
        return self._change(at, self.layout.sector_size, 32, offset, form, *values)

    def block(self, number: int, offset: int, form: str, *values: int) -> Image:
        """A block of a tree in group 0."""
        size = self.layout.block_size
        return self._change(number * size, size, 52, offset, form, *values)

    def root(self, by_size: bool = False) -> int:
        """The root of a tree of group 0."""
        (number,) = struct.unpack_from(
            ">I", self.data, self.layout.sector_size + (20 if by_size else 16)
        )
        assert isinstance(number, int)
        return number

    def trees(self) -> list[int]:
        """The blocks of both trees of group 0: roots, and the leaves below."""
        found = []
        header = 56 if self.layout.checksums else 16
        room = (self.layout.block_size - header) // 12
        for root in (self.root(), self.root(True)):
            at = root * self.layout.block_size
            level, count = struct.unpack_from(">HH", self.data, at + 4)
            found.append(root)
            if level:
                assert level == 1
                found += struct.unpack_from(f">{count}I", self.data, at + header + room * 8)
        return found

    def _change(
        self, at: int, size: int, crc_at: int, offset: int, form: str, *values: int | bytes
    ) -> Image:
        """Overwrite fields; the checksum is made right again, so that what is behind it is tested."""
        struct.pack_into(form, self.data, at + offset, *values)
        if self.layout.checksums:
            piece = bytearray(self.data[at : at + size])
            seal(piece, crc_at)
            self.data[at : at + size] = piece
        return self


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Version 5, with trees of two levels."""
    image = make_small(tmp_path_factory.mktemp("xfs") / "image", "-b", "size=1024")
    with mounted(image) as place:
        fragment(place / "holes", 3 << 20, 8192)
        write_files(place, 10, 1)
    return Image(image)


@pytest.fixture(scope="module")
def v4(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Version 4, without checksums, so that damage reaches the checks behind them; two levels."""
    return Image(make_v4(tmp_path_factory.mktemp("xfs"), "-b", "size=1024"))


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Version 5 after a crash."""
    image = make_small(tmp_path_factory.mktemp("xfs") / "image")
    with mounted(image) as place:
        for number in range(6):
            for file in write_files(place, 12, number, 60_000)[::2]:
                file.unlink()
            sync(place)
        crash(place)
    return Image(image)


@pytest.fixture(scope="module")
def dirty_v4(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Version 4 with a log of an old kernel: no checksums at all."""
    made = HandMade(tmp_path_factory.mktemp("xfs"), "-m", "crc=0")
    made.log(3000)
    made.log(2000, 2001, 4000)
    made.write(LogShape(checksum=False))
    return Image(made.image)


@pytest.fixture(autouse=True)
def heal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Images are shared by the tests of this module; each leaves them whole."""
    yield
    for name in ("clean", "v4", "dirty", "dirty_v4"):
        if name in request.fixturenames:
            request.getfixturevalue(name).heal()


def test_every_byte_of_the_headers_is_checked(clean: Image) -> None:
    for group in (0, 1):
        for sector in (0, AGF, AGFL) if group == 0 else (AGF, AGFL):
            start = clean.layout.group_start(group) + sector * SECTOR
            for offset in range(start + sector, start + SECTOR, 5):
                clean.flip(offset, 1)
                clean.refused()
                clean.flip(offset, 1)
    assert clean.read() == clean.whole


def test_every_block_of_the_trees_is_checked(clean: Image) -> None:
    blocks = clean.trees()
    assert len(blocks) > 5
    for number in blocks:
        for offset in range(number % 101, clean.layout.block_size, 101):
            clean.flip(number * clean.layout.block_size + offset, 4)
            clean.refused("has a block with a wrong checksum")
            clean.flip(number * clean.layout.block_size + offset, 4)


def test_flips_without_checksums_never_lose_anything(v4: Image) -> None:
    noise = random.Random(1)
    size = v4.layout.block_size
    places = [
        *range(SECTOR, SECTOR + 64),
        *range(3 * SECTOR, 3 * SECTOR + 40, 3),
        *range(0, 128, 2),
    ]
    for number in v4.trees():
        places += [number * size + noise.randrange(size) for _ in range(20)]
        places += range(number * size, number * size + 16)
    refused = 0
    for place in places:
        bit = 1 << noise.randrange(8)
        v4.flip(place, bit)
        refused += v4.refused_or_no_smaller()
        v4.flip(place, bit)
    assert refused > 100


@pytest.mark.parametrize("name", ["dirty", "dirty_v4"])
def test_flips_in_the_log_never_lose_anything(name: str, request: pytest.FixtureRequest) -> None:
    image: Image = request.getfixturevalue(name)
    noise = random.Random(2)
    start, end = image.layout.log_range()
    written = [at for at in range(start, end, SECTOR) if any(image.data[at + 4 : at + SECTOR])]
    heads = [at for at in written if image.data[at : at + 4] == b"\xfe\xed\xba\xbe"]
    places = [at + offset for at in heads[-3:] for offset in (*range(44), *range(300, 324, 4))]
    places += [at + offset for at in written[-20:] for offset in range(0, 12, 2)]
    places += [noise.choice(written) + noise.randrange(SECTOR) for _ in range(80)]
    refused = 0
    for place in places:
        bit = 1 << noise.randrange(8)
        image.flip(place, bit)
        if image.layout.checksums:
            refused += image.refused_or_no_smaller()
        else:  # what is logged is not protected; but nothing else may happen
            refused += _is_refused(image)
        image.flip(place, bit)
    assert refused > 50
    assert image.read() == image.whole


def _is_refused(image: Image) -> bool:
    try:
        image.read()
    except (NotUnderstoodError, ReadFailedError):
        return True
    return False


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (0, ">I", 0x58465343, "no XFS superblock"),
        (100, ">H", 0xB4A3, "XFS version 3 is not known"),
        (100, ">H", 0xB6A4, "XFS version bits 0x200 are not known"),
        (100, ">H", 0x94A4, "XFS directories of version 1"),
        (200, ">I", 0x1A, "additional XFS features 0x10 are not known"),
        (4, ">I", 0, "block size is out of range"),
        (4, ">I", 1536, "block size is out of range"),
        (120, ">B", 200, "block size is out of range"),
        (102, ">H", 0, "sector size is out of range"),
        (121, ">B", 33, "sector size is out of range"),
        (126, ">B", 1, "was not finished"),
        (16, ">Q", 1, "realtime section"),
        (24, ">Q", 1, "realtime section"),
        (48, ">Q", 0, "log on another device"),
        (48, ">Q", 0xFFFF_FFFF_FFFF_FFFF, "log is out of range"),
        (48, ">Q", 1, "log is out of range"),
        (96, ">I", 0, "size of the log is out of range"),
        (96, ">I", 0xFFFF_FFFF, "size of the log is out of range"),
        (96, ">I", 100_000, "log is out of range"),
        (8, ">Q", 0, "no blocks"),
        (8, ">Q", 0xFFFF_FFFF_FFFF_FFFF, "larger than its volume"),
        (84, ">I", 0, "no blocks"),
        (84, ">I", 64, "size of allocation groups is out of range"),
        (84, ">I", 0xFFFF_FFFF, "size of allocation groups is out of range"),
        (88, ">I", 0, "no blocks"),
        (88, ">I", 0xFFFF_FFFF, "allocation groups and size disagree"),
        (124, ">B", 60, "allocation groups and size disagree"),
    ],
)
def test_superblock_fields(v4: Image, offset: int, form: str, value: int, reason: str) -> None:
    v4.superblock(offset, form, value).refused(reason)


@pytest.mark.parametrize(
    ("offset", "bits", "reason"),
    [
        (208, 0x1, "compatible XFS features 0x1 are not known"),
        (212, 0x8000_0001, "read-only compatible XFS features 0x80000000 are not known"),
        (216, 0x303, "incompatible XFS features 0x300 are not known"),
        (216, 0x13, "marked as needing repair"),
        (220, 0x2, "log-incompatible XFS features 0x2 are not known"),
    ],
)
def test_features(clean: Image, offset: int, bits: int, reason: str) -> None:
    clean.superblock(offset, ">I", bits).refused(reason)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, 0x58414747, "header of group 0 makes no sense"),
        (4, 2, "header of group 0 makes no sense"),
        (8, 1, "header of group 0 makes no sense"),
        (12, 100, "header of group 0 makes no sense"),
        (16, 0, "header of group 0 makes no sense"),
        (16, 0xFFFF_FFFF, "header of group 0 makes no sense"),
        (20, 100, "free-space tree of group 0 has a block"),
        (28, 0, "header of group 0 makes no sense"),
        (28, 255, "header of group 0 makes no sense"),
        (28, 3, "free-space tree of group 0 has a block"),
        (40, 0xFFFF_FFFF, "free list of group 0 makes no sense"),
        (48, 0x1000_0000, "free list of group 0 makes no sense"),
        (48, 5, "free list of group 0"),
        (52, 1, "free-space trees of group 0 are not up to date"),
        (64, 1, "header of group 0 makes no sense"),
    ],
)
def test_header_fields(clean: Image, offset: int, value: int, reason: str) -> None:
    clean.agf(offset, ">I", value).refused(reason)


def test_free_list_fields(clean: Image) -> None:
    (first,) = struct.unpack_from(">I", clean.data, SECTOR + 40)
    entry = 36 + 4 * first
    for value, reason in (
        (0, "is out of range"),
        (0xFFFF_FFFF, "is out of range"),
        (clean.root(), "overlap"),
        (clean.layout.group_blocks - 5, "call metadata free"),
    ):
        clean.agfl(entry, ">I", value).refused(reason)
        clean.heal()
    clean.agfl(4, ">I", 1).refused("free list of group 0 makes no sense")


def test_tree_fields(clean: Image) -> None:
    root, leaf = clean.trees()[:2]
    pointers = 56 + (clean.layout.block_size - 56) // 12 * 8
    for number, offset, form, value, reason in (
        (root, 0, ">I", 0x41423343, "makes no sense"),
        (root, 4, ">H", 0, "makes no sense"),
        (root, 4, ">H", 255, "makes no sense"),
        (root, 6, ">H", 0, "makes no sense"),
        (root, 6, ">H", 0xFFFF, "makes no sense"),
        (root, 8, ">I", leaf, "wrong links"),
        (leaf, 12, ">I", 0xFFFF_FFFF, "wrong links"),
        (leaf, 16, ">Q", 8, "belongs elsewhere"),
        (leaf, 48, ">I", 1, "belongs elsewhere"),
        (leaf, 32, ">I", 1, "belongs elsewhere"),
        (leaf, 6, ">H", 1, "disagree"),
        (leaf, 56, ">I", 9, "disagree"),
        (root, pointers, ">I", 0, "points out of its group"),
        (root, pointers, ">I", 0xFFFF_FFFF, "points out of its group"),
        (root, pointers, ">I", root, "makes no sense"),
        (root, pointers + 4, ">I", leaf, "names a block twice"),
    ):
        clean.block(number, offset, form, value).refused(reason)
        clean.heal()


def test_records_of_both_trees(v4: Image) -> None:
    """Both have the same wrong extent: one that overlaps, is empty, or reaches too far."""
    trees = v4.trees()
    places = [
        next(
            number * v4.layout.block_size + 16 + 8 * index
            for number in trees
            if v4.data[number * v4.layout.block_size :][:4] == magic
            and v4.data[number * v4.layout.block_size + 5] == 0
            for index in range(100)
            if v4.data[number * v4.layout.block_size + 16 + 8 * index :][:8] == record
        )
        for magic, record in ((b"ABTB", self_record(v4)), (b"ABTC", self_record(v4)))
    ]
    block, size = struct.unpack(">II", self_record(v4))
    for wrong in ((block, 0), (block, 0xFFFF_FFFF), (block, size + 100), (0, size)):
        for place in places:
            struct.pack_into(">II", v4.data, place, *wrong)
        v4.refused("free-space trees of group 0")
        v4.heal()


def self_record(image: Image) -> bytes:
    """The second free extent of group 0, as both trees have it."""
    leaf = image.trees()[1]
    at = leaf * image.layout.block_size + 24
    return bytes(image.data[at : at + 8])


def test_a_free_log_or_tree_is_refused(clean: Image) -> None:
    """The only extent of group 1 is made to reach over what is in use, in both trees."""
    group = clean.layout.group_start(1)
    size = clean.layout.block_size
    bno, cnt = struct.unpack_from(">II", clean.data, group + SECTOR + 16)
    for root in (bno, cnt):
        at = group + root * size
        assert struct.unpack_from(">HH", clean.data, at + 4) == (0, 1)
        struct.pack_into(">II", clean.data, at + 56, bno, clean.layout.group_length(1) - bno)
        piece = bytearray(clean.data[at : at + size])
        seal(piece, 52)
        clean.data[at : at + size] = piece
    clean.agf(52, ">I", clean.layout.group_length(1) - bno, group=1)
    clean.refused("free-space trees call metadata free")


def test_cut_off(clean: Image, dirty: Image) -> None:
    for image in (clean, dirty):
        for size in (0, 100, 511, 4096, 65536, 1 << 20, len(image.data) - 1):
            with pytest.raises(NotUnderstoodError):
                read_allocation("xfs", BytesVolume(image.data[:size]))


def test_log_of_nothing(clean: Image) -> None:
    start, end = clean.layout.log_range()
    clean.data[start:end] = bytes(end - start)
    clean.refused("its log is damaged, or was never written")


def test_log_of_another_file_system(clean: Image, dirty: Image) -> None:
    for image in (clean, dirty):
        start, end = image.layout.log_range()
        log = bytes(image.data[start:end])
        image.data[start:end] = log.replace(image.layout.uuid, bytes(16))
        image.refused("its log belongs to another file system")


def test_noise_in_the_log_takes_no_time(dirty: Image) -> None:
    noise = random.Random(3)
    start, end = dirty.layout.log_range()
    heads = [
        at for at in range(start, end, SECTOR) if dirty.data[at : at + 4] == b"\xfe\xed\xba\xbe"
    ]
    begun = time.monotonic()
    for _ in range(40):
        for at in heads[-3:]:
            field = noise.choice((8, 12, 16, 20, 24, 28, 40, 320))
            struct.pack_into(">I", dirty.data, at + field, noise.randrange(1 << 32))
        _is_refused(dirty)
        dirty.heal()
    assert time.monotonic() - begun < 30


def test_memory_is_bounded_by_what_is_there(clean: Image) -> None:
    """Counts of 2^16 records and of the largest sizes take no memory."""
    root = clean.root()
    clean.block(root, 6, ">H", 0xFFFF)
    clean.agf(52, ">I", 0xFFFF_FFFF)
    tracemalloc.start()
    try:
        clean.refused()
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_damage_below_what_is_logged(dirty: Image) -> None:
    """The log changes a part of a block only: what it changes has to be intact."""
    for root in struct.unpack_from(">II", dirty.data, SECTOR + 16):
        place = root * dirty.layout.block_size
        dirty.flip(place + dirty.layout.block_size - 1)
        dirty.refused("its log changes a damaged block")
        dirty.heal()
