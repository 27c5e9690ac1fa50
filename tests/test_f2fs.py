"""F2FS volumes against partclone, fsck.f2fs and GRUB; recovery, and what must not be believed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from tests.command import imager, info
from tests.command import volumes as volumes_of
from tests.disks import put
from tests.f2fs_images import (
    BLOCK,
    CASES,
    MIB,
    Case,
    checkpoint_field,
    fill,
    fsck,
    holds,
    make,
    places,
    set_checkpoint,
)
from tests.loop import LoopDevice, run, sparse_file
from tests.oracles import allocated_by_partclone
from tests.small_disk import garbage_device, partition
from tests.volumes import BytesVolume, FileVolume

Volumes = Callable[[str], tuple[Path, Path]]
each = pytest.mark.parametrize("name", CASES)
FLAGS = 132
VERSION = 0


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Volumes:
    """Image and source tree of a case, made on first use."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("f2fs")
            made[name] = make(folder / "volume.img", CASES[name]), folder / "tree"
            fill(*made[name], len(made))
        return made[name]

    return get


@pytest.fixture
def image(volumes: Volumes) -> bytearray:
    """A small volume, to be spoilt."""
    return bytearray(volumes("smallest")[0].read_bytes())


def read(image: bytes | bytearray) -> Allocation:
    return read_allocation("f2fs", BytesVolume(image))


def reason(image: bytes | bytearray) -> str:
    with pytest.raises(NotUnderstoodError) as caught:
        read(image)
    return str(caught.value)


@each
def test_allocation_is_partclones(name: str, volumes: Volumes, tmp_path: Path) -> None:
    path, _ = volumes(name)
    allocation = read_allocation("f2fs", FileVolume(path))
    assert allocation.notes == ()
    assert allocation.size == CASES[name].size // BLOCK * BLOCK
    assert allocation.allocated.total < CASES[name].size * 0.7
    if CASES[name].partclone:
        at = places(path.read_bytes())
        main_end = (at.main + at.segments * 512) * BLOCK
        theirs = allocated_by_partclone(
            "f2fs", path, tmp_path
        )  # behind the main area its bitmap is not set
        assert allocation.allocated.clip(0, main_end) == theirs.clip(0, main_end)


@each
def test_a_copy_of_the_allocated_ranges_has_every_file(
    name: str, volumes: Volumes, tmp_path: Path
) -> None:
    path, tree = volumes(name)
    volume = FileVolume(path)
    copy = sparse_file(tmp_path / "copy.img", volume.size)
    allocated = read_allocation("f2fs", volume).allocated
    chance = random.Random(1)
    with copy.open("r+b") as file:
        for start, end in allocated.complement(0, volume.size):
            for at in range(start, end, MIB):
                file.seek(at)
                file.write(chance.randbytes(min(end - at, 4096)))
        for start, end in allocated:
            file.seek(start)
            file.write(volume.read(start, end - start))
    assert fsck(copy) == fsck(path)
    readable = holds(path, tree)  # GRUB does not know all features
    assert readable or "-O" in CASES[name].options or "-i" in CASES[name].options
    assert holds(copy, tree) == readable


def test_a_card_comes_back_over_garbage(tmp_path: Path) -> None:
    size = 160 * MIB
    disk, volume = sparse_file(tmp_path / "disk", size), tmp_path / "volume"
    partition(disk, {1: (2048, 130 * 2048)})
    fill(make(volume, Case(130 * MIB)), tmp_path / "tree", 5)
    with volume.open("rb") as file:
        put(disk, MIB, file.read())
    imager("capture", disk, tmp_path / "image")
    (described,) = volumes_of(info(tmp_path / "image"))
    assert (described["kind"], described["stored"]) == ("f2fs", "used")
    with garbage_device(tmp_path, size) as target:
        imager("restore", "--yes", tmp_path / "image", target.path)
    back = tmp_path / "back"
    with (tmp_path / "target").open("rb") as file:
        file.seek(MIB)
        back.write_bytes(file.read(130 * MIB))
    assert fsck(back)
    assert holds(back, tmp_path / "tree")


def test_a_volume_of_4_tib(tmp_path: Path) -> None:
    """Its SIT bitmap is larger than a checkpoint's block."""
    path = sparse_file(tmp_path / "volume", 4 << 40)
    run("mkfs.f2fs", "-q", "-t", "0", path)
    with path.open("rb") as file:
        head = file.read(8 * MIB)
    assert struct.unpack_from("<I", head, 1024 + 1664)[0] > 0, "it was meant to need more"
    allocated = read_allocation("f2fs", FileVolume(path)).allocated
    main = places(head).main
    assert allocated.covers(0, main * BLOCK)
    assert allocated.total == (main + checkpoint_field(head, 16, "Q")) * BLOCK


class TestRollForward:
    """Nodes written after the checkpoint, as fsync leaves them."""

    def node(
        self, image: bytearray, at: int, following: int, addresses: list[int], inode: bool = False
    ) -> None:
        """Write a node with these data blocks at block `at`."""
        start = at * BLOCK
        image[start : start + BLOCK] = bytes(BLOCK)
        struct.pack_into(f"<{len(addresses)}I", image, start + (360 if inode else 0), *addresses)
        version = checkpoint_field(image, VERSION, "Q") & 0xFFFFFFFF | 0xABCD << 32
        struct.pack_into(
            "<IIIQI", image, start + BLOCK - 24, 900, 900 if inode else 800, 2, version, following
        )

    def start(self, image: bytearray) -> int:
        """Where the log of warm nodes goes on."""
        segment = checkpoint_field(image, 36 + 4, "I")
        offset = checkpoint_field(image, 68 + 2, "H")
        return places(image).main + segment * 512 + offset

    def free(self, image: bytearray, count: int) -> list[int]:
        """Blocks at the end of the volume that are not in use."""
        at = places(image)
        end = at.main + at.segments * 512
        blocks = list(range(end - count, end))
        assert not any(block * BLOCK in read(image).allocated for block in blocks)
        return blocks

    def test_is_followed(self, image: bytearray) -> None:
        before = read(image).allocated
        set_checkpoint(image, FLAGS, "I", checkpoint_field(image, FLAGS, "I") & ~1)
        first = self.start(image)
        data = self.free(image, 40)
        second, third = data.pop(0), data.pop(0)
        self.node(image, first, second, [*data[:20], 0, 0xFFFFFFFF], inode=True)
        self.node(image, second, third, [*data[20:30], 7, 1 << 31])
        self.node(image, third, 5, data[30:])
        allocation = read(image)
        blocks = [first, second, third, *data]
        added = Extents.of((block * BLOCK, block * BLOCK + BLOCK) for block in blocks)
        assert allocation.allocated == before | added
        assert allocation.notes == ("not cleanly unmounted",)

    def test_ends_at_a_node_of_another_checkpoint(self, image: bytearray) -> None:
        before = read(image).allocated
        first = self.start(image)
        second, data = self.free(image, 2)
        self.node(image, first, second, [])
        self.node(image, second, 5, [data])
        struct.pack_into("<Q", image, second * BLOCK + BLOCK - 12, 1)
        assert read(image).allocated == before | Extents.span(first * BLOCK, first * BLOCK + BLOCK)

    def test_a_circle_ends(self, image: bytearray) -> None:
        first = self.start(image)
        second, data = self.free(image, 2)
        self.node(image, first, second, [])
        self.node(image, second, first, [data])
        assert read(image).allocated.covers(data * BLOCK, data * BLOCK + BLOCK)

    def test_inline_data_are_no_addresses(self, image: bytearray) -> None:
        before = read(image).allocated
        first = self.start(image)
        data = self.free(image, 10)
        self.node(image, first, 0, data, inode=True)
        image[first * BLOCK + 3] = 2
        assert read(image).allocated == before | Extents.span(first * BLOCK, first * BLOCK + BLOCK)


def test_the_older_checkpoint_counts_where_the_newer_is_torn(image: bytearray) -> None:
    """As a power cut while it was written leaves it."""
    start = places(image).checkpoint * BLOCK
    (total,) = struct.unpack_from("<I", image, start + 136)
    image[start + (total - 1) * BLOCK] ^= 1
    # It is sound, but sload.f2fs wrote over the table that it had.
    assert reason(image) == "its SIT has other numbers of blocks than its checkpoint"
    image[512 * BLOCK + 8] ^= 1
    image[1024 * BLOCK + 8] ^= 1
    assert reason(image) == "it has no sound checkpoint"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (0x8, "it has met an error"),
        (0x10, "it asks to be repaired"),
        (0x1000, "it was in use with checkpoints disabled"),
        (0x4000, "it was being resized"),
        (0x100000, "unknown flags of its checkpoint, 0x100000"),
    ],
)
def test_doubtful_checkpoints(image: bytearray, flag: int, words: str) -> None:
    set_checkpoint(image, FLAGS, "I", checkpoint_field(image, FLAGS, "I") | flag)
    assert reason(image) == words


@pytest.mark.parametrize(
    ("offset", "form", "value", "words"),
    [
        (136, "I", 0, "no sound checkpoint"),
        (140, "I", 0, "outside of it"),
        (140, "I", 0xFFFFFFFF, "outside of it"),
        (144, "I", 1, "other numbers of blocks"),
        (16, "Q", 1, "other numbers of blocks"),
        (156, "I", 63, "bitmap of its SIT"),
        (36 + 4, "I", 1 << 31, "outside of the volume"),
        (68 + 2, "H", 513, "outside of the volume"),
    ],
)
def test_checkpoints_that_make_no_sense(
    image: bytearray, offset: int, form: str, value: int, words: str
) -> None:
    if offset == 140:
        set_checkpoint(image, FLAGS, "I", checkpoint_field(image, FLAGS, "I") | 4)
    if offset == 136:
        for pack in (512, 1024):
            struct.pack_into("<I", image, pack * BLOCK + 136, 0)
    else:
        set_checkpoint(image, offset, form, value)
    assert words in reason(image)


@pytest.mark.parametrize(
    ("offset", "form", "value", "words"),
    [
        (0, "I", 0, "no F2FS superblock"),
        (16, "I", 14, "another size"),
        (20, "I", 10, "another size"),
        (8, "I", 12, "sector size"),
        (36, "Q", 1 << 60, "larger than its volume"),
        (36, "Q", 5000, "past the end"),
        (52, "I", 3, "number of its segments"),
        (56, "I", 0xFFFFFFFF, "number of its segments"),
        (68, "I", 0xFFFFFFFF, "past the end"),
        (80, "I", 1, "do not follow one another"),
        (92, "I", 0xFFFFFFFF, "do not follow one another"),
        (2180, "I", 2, "zoned"),
        (2180, "I", 0x80000000, "unknown F2FS features 0x80000000"),
        (2201, "B", 0x2F, "several devices"),
        (2180, "I", 0x800, "wrong checksum"),
    ],
)
def test_superblocks_that_make_no_sense(
    image: bytearray, offset: int, form: str, value: int, words: str
) -> None:
    whole = read(image)
    struct.pack_into(f"<{form}", image, 1024 + offset, value)
    assert read(image) == Allocation(
        whole.allocated, whole.size, ("one of its two superblocks is damaged",)
    )
    struct.pack_into(f"<{form}", image, BLOCK + 1024 + offset, value)
    assert words in reason(image)


def test_two_layouts(image: bytearray) -> None:
    struct.pack_into("<I", image, 1024 + 1664, 1)
    assert reason(image) == "its two superblocks differ"


def test_each_valid_block_is_counted(image: bytearray) -> None:
    """One bit more or less in any bitmap of the SIT does not go unnoticed."""
    whole = read(image).allocated
    at = places(image)
    chance = random.Random(3)
    seen = 0
    for _ in range(25):
        spoilt = bytearray(image)
        segment = chance.randrange(at.segments)
        block, entry = divmod(segment, 55)
        for copy in (0, 512):
            place = (at.sit + copy + block) * BLOCK + entry * 74 + 2 + chance.randrange(64)
            spoilt[place] ^= 1 << chance.randrange(8)
        try:
            assert not whole - read(spoilt).allocated
        except NotUnderstoodError:
            seen += 1
    assert seen > 15, "the others are overruled by the journal"


def test_volumes_cut_short(image: bytearray) -> None:
    for size in (0, 4096, 8191, 8192, MIB, len(image) - 4 * MIB):
        reason(image[:size])


def test_damage_never_makes_the_map_smaller(image: bytearray) -> None:
    """Random bytes in superblocks, checkpoints and the table: understood only where nothing is missing."""
    whole = read(image).allocated
    at = places(image)
    chance = random.Random(5)
    spots = [(0, 2), (512, 520), (1024, 1032), (at.sit, at.sit + 1), (at.sit + 512, at.sit + 513)]
    understood = 0
    for _ in range(600):
        start, end = chance.choice(spots)
        places_hit = [
            chance.randrange(start * BLOCK, end * BLOCK) for _ in range(chance.choice((1, 4)))
        ]
        before = [image[place] for place in places_hit]
        for place in places_hit:
            image[place] = chance.randrange(256)
        try:
            assert not whole - read(image).allocated
            understood += 1
        except NotUnderstoodError:
            pass
        for place, value in zip(reversed(places_hit), reversed(before), strict=True):
            image[place] = value
    assert understood > 100


def test_on_a_device(volumes: Volumes) -> None:
    """blkid gives it the name under which it is read."""
    path, _ = volumes("smallest")
    with LoopDevice(path, read_only=True) as loop:
        said = imager("capture", "--dry-run", loop.path, "/nonexistent/image").out
    assert "f2fs" in said
