"""HFS+ volumes filled by xorriso: the map against partclone, the files against 7-Zip."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from imager.layout.blkid import identify
from tests.disks import run, scrubbed
from tests.hfsplus_images import (
    ALLOCATION,
    BLOCK_SIZE,
    CATALOG,
    EXTENTS,
    FORKS,
    FREE_BLOCKS,
    TOTAL_BLOCKS,
    HfsPlus,
    add_journal,
    populated,
)
from tests.oracles import allocated_by_partclone
from tests.volumes import BytesVolume


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hfsplus") / "tree"
    chance = random.Random(1)
    for number in range(30):
        place = folder / f"folder{number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        size = chance.choice((0, 1, 2048, 2049, 60_000))
        (place / f"file{number}").write_bytes(chance.randbytes(size))
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> bytes:
    return bytes(populated(tmp_path_factory.mktemp("volume"), tree).data)


@pytest.fixture
def volume(sound: bytes) -> HfsPlus:
    """One that the test may change."""
    return HfsPlus(sound)


def read(volume: HfsPlus) -> Allocation:
    return read_allocation("hfsplus", BytesVolume(volume.data))


def write(volume: HfsPlus, folder: Path) -> Path:
    path = folder / "volume"
    path.write_bytes(volume.data)
    return path


def test_map_is_partclones(tmp_path: Path, tree: Path) -> None:
    """Fragmented, on a volume whose bitmap ends amid a byte."""
    blocks = 3001
    volume = populated(tmp_path, tree, blocks)
    chance = random.Random(blocks)
    for _ in range(blocks // 12):
        volume.mark(chance.randrange(1500, blocks - 10), chance.randrange(1, 6))
    found = read(volume)
    volume.put(FREE_BLOCKS, "I", blocks - found.allocated.total // volume.block_size)
    path = write(volume, tmp_path)
    assert found.allocated == allocated_by_partclone("hfsp", path, tmp_path)
    assert len(found.allocated) > blocks // 40
    assert found.size == blocks * volume.block_size
    assert found.notes == ()
    identity = identify(path, 0, len(volume.data))
    assert identity is not None
    assert identity.kind == "hfsplus"


def test_files_survive_when_all_else_is_garbage(
    volume: HfsPlus, tmp_path: Path, tree: Path
) -> None:
    copy = scrubbed(write(volume, tmp_path), read(volume).allocated)
    out = tmp_path / "out"
    run("7zz", "x", "-y", "-thfs", f"-o{out}", copy)
    (top,) = out.iterdir()
    files = [file.relative_to(tree) for file in tree.rglob("*") if file.is_file()]
    assert len(files) == 30
    for file in files:
        assert (top / file).read_bytes() == (tree / file).read_bytes()


def test_hfsx(volume: HfsPlus) -> None:
    volume.put(0, "I", int.from_bytes(b"HX\0\x05", "big"))
    read(volume)


def test_what_lies_behind_is_left_to_the_caller(volume: HfsPlus) -> None:
    """Where the alternate header is at the end of a volume that is no multiple of a block, too."""
    before = read(volume)
    volume.data += b"x" * 5000
    assert read(volume) == before
    header = volume.data[volume.alternate : volume.alternate + 512]
    volume.data[volume.alternate : volume.alternate + 512] = bytes(512)
    volume.data += bytes(512 - len(volume.data) % 512 + 1024)
    volume.data[-1024:-512] = header
    assert read(volume) == before


def test_bitmap_in_several_pieces(volume: HfsPlus) -> None:
    """Eight extents of the allocation file, of which the first is short."""
    before = read(volume).allocated
    old = volume.fork(ALLOCATION)
    bitmap = volume.data[old : old + volume.block_size]
    volume.put(FORKS, "Q", 2 * volume.block_size)
    volume.put(FORKS + 12, "I", 2)
    volume.put(FORKS + 24, "I", volume.blocks - 50)
    volume.put(FORKS + 28, "I", 1)
    at = (volume.blocks - 50) * volume.block_size
    volume.data[at : at + volume.block_size] = bitmap
    volume.mark(volume.blocks - 50, 1)
    assert read(volume).allocated == before | Extents.span(at, at + volume.block_size)


@pytest.mark.parametrize("order", ["<", ">"])
def test_empty_journal(volume: HfsPlus, order: str) -> None:
    before = read(volume).allocated
    add_journal(volume, order)
    info = volume.get(12, "I") * volume.block_size
    kept = Extents.span(info, info + 17 * volume.block_size)
    assert read(volume).allocated == before | kept


def test_journal_that_was_not_replayed(volume: HfsPlus) -> None:
    add_journal(volume, end=4096)
    refused(volume, "its journal was not replayed")


def test_journal_that_was_never_written(volume: HfsPlus) -> None:
    add_journal(volume, end=4096)
    info = volume.get(12, "I") * volume.block_size
    struct.pack_into(">I", volume.data, info, 5)
    read(volume)


def refused(volume: HfsPlus, reason: str) -> None:
    with pytest.raises(NotUnderstoodError, match=reason):
        read(volume)


def info_block(offset: int, layout: str, value: int) -> Callable[[HfsPlus], None]:
    def damage(volume: HfsPlus) -> None:
        add_journal(volume)
        info = volume.get(12, "I") * volume.block_size
        struct.pack_into(f">{layout}", volume.data, info + offset, value)

    return damage


def journal(offset: int, layout: str, value: int) -> Callable[[HfsPlus], None]:
    def damage(volume: HfsPlus) -> None:
        add_journal(volume)
        place = (volume.get(12, "I") + 1) * volume.block_size
        struct.pack_into(f"<{layout}", volume.data, place + offset, value)

    return damage


def header(offset: int, layout: str, value: int) -> Callable[[HfsPlus], None]:
    return lambda volume: volume.put(offset, layout, value)


def flag(bit: int, value: bool = True) -> Callable[[HfsPlus], None]:
    def damage(volume: HfsPlus) -> None:
        flags = volume.get(4, "I")
        volume.put(4, "I", flags | 1 << bit if value else flags & ~(1 << bit))

    return damage


def first_only(offset: int, layout: str, value: int) -> Callable[[HfsPlus], None]:
    return lambda volume: struct.pack_into(f">{layout}", volume.data, 1024 + offset, value)


def node(index: int, offset: int, value: int) -> Callable[[HfsPlus], None]:
    def damage(volume: HfsPlus) -> None:
        volume.data[volume.fork(index) + offset] = value

    return damage


def unmark(block: int) -> Callable[[HfsPlus], None]:
    return lambda volume: volume.mark(block % volume.blocks, 1, used=False)


DAMAGE: dict[str, tuple[Callable[[HfsPlus], None], str]] = {
    "signature": (header(0, "H", 0x4242), r"no HFS\+ volume header"),
    "wrapper": (header(0, "H", 0x4244), "in an HFS wrapper"),
    "version": (header(2, "H", 5), r"no HFS\+ volume header"),
    "replay-failed": (header(8, "I", 0x46534B21), "could not be replayed"),
    "mounted": (flag(8, False), "not cleanly unmounted"),
    "inconsistent": (flag(14), "marked as inconsistent"),
    "boot-inconsistent": (flag(11), "marked as inconsistent"),
    "unknown-flag": (flag(20), "attributes 0x100000 are not known"),
    "block-size-0": (first_only(BLOCK_SIZE, "I", 0), "allocation blocks makes no sense"),
    "block-size-odd": (first_only(BLOCK_SIZE, "I", 3000), "allocation blocks makes no sense"),
    "block-size": (first_only(BLOCK_SIZE, "I", 1024), "differs from the alternate"),
    "blocks-0": (first_only(TOTAL_BLOCKS, "I", 0), "larger than its volume"),
    "blocks": (first_only(TOTAL_BLOCKS, "I", 9_000), "differs from the alternate"),
    "too-many-blocks": (first_only(TOTAL_BLOCKS, "I", 0xFFFFFFFF), "larger than its volume"),
    "another-volume": (first_only(16, "I", 5), "differs from the alternate"),
    "bitmap-short": (header(FORKS, "Q", 1000), "too short"),
    "bitmap-overflow": (header(FORKS + 12, "I", 2), "too fragmented"),
    "bitmap-outside": (header(FORKS + 16, "I", 10_000), "outside of the file system"),
    "catalog-missing": (header(FORKS + 160 + 20, "I", 0), "a special file is missing"),
    "catalog-elsewhere": (header(FORKS + 160 + 16, "I", 20), "not where the volume header says"),
    "catalog-kind": (node(CATALOG, 8, 0), "not where the volume header says"),
    "extents-records": (node(EXTENTS, 11, 4), "not where the volume header says"),
    "node-size": (node(CATALOG, 14 + 18, 3), "a special file is damaged"),
    "free-header": (unmark(0), "calls metadata free"),
    "free-catalog": (unmark(1), "calls metadata free"),
    "free-alternate": (unmark(-1), "calls metadata free"),
    "journal-nowhere": (flag(13), "journal is out of range"),
    "journal-elsewhere": (info_block(0, "I", 2), "on another device"),
    "journal-flags": (info_block(0, "I", 9), "on another device"),
    "journal-outside": (info_block(36, "Q", 1 << 60), "journal is out of range"),
    "journal-too-large": (info_block(44, "Q", 1 << 60), "journal is out of range"),
    "journal-tiny": (info_block(44, "Q", 8), "journal is damaged"),
    "journal-magic": (journal(0, "I", 0), "journal is damaged"),
    "journal-size": (journal(24, "Q", 512), "journal is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(volume: HfsPlus, name: str) -> None:
    damage, reason = DAMAGE[name]
    damage(volume)
    refused(volume, reason)


@pytest.mark.parametrize("size", [0, 512, 2560, 100_000])
def test_cut_short(volume: HfsPlus, size: int) -> None:
    del volume.data[size:]
    with pytest.raises((NotUnderstoodError, ReadFailedError)):
        read(volume)
