"""btrfs that is damaged, hostile or not known: refused with a reason, or kept as before."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.filesystems import read_allocation
from tests.btrfs_editor import HEADER, ITEM, POINTER, SUPERBLOCK, Editor
from tests.btrfs_images import MIB, small, synced
from tests.volumes import BytesVolume

CHUNK, ROOT, DEV, EXTENT, FREE = (3, 0), (1, 0), (4, 0), (2, 0), (10, 0)
NODE, LOG = (2, 1), ((1 << 64) - 6, 0)
"""The extent tree's first block, and the log's; all others are a leaf."""
EXTENT_ITEM, METADATA_ITEM, BLOCK_GROUP, CHUNK_ITEM = 168, 169, 192, 228
DEV_ITEM, DEV_EXTENT, ROOT_ITEM = 216, 204, 132
HUGE = (1 << 64) - 4096


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("btrfs"))


@pytest.fixture
def editor(image: Path) -> Editor:
    return Editor(image)


def superblock(offset: int, form: str, *values: int | bytes) -> Callable[[Editor], None]:
    return lambda editor: editor.set(SUPERBLOCK, offset, form, *values)


def header(
    block: tuple[int, int], offset: int, form: str, *values: int | bytes
) -> Callable[[Editor], None]:
    return lambda editor: editor.set(editor.places[block][0], offset, form, *values)


def item(
    block: tuple[int, int], kind: int, offset: int, form: str, *values: int | bytes
) -> Callable[[Editor], None]:
    return lambda editor: editor.change(editor.places[block][0], kind, offset, form, *values)


def key(block: tuple[int, int], index: int, form: str, *values: int) -> Callable[[Editor], None]:
    return header(block, HEADER + index * ITEM.size, form, *values)


def pointer(index: int, offset: int, form: str, *values: int) -> Callable[[Editor], None]:
    return header(NODE, HEADER + index * POINTER.size + offset, form, *values)


def self_reference(editor: Editor) -> None:
    (place,) = editor.places[NODE]
    editor.set(place, HEADER + 17, "Q", place)


def same_child_twice(editor: Editor) -> None:
    (place,) = editor.places[NODE]
    editor.set(place, HEADER + POINTER.size + 17, "Q", editor.places[EXTENT][0])


def deep(editor: Editor) -> None:
    """The tree block claims to be as high above the leaves as can be."""
    (place,) = editor.places[NODE]
    editor.set(place, 0x64, "B", 255)
    editor.change(editor.places[ROOT][0], ROOT_ITEM, 238, "B", 255)


def without(block: tuple[int, int], kind: int, used: int = 0) -> Callable[[Editor], None]:
    """Take the last item of a type away; or else the first one, and bytes in use as well."""

    def change(editor: Editor) -> None:
        place = editor.places[block][0]
        items = editor.items(place)
        places = [index for index, (found, _) in enumerate(items) if found[1] == kind]
        del items[places[0 if used else -1]]
        editor.put_items(place, items)
        if used:
            left = int.from_bytes(items[0][1][:8], "little") - used
            editor.change(place, BLOCK_GROUP, 0, "Q", left)

    return change


def tree_block_freed(editor: Editor) -> None:
    """All agree that the chunk tree is free space, and no free space tree is trusted."""
    editor.set(SUPERBLOCK, 0xB4, "Q", 1)
    without(EXTENT, METADATA_ITEM, 4096)(editor)


def chunk_of_many_stripes(editor: Editor) -> None:
    editor.change(editor.places[CHUNK][0], CHUNK_ITEM, 44, "H", 65535)


def striped_over_itself(editor: Editor) -> None:
    """A RAID0 of one device: each stripe would cost a walk through all extents."""
    place = editor.places[CHUNK][0]
    items = editor.items(place)
    found, data = items[-1]
    length = 10 * 128 << 10
    stripe = data[48:56], data[64:80]
    head = pack("<QQQQ", length, 2, 64 << 10, 1 | 1 << 2 | 1 << 3) + data[32:44]
    stripes = (stripe[0] + pack("<Q", (12 + n) * MIB) + stripe[1] for n in range(10))
    items[-1] = (found, head + pack("<HH", 10, 1) + b"".join(stripes))
    editor.put_items(place, items)


def second_chunk_over_first(editor: Editor) -> None:
    """The chunks of data and metadata have one place on the device."""
    place = editor.places[CHUNK][0]
    items = editor.items(place)
    (found, data), other = items[-1], items[-2][1]
    items[-1] = (found, data[:56] + other[56:64] + data[64:])
    editor.put_items(place, items)


DAMAGE = {
    "magic": (superblock(0x40, "Q", 0), "not one of btrfs"),
    "address": (superblock(0x30, "Q", 64 * MIB), "not one of btrfs"),
    "checksum": (lambda e: e.patch(SUPERBLOCK + 0x60, "Q", 4096), "checksum of the superblock"),
    "checksum type": (superblock(0xC4, "H", 4), "checksum type 4 is not known"),
    "another checksum": (superblock(0xC4, "H", 2), "checksum of the superblock"),
    "error": (superblock(0x38, "Q", 1 | 1 << 2), "superblock flags 0x4"),
    "new UUID": (superblock(0x38, "Q", 1 | 1 << 35), "superblock flags"),
    "compat": (superblock(0xAC, "Q", 1), "compatible features 0x1"),
    "compat_ro": (superblock(0xB4, "Q", 1 << 9), "read-only features 0x200"),
    "zoned": (superblock(0xBC, "Q", 0x345 | 1 << 12), "zoned devices"),
    "extent tree v2": (superblock(0xBC, "Q", 0x345 | 1 << 13), "features 0x2000"),
    "raid stripe tree": (superblock(0xBC, "Q", 0x345 | 1 << 14), "features 0x4000"),
    "old references": (superblock(0xBC, "Q", 0x344), "before 2009"),
    "generation": (superblock(0x48, "Q", 99), "tree block .* is damaged"),
    "root": (superblock(0x50, "Q", HUGE), "is in no chunk"),
    "unaligned root": (superblock(0x50, "Q", 5947393), "not aligned"),
    "chunk root": (superblock(0x58, "Q", 0), "is in no chunk"),
    "chunk root's generation": (superblock(0xA4, "Q", 1), "tree block .* is damaged"),
    "root's level": (superblock(0xC6, "B", 7), "tree block .* is damaged"),
    "level 255": (superblock(0xC7, "B", 255), "too many levels"),
    "log": (superblock(0x60, "Q", 5947392), "tree block .* is damaged"),
    "log in no chunk": (superblock(0x60, "Q", HUGE), "in no chunk"),
    "no devices": (superblock(0x88, "Q", 0), "no devices"),
    "sector size": (superblock(0x90, "I", 512), "size is out of range"),
    "odd sector size": (superblock(0x90, "I", 4097), "size is out of range"),
    "node size": (superblock(0x94, "II", 131072, 131072), "size is out of range"),
    "larger nodes": (superblock(0x94, "II", 65536, 65536), "damaged|in no chunk"),
    "leaf size": (superblock(0x98, "I", 16384), "size is out of range"),
    "no system chunks": (superblock(0xA0, "I", 0), "in no chunk"),
    "system chunk cut": (superblock(0xA0, "I", 50), "system chunks are cut short"),
    "system chunks": (superblock(0xA0, "I", 1 << 31), "too many system chunks"),
    "system chunk moved": (superblock(0x32B + 17 + 56, "Q", 8 * MIB), "is damaged"),
    "system chunk grown": (superblock(0x32B + 17, "Q", 2 * MIB), "different system chunks"),
    "data in system chunk": (superblock(0x32B + 17 + 24, "Q", 1), "that is none"),
    "system stripes": (superblock(0x32B + 17 + 44, "H", 65535), "is damaged"),
    "devid": (superblock(0xC9, "Q", 7), "none of the file system's|other devices"),
    "devid 0": (superblock(0xC9, "Q", 0), "unfinished replacement"),
    "device UUID": (superblock(0xC9 + 66, "16s", b"x" * 16), "another device of the same number"),
    "device's fsid": (superblock(0xC9 + 82, "16s", b"x" * 16), "another file system"),
    "fsid": (header(CHUNK, 0x20, "16s", b"x" * 16), "tree block .* is damaged"),
    "bytenr": (header(ROOT, 0x30, "Q", 4096), "tree block .* is damaged"),
    "owner": (header(DEV, 0x58, "Q", 5), "tree block .* is damaged"),
    "2^32 items": (header(CHUNK, 0x60, "I", (1 << 32) - 1), "too many entries"),
    "2^32 children": (header(NODE, 0x60, "I", (1 << 32) - 1), "too many entries"),
    "no children": (header(NODE, 0x60, "I", 0), "tree block .* is damaged"),
    "empty leaf": (header(EXTENT, 0x60, "I", 0), "tree block .* is damaged"),
    "child is itself": (self_reference, "tree block .* is damaged"),
    "child twice": (same_child_twice, "tree block .* is damaged"),
    "deep": (deep, "too many levels"),
    "child in no chunk": (pointer(1, 17, "Q", HUGE), "in no chunk"),
    "child not aligned": (pointer(1, 17, "Q", 5939201), "tree block .* is damaged"),
    "child from the future": (pointer(1, 25, "Q", 1 << 40), "tree block .* is damaged"),
    "children out of order": (pointer(1, 0, "Q", 0), "tree block .* is damaged"),
    "child's key": (pointer(1, 0, "Q", 5300000), "tree block .* is damaged"),
    "items out of order": (key(EXTENT, 3, "Q", 0), "leaf is damaged"),
    "same key twice": (key(EXTENT, 1, "QBQ", 1048576, 192, 4194304), "leaf is damaged"),
    "data outside": (key(EXTENT, 2, "QBQI", 5242880, 192, 2490368, 1 << 31), "leaf is damaged"),
    "data too large": (header(EXTENT, HEADER + 21, "I", 1 << 30), "leaf is damaged"),
    "unknown item": (key(EXTENT, 1, "QB", 1052672, 180), "unknown type 180"),
    "extent of no length": (
        lambda e: e.put_items(
            e.places[EXTENT][0],
            [
                ((o, EXTENT_ITEM, 0) if t == METADATA_ITEM else (o, t, n), d)
                for (o, t, n), d in e.items(e.places[EXTENT][0])
            ],
        ),
        "out of place",
    ),
    "extent not aligned": (key(EXTENT, 1, "Q", 1052673), "out of place"),
    "extents overlap": (key(EXTENT, 1, "QBQ", 1052672, EXTENT_ITEM, 8 * MIB), "out of place|dam"),
    "extent beyond all": (key(EXTENT, 1, "QBQ", 1052672, EXTENT_ITEM, HUGE), "out of place"),
    "extent of no kind": (item(EXTENT, METADATA_ITEM, 16, "Q", 0), "is damaged"),
    "extent from the future": (item(EXTENT, METADATA_ITEM, 8, "Q", 1 << 40), "is damaged"),
    "extent without users": (item(EXTENT, METADATA_ITEM, 0, "Q", 0), "is damaged"),
    "extent left out": (without(EXTENT, METADATA_ITEM), "contradicts chunk or extents"),
    "tree block free": (tree_block_freed, "tree block free"),
    "block group's use": (item(EXTENT, BLOCK_GROUP, 0, "Q", 4096 * 7), "contradicts chunk"),
    "block group's type": (item(EXTENT, BLOCK_GROUP, 16, "Q", 1), "contradicts chunk"),
    "block group's owner": (item(EXTENT, BLOCK_GROUP, 8, "Q", 1), "block group is damaged"),
    "block group left out": (without(EXTENT, BLOCK_GROUP), "chunks and block groups"),
    "chunk of no length": (item(CHUNK, CHUNK_ITEM, 0, "Q", 0), "chunk at .* is damaged"),
    "endless chunk": (item(CHUNK, CHUNK_ITEM, 0, "Q", HUGE), "chunk at .* is damaged"),
    "chunks overlap": (item(CHUNK, CHUNK_ITEM, 0, "Q", 8 * MIB), "chunks overlap"),
    "chunks share a place": (second_chunk_over_first, "overlap on the device"),
    "chunk's stripe length": (item(CHUNK, CHUNK_ITEM, 16, "Q", 4096), "chunk at .* is damaged"),
    "chunk's sectors": (item(CHUNK, CHUNK_ITEM, 40, "I", 0), "chunk at .* is damaged"),
    "chunk type": (item(CHUNK, CHUNK_ITEM, 24, "Q", 1 << 40), "chunk type .* is not known"),
    "chunk of all types": (item(CHUNK, CHUNK_ITEM, 24, "Q", 7), "chunk at .* is damaged"),
    "chunk of two profiles": (item(CHUNK, CHUNK_ITEM, 24, "Q", 1 << 1 | 3 << 4), "not known"),
    "chunk of many stripes": (chunk_of_many_stripes, "chunk at .* is damaged"),
    "chunk here twice": (striped_over_itself, "on the device more than once"),
    "chunk past the end": (item(CHUNK, CHUNK_ITEM, 56, "Q", 1 << 40), "past the device's end"),
    "chunk's device": (item(CHUNK, CHUNK_ITEM, 48, "Q", 2), "none of the file system's"),
    "chunk left out": (
        without(CHUNK, CHUNK_ITEM),
        "extent that is in no chunk",
    ),
    "no device item": (without(CHUNK, DEV_ITEM), "none of the file system's"),
    "device of another": (item(CHUNK, DEV_ITEM, 66, "16s", b"y" * 16), "none of the file system"),
    "extent moved": (key(EXTENT, 3, "Q", 5251072), "free space tree contradict"),
    "free space cut": (key(FREE, 2, "QBQ", 1056768, 199, 4096), "free space tree contradict"),
    "free space beyond all": (key(FREE, 8, "QBQ", HUGE, 199, 4096), "free space is out of place"),
    "free space not known": (key(FREE, 8, "QB", 8 * MIB, 201), "free space tree is damaged"),
    "free space without bits": (key(FREE, 8, "QB", 8 * MIB, 200), "free space tree is damaged"),
    "device's size": (item(CHUNK, DEV_ITEM, 8, "Q", 1 << 40), "larger than its volume"),
    "small device": (item(CHUNK, DEV_ITEM, 8, "Q", 2 * MIB), "past the device's end"),
    "device extent": (item(DEV, DEV_EXTENT, 24, "Q", 4096), "extent that is in no chunk"),
    "device extent left out": (without(DEV, DEV_EXTENT), "lacks an extent"),
    "no device tree": (key(ROOT, 1, "QBQ", 3, ROOT_ITEM, 0), "no tree 4"),
    "no extent tree": (key(ROOT, 0, "QBQ", 0, ROOT_ITEM, 0), "no tree 2"),
    "tree from the future": (item(ROOT, ROOT_ITEM, 160, "Q", 1 << 40), "younger"),
    "tree elsewhere": (item(ROOT, ROOT_ITEM, 176, "Q", HUGE), "in no chunk"),
}
"""Name to what is done to a volume, its checksums made good, and a pattern of the reason."""


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name: str, editor: Editor) -> None:
    change, reason = DAMAGE[name]
    change(editor)
    with pytest.raises(NotUnderstoodError, match=reason):
        editor.read()


def test_single_flipped_bits(editor: Editor) -> None:
    """Every block that the map is made from has a checksum."""
    noise = random.Random(1)
    blocks = [(SUPERBLOCK, 4096)]
    blocks += [(place, editor.nodesize) for found in editor.places.values() for place in found]
    for place, size in blocks:
        for _ in range(40):
            bit = noise.randrange(size * 8)
            editor.data[place + bit // 8] ^= 1 << bit % 8
            try:
                found = editor.read().allocated
            except NotUnderstoodError:
                pass
            else:  # in the part of a checksum's field that crc32c leaves empty
                assert 4 <= bit // 8 < 32
                assert found == editor.before.allocated
            editor.data[place + bit // 8] ^= 1 << bit % 8


def test_random_values_with_good_checksums(editor: Editor) -> None:
    noise = random.Random(2)
    values = (0, 1, 255, 4096, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1, HUGE)
    blocks = [SUPERBLOCK, *(place for found in editor.places.values() for place in found)]
    pristine = bytes(editor.data)
    refused, slowest = 0, 0.0
    for _ in range(1500):
        place = noise.choice(blocks)
        for _ in range(noise.choice((1, 1, 2))):
            offset = place + 32 + noise.randrange(4056) // noise.choice((1, 8))
            size = noise.choice((1, 2, 4, 8))
            value = noise.choice((*values, noise.getrandbits(64))) & (1 << 8 * size) - 1
            editor.data[offset : offset + size] = value.to_bytes(size, "little")
        editor.seal(place)
        begun = time.process_time()
        try:
            editor.read()
        except NotUnderstoodError:
            refused += 1
        slowest = max(slowest, time.process_time() - begun)
        editor.data[place : place + 4096] = pristine[place : place + 4096]
    assert refused > 200
    assert slowest < 1


@pytest.mark.parametrize("size", [0, 4096, SUPERBLOCK + 4095, SUPERBLOCK + 4096, MIB, 24 * MIB - 1])
def test_truncated(size: int, editor: Editor) -> None:
    with pytest.raises((NotUnderstoodError, ReadFailedError)):
        read_allocation("btrfs", BytesVolume(editor.data[:size]))


def test_garbage() -> None:
    noise = random.Random(4).randbytes(MIB)
    with pytest.raises(NotUnderstoodError):
        read_allocation("btrfs", BytesVolume(noise))


def test_without_xxhash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = BytesVolume(small(tmp_path, "--mixed --csum xxhash").read_bytes())
    assert read_allocation("btrfs", volume).notes == ()
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(NotUnderstoodError, match="python3-xxhash is missing"):
        read_allocation("btrfs", volume)


class Unreadable(BytesVolume):
    """Bytes some of which cannot be read."""

    def __init__(self, data: bytearray, *bad: int) -> None:
        super().__init__(data)
        self.bad = bad

    def read(self, offset: int, size: int) -> bytes:
        if any(offset <= place < offset + size for place in self.bad):
            raise ReadFailedError("bad sector")
        return super().read(offset, size)


def copies_of(editor: Editor, place: int) -> list[int]:
    """Where the tree block at `place` is: it names its address."""
    name = editor.data[place + 0x20 : place + 0x38]
    starts = range(0, len(editor.data), 4096)
    return [at for at in starts if editor.data[at + 0x20 : at + 0x38] == name]


def test_one_good_copy_is_enough(tmp_path: Path) -> None:
    editor = Editor(small(tmp_path, "--nodesize 4096", 110 * MIB))
    for place, *_ in editor.places.values():
        copies = copies_of(editor, place)
        assert len(copies) == 2
        editor.data[copies[0] + 200] ^= 1
        allocation = editor.read()
        assert allocation.allocated == editor.before.allocated
        assert allocation.notes == ("damaged copies of metadata blocks: 1",)
        editor.data[copies[1] + 200] ^= 1
        with pytest.raises(NotUnderstoodError, match="is damaged"):
            editor.read()
        for copy in copies:
            editor.data[copy + 200] ^= 1
        block = bytes(editor.data[copies[0] : copies[0] + editor.nodesize])
        editor.set(copies[0], 0x50, "Q", 1)
        assert editor.read() == allocation  # one that was not written is as good as damaged
        editor.data[copies[0] : copies[0] + editor.nodesize] = block
        unreadable = read_allocation("btrfs", Unreadable(editor.data, copies[0]))
        assert unreadable.allocated == editor.before.allocated
        with pytest.raises(ReadFailedError, match="bad sector"):
            read_allocation("btrfs", Unreadable(editor.data, *copies))


EXTENT_DATA = 108
LOG_DAMAGE = {
    "extent in no chunk": ("QQ", (1 << 40, 4096), 21, "in no chunk"),
    "endless extent": ("QQ", (4096, HUGE), 21, "extent in the log is damaged"),
    "unaligned extent": ("QQ", (5, 4096), 21, "extent in the log is damaged"),
    "unknown kind": ("B", (9,), 20, "unknown kind"),
}
"""Name to what is done to a file extent in the log, where, and a pattern of the reason."""


def test_damaged_log(tmp_path: Path) -> None:
    editor = Editor(synced(tmp_path, "-m single"))
    root, tree = sorted(editor.places[LOG], key=editor.count)
    before = {place: editor.items(place) for place in (root, tree)}
    for form, values, offset, reason in LOG_DAMAGE.values():
        editor.change(tree, EXTENT_DATA, offset, form, *values)
        with pytest.raises(NotUnderstoodError, match=reason):
            editor.read()
        editor.put_items(tree, before[tree])
    cut = [(found, data[:-1] if found[1] == EXTENT_DATA else data) for found, data in before[tree]]
    editor.put_items(tree, cut)
    with pytest.raises(NotUnderstoodError, match="has a wrong size"):
        editor.read()
    unknown = [
        ((a, 109, c), data) if b == EXTENT_DATA else ((a, b, c), data)
        for (a, b, c), data in before[tree]
    ]
    editor.put_items(tree, unknown)
    with pytest.raises(NotUnderstoodError, match="unknown items"):
        editor.read()
    editor.put_items(tree, before[tree])
    editor.put_items(root, [((5, 132, 5), data) for _, data in before[root]])
    with pytest.raises(NotUnderstoodError, match="unknown tree"):
        editor.read()
    editor.put_items(root, [(found, data[:100]) for found, data in before[root]])
    with pytest.raises(NotUnderstoodError, match="cut short"):
        editor.read()
    editor.put_items(root, before[root])
    assert editor.read() == editor.before


def test_number_of_chunks_is_bounded(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imager.filesystems.btrfs.roots._MAX_CHUNKS", 2)
    with pytest.raises(NotUnderstoodError, match="too many chunks"):
        editor.read()
