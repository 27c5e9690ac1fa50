"""FAT volumes from mkfs.fat, filled through mtools, against partclone, fsck.fat and mshowfat."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from bitarray import bitarray

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems import Allocation, read_allocation
from tests.volumes import BytesVolume, FileVolume

MIB = 1 << 20


class Case(NamedTuple):
    size: int
    options: str


CASES = {
    "fat12": Case(2 * MIB, "-F 12 -s 2"),
    "floppy": Case(1440 * 1024, "-F 12 -f 1 -r 112"),
    "fat12-4096": Case(20 * MIB, "-F 12 -S 4096 -s 4"),
    "fat16": Case(16 * MIB, "-F 16 -s 1 -R 7 -h 2048"),
    "fat16-one-table": Case(64 * MIB + 512, "-F 16 -s 4 -f 1"),
    "fat16-2048": Case(40 * MIB, "-F 16 -S 2048 -s 1"),
    "fat32": Case(36 * MIB, "-F 32 -s 1"),
    "fat32-one-table": Case(140 * MIB, "-F 32 -s 4 -f 1 -R 48"),
    "fat32-4096": Case(270 * MIB, "-F 32 -S 4096 -s 1"),
    "fat32-no-backup": Case(36 * MIB, "-F 32 -s 1 -b 0"),
}
SMALL = ["fat12", "fat16", "fat32", "few-clusters"]


class Bpb(NamedTuple):
    """The test's own view of a volume's layout."""

    bits: int
    fats: tuple[int, ...]
    fat_size: int
    data: int
    cluster: int
    clusters: int
    size: int


def bpb(image: bytes | bytearray) -> Bpb:
    sector, per_cluster, reserved, copies, entries, small = struct.unpack_from("<HBHBHH", image, 11)
    (short,) = struct.unpack_from("<H", image, 22)
    large, long = struct.unpack_from("<II", image, 32)
    fat_size = (short or long) * sector
    data = reserved * sector + copies * fat_size + entries * 32
    size = (small or large) * sector
    clusters = (size - data) // (sector * per_cluster)
    bits = 32 if short == 0 else 16 if clusters > 4084 else 12
    fats = tuple(reserved * sector + copy * fat_size for copy in range(copies))
    return Bpb(bits, fats, fat_size, data, sector * per_cluster, clusters, size)


def entry(image: bytes | bytearray, number: int, value: int | None = None, copy: int = 0) -> int:
    """Read or write one table entry, with all its bits."""
    layout = bpb(image)
    at, shift = divmod(number * layout.bits, 8)
    at += layout.fats[copy]
    mask = (1 << layout.bits) - 1
    word = int.from_bytes(image[at : at + 5], "little")
    if value is not None:
        assert isinstance(image, bytearray)
        word = word & ~(mask << shift) | value << shift
        image[at : at + 5] = word.to_bytes(5, "little")
    return word >> shift & mask


def set_entry(image: bytearray, number: int, value: int) -> None:
    for copy in range(len(bpb(image).fats)):
        entry(image, number, value, copy)


def expected(image: bytes | bytearray) -> Extents:
    """What must be kept: all but the clusters whose entry is 0, found one by one."""
    layout = bpb(image)
    mask = 0x0FFFFFFF if layout.bits == 32 else (1 << layout.bits) - 1
    free = [
        (layout.data + (number - 2) * layout.cluster, layout.data + (number - 1) * layout.cluster)
        for number in range(2, layout.clusters + 2)
        if entry(image, number) & mask == 0
    ]
    return Extents.of(free).complement(0, layout.size)


def run(*command: str) -> str:
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, errors="replace"
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make(path: Path, case: Case) -> None:
    with path.open("wb") as file:
        file.truncate(case.size)
    run("mkfs.fat", *case.options.split(), "-i", "1234abcd", str(path))


def fsck(path: Path) -> tuple[int, int]:
    """Used clusters and all clusters, as fsck.fat counts them on a volume without faults."""
    with path.open("rb") as file:
        boot = file.read(512)
    command = ["fsck.fat", "-n", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    without_backup = bpb(boot).bits == 32 and boot[50:52] == bytes(2)  # fsck.fat minds that
    assert done.returncode == without_backup, done.stdout
    counts = re.search(r"(\d+)/(\d+) clusters", done.stdout)
    assert counts
    return int(counts[1]), int(counts[2])


def fill(path: Path, tree: Path, cluster: int, unit: int) -> None:
    """Files of many sizes in two levels of directories, holes, a file in the holes, more holes."""
    chance = random.Random(path.parent.name[:5])
    folders = [tree / "first", tree / "first" / "inner", tree / "second"]
    for folder in folders:
        folder.mkdir(parents=True)
    files = []
    for number in range(36):
        size = chance.choice((0, 1, cluster, cluster + 1, chance.randrange(1, unit)))
        files.append([tree, *folders][number % 4] / f"a long file name {number}.bin")
        files[-1].write_bytes(chance.randbytes(size))
    folders_first = sorted(tree.iterdir(), key=Path.is_file)
    run("mcopy", "-s", "-i", str(path), *map(str, folders_first), "::")
    chance.shuffle(files)
    delete(path, tree, files[:12])
    (tree / "in pieces").write_bytes(chance.randbytes(unit))
    run("mcopy", "-i", str(path), str(tree / "in pieces"), "::")
    delete(path, tree, files[12:20])


def delete(path: Path, tree: Path, files: list[Path]) -> None:
    run("mdel", "-i", str(path), *(f"::{file.relative_to(tree)}" for file in files))
    for file in files:
        file.unlink()


def few_clusters() -> bytearray:
    """A small FAT32 volume with 4096-byte sectors, which mtools does not take for FAT32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.img"
        make(path, Case(4 * MIB, "-F 32 -S 4096"))
        image = bytearray(path.read_bytes())
        directory = struct.Struct("<11sB8xH4xHI")
        for number, following in ((3, 0), (5, 6), (6, 9), (9, 0), (700, 0)):
            set_entry(image, number, following or 0x0FFFFFFF)
        layout = bpb(image)
        entries = {
            2: [(b"FOLDER     ", 0x10, 0, 3, 0), (b"FILE    BIN", 0x20, 0, 5, 10000)],
            3: [
                (b".          ", 0x10, 0, 3, 0),
                (b"..         ", 0x10, 0, 0, 0),
                (b"INNER   BIN", 0x20, 0, 700, 4096),
            ],
        }
        for number, content in entries.items():
            at = layout.data + (number - 2) * layout.cluster
            for place, fields in enumerate(content):
                directory.pack_into(image, at + 32 * place, *fields)
        image[4096 + 488 : 4096 + 492] = b"\xff\xff\xff\xff"  # the free count is not known
        path.write_bytes(image)
        assert fsck(path) == (6, layout.clusters)
    return image


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Image and source tree of a case, made on first use."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            path, tree = folder / "volume.img", folder / "tree"
            make(path, CASES[name])
            with path.open("rb") as file:
                layout = bpb(file.read(512))
            fill(path, tree, layout.cluster, max(layout.size // 100, 3000))
            made[name] = path, tree
        return made[name]

    return get


@pytest.fixture
def image(request: pytest.FixtureRequest, volumes: Callable[[str], tuple[Path, Path]]) -> bytearray:
    """A copy in memory, to be spoilt, of the case that the test is parametrised with."""
    if request.param == "few-clusters":
        return few_clusters()
    return bytearray(volumes(request.param)[0].read_bytes())


each_small = pytest.mark.parametrize("image", SMALL, indirect=True)
each = pytest.mark.parametrize("name", CASES)


def read(image: bytes | bytearray, sector_size: int = 512) -> Allocation:
    return read_allocation("vfat", BytesVolume(image, sector_size))


def partclone_map(path: Path, folder: Path) -> tuple[Extents, int]:
    """Blocks that partclone stores, from its image's bitmap; and the number that it reports."""
    image = folder / "partclone.img"
    log = str(folder / "partclone.log")
    run("partclone.fat", "-c", "-q", "-F", "-s", str(path), "-O", str(image), "-L", log)
    data = image.read_bytes()
    assert data[:15] == b"partclone-image"
    _, blocks, _, used, block_size = struct.unpack_from("<QQQQI", data, 36 + 16)
    bits_at = 36 + 52 + 18 + 4
    builder = ExtentsBuilder()
    builder.add_bitmap(data[bits_at : bits_at + -(-blocks // 8)], blocks, block_size, 0)
    return builder.build(), used * block_size


@each
def test_allocation_equals_partclones_and_the_tables(
    name: str, volumes: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    path, _ = volumes(name)
    before = path.read_bytes()
    allocation = read_allocation("vfat", FileVolume(path))
    layout = bpb(before)
    assert allocation.size == layout.size
    assert allocation.notes == ()
    assert allocation.allocated == expected(before)
    assert len(allocation.allocated) > 3, "the volume was meant to have holes"
    clusters_end = layout.data + layout.clusters * layout.cluster
    in_clusters = allocation.allocated.clip(layout.data, clusters_end).total
    assert fsck(path) == (in_clusters // layout.cluster, layout.clusters)
    if layout.bits > 12:  # partclone 0.3.23 misses clusters of FAT12 that fsck.fat and mtools find
        theirs, used = partclone_map(path, tmp_path)
        assert allocation.allocated.clip(0, clusters_end) == theirs.clip(0, clusters_end)
        assert theirs.total == used
    assert path.read_bytes() == before


def test_fat32_with_few_clusters_is_fat32_to_partclone_too(tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    path.write_bytes(few_clusters())
    allocation = read_allocation("vfat", FileVolume(path, sector_size=4096))
    theirs, used = partclone_map(path, tmp_path)
    assert allocation.allocated == theirs
    assert allocation.allocated.total == used


@each
def test_a_copy_of_the_allocated_ranges_has_every_file(
    name: str, volumes: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    path, tree = volumes(name)
    volume = FileVolume(path)
    copy = tmp_path / "copy.img"
    with copy.open("wb") as file:
        file.truncate(volume.size)
        for start, end in read_allocation("vfat", volume).allocated:
            file.seek(start)
            file.write(volume.read(start, end - start))
    assert fsck(copy) == fsck(path)
    out = tmp_path / "out"
    out.mkdir()
    run("mcopy", "-s", "-n", "-i", str(copy), "::", str(out))
    files = sorted(item.relative_to(tree) for item in tree.rglob("*"))
    assert len(files) == 20
    assert sorted(item.relative_to(out) for item in out.rglob("*")) == files
    for item in files:
        if (tree / item).is_file():
            assert (out / item).read_bytes() == (tree / item).read_bytes()


def test_clusters_of_a_file_in_pieces_as_mshowfat_lists_them(
    volumes: Callable[[str], tuple[Path, Path]],
) -> None:
    path, _ = volumes("fat16")
    layout = bpb(path.read_bytes())
    allocated = read_allocation("vfat", FileVolume(path)).allocated
    listing = run("mshowfat", "-i", str(path), "::in pieces")
    runs = re.findall(r"<(\d+)(?:-(\d+))?>", listing)
    assert len(runs) > 1, "the file was meant to be fragmented"
    for first, last in runs:
        start = layout.data + (int(first) - 2) * layout.cluster
        assert allocated.covers(start, layout.data + (int(last or first) - 1) * layout.cluster)


@each_small
def test_an_entry_of_every_sort(image: bytearray) -> None:
    """Bad, reserved and end values keep their cluster; so does value 1."""
    layout = bpb(image)
    top = (1 << min(layout.bits, 28)) - 1
    free = [at for at in range(2, layout.clusters + 2) if entry(image, at) == 0]
    values = [*range(top - 15, top + 1), 1, 2, layout.clusters + 1]
    for number, value in zip(free[3::7], values, strict=False):
        set_entry(image, number, value)
    assert read(image).allocated == expected(image)
    set_entry(image, layout.clusters + 1, top)
    assert read(image).allocated == expected(image)
    assert read(image).allocated.covers(layout.size - 1, layout.size)


@each_small
def test_links_all_over_the_volume(image: bytearray) -> None:
    layout = bpb(image)
    chance = random.Random(4)
    for number in range(2, layout.clusters + 2):
        if entry(image, number) == 0 and chance.random() < 0.4:
            set_entry(image, number, chance.randrange(2, layout.clusters + 2))
    assert read(image).allocated == expected(image)


@each_small
def test_a_full_volume_is_one_range(image: bytearray) -> None:
    layout = bpb(image)
    top = (1 << min(layout.bits, 28)) - 1
    for number in range(2, layout.clusters + 2):
        if entry(image, number) == 0:
            set_entry(image, number, top)
    assert list(read(image).allocated) == [(0, layout.size)]


@pytest.mark.parametrize("image", ["fat32"], indirect=True)
def test_upper_four_bits_of_fat32_do_not_count(image: bytearray) -> None:
    before = read(image).allocated
    layout = bpb(image)
    for number in range(2, layout.clusters + 2, 3):
        set_entry(image, number, entry(image, number) ^ 0xF0000000)
    assert read(image).allocated == before


@each_small
def test_entries_behind_the_last_cluster_are_ignored(image: bytearray) -> None:
    before = read(image)
    layout = bpb(image)
    first = -(-(layout.clusters + 2) * layout.bits // 8)
    assert first < layout.fat_size
    chance = random.Random(5)
    for fat in layout.fats:
        image[fat + first : fat + layout.fat_size] = chance.randbytes(layout.fat_size - first)
    assert read(image) == before


@each_small
def test_a_link_out_of_the_volume_is_refused(image: bytearray) -> None:
    layout = bpb(image)
    top = (1 << min(layout.bits, 28)) - 1
    number = next(at for at in range(9, layout.clusters) if entry(image, at) == 0)
    for value in (layout.clusters + 2, layout.clusters + 200, top - 16):
        if layout.clusters + 1 < value < top - 15:
            set_entry(image, number, value)
            with pytest.raises(NotUnderstoodError, match="points outside"):
                read(image)


@each_small
def test_tables_that_differ(image: bytearray) -> None:
    """What any of them has in use is kept, and damage in one of them is no less damage."""
    layout = bpb(image)
    before = read(image).allocated
    free, used = (
        next(at for at in range(9, layout.clusters) if bool(entry(image, at)) is wanted)
        for wanted in (False, True)
    )
    for number, value, copy in ((free, layout.clusters, 1), (free, 5, 0), (used, 0, 1)):
        old = entry(image, number)
        entry(image, number, value, copy=copy)
        found = read(image)
        at = layout.data + (number - 2) * layout.cluster
        assert found.allocated == before | Extents.span(at, at + layout.cluster)
        assert found.notes == (
            "the file allocation tables differ: kept what any of them has in use",
        )
        entry(image, number, old, copy=copy)
    entry(image, free, layout.clusters + 2, copy=1)
    with pytest.raises(NotUnderstoodError, match="outside of the volume"):
        read(image)


@pytest.mark.parametrize("image", ["fat12"], indirect=True)
def test_a_table_more_than_the_boot_sector_says(image: bytearray) -> None:
    assert image[16] == 2
    image[16] = 1
    with pytest.raises(NotUnderstoodError, match="more file allocation tables"):
        read(image)


@pytest.mark.parametrize("tables", [1, 3, 4])
def test_number_of_tables(tables: int, tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    make(path, Case(40 * MIB, f"-F 32 -s 1 -f {tables}"))
    tree = tmp_path / "tree"
    fill(path, tree, 512, 40_000)
    image = bytearray(path.read_bytes())
    found = read(image)
    assert found.allocated == expected(image)
    assert found.notes == ()


@pytest.mark.parametrize("image", ["fat32"], indirect=True)
def test_without_mirroring_only_the_active_table_counts(image: bytearray) -> None:
    layout = bpb(image)
    number = next(at for at in range(9, layout.clusters) if entry(image, at) == 0)
    entry(image, number, 0x0FFFFFFF, copy=1)
    cluster = layout.data + (number - 2) * layout.cluster
    assert cluster in read(image).allocated
    struct.pack_into("<H", image, 40, 0x80)
    assert cluster not in read(image).allocated
    struct.pack_into("<H", image, 40, 0x81)
    assert cluster in read(image).allocated
    struct.pack_into("<H", image, 40, 0x82)
    with pytest.raises(NotUnderstoodError, match="active"):
        read(image)
    struct.pack_into("<H", image, 40, 0x10)
    with pytest.raises(NotUnderstoodError, match="flags"):
        read(image)
    struct.pack_into("<H", image, 40, 0x01)  # the number has no meaning while they are mirrored
    assert cluster in read(image).allocated


@each_small
def test_a_dirty_volume_is_noted(image: bytearray) -> None:
    before = read(image)
    state_at = 65 if bpb(image).bits == 32 else 37
    notes = ("not cleanly unmounted", "marked as having met disk errors")
    for state, expected_notes in ((1, notes[:1]), (2, notes[1:]), (3, notes)):
        image[state_at] = state
        assert read(image) == Allocation(before.allocated, before.size, expected_notes)
    image[state_at + 1] = 0  # without a boot signature this byte is no state
    assert read(image) == before


@pytest.mark.parametrize("image", ["fat16", "fat32"], indirect=True)
def test_flags_in_the_table_are_noted(image: bytearray) -> None:
    whole, clean, no_error = (
        (0x0FFFFFFF, 1 << 27, 1 << 26) if bpb(image).bits == 32 else (0xFFFF, 1 << 15, 1 << 14)
    )
    set_entry(image, 1, whole & ~clean)
    assert read(image).notes == ("not cleanly unmounted",)
    set_entry(image, 1, whole & ~no_error)
    assert read(image).notes == ("marked as having met disk errors",)
    entry(image, 1, whole, copy=0)  # drivers need not mirror these flags at once
    assert read(image).notes == ()
    set_entry(image, 1, whole & ~8)
    with pytest.raises(NotUnderstoodError, match="second entry"):
        read(image)


@each_small
def test_the_media_type_must_begin_each_table(image: bytearray) -> None:
    layout = bpb(image)
    for copy, fat in enumerate(layout.fats):
        spoilt = image[:]
        spoilt[fat] ^= 1
        with pytest.raises(NotUnderstoodError, match="media type"):
            read(spoilt)
        spoilt = image[:]
        entry(spoilt, 0, entry(spoilt, 0) & ~0x100, copy)
        with pytest.raises(NotUnderstoodError, match="media type"):
            read(spoilt)


BAD_FIELDS = [
    ("fat16", 0, b"\x00", "no FAT boot sector"),
    ("fat16", 510, b"\xaa\x55", "no FAT boot sector"),
    ("fat16", 11, b"\x00\x01", "sector size"),
    ("fat16", 11, b"\x00\x00", "sector size"),
    ("fat16", 11, b"\x00\x20", "sector size"),
    ("fat16", 11, b"\x01\x02", "sector size"),
    ("fat16", 13, b"\x00", "cluster size"),
    ("fat16", 13, b"\x03", "cluster size"),
    ("fat16", 14, b"\x00\x00", "no reserved"),
    ("fat16", 14, b"\xff\xff", "no room|leaves the FAT type open|too short"),
    ("fat16", 16, b"\x00", "number of file allocation tables"),
    ("fat16", 16, b"\x05", "number of file allocation tables"),
    ("fat16", 16, b"\x03", "begin with the media type"),
    ("fat16", 17, b"\x00\x00", "size of the root directory"),
    ("fat16", 17, b"\x01\x02", "size of the root directory"),
    ("fat16", 19, b"\x01\x80", "larger than its volume"),
    ("fat16", 21, b"\xf1", "media type"),
    ("fat16", 21, b"\xf0", "begin with the media type"),
    ("fat16", 22, b"\x01\x00", "too short"),
    ("fat16", 22, b"\xff\xff", "no room"),
    ("fat16", 32, b"\x01\x00\x00\x00", "two different sizes"),
    ("fat32", 11, b"\x00\x04", "larger than its volume"),
    ("fat32", 13, b"\x02", "differs from its backup"),
    ("fat32", 14, b"\x21\x00", "differs from its backup|media type"),
    ("fat32", 17, b"\x10\x00", "unknown version"),
    ("fat32", 32, b"\xff\x1f\x01\x00", "differs from its backup"),
    ("fat32", 36, b"\x00\x00\x00\x00", "too short"),
    ("fat32", 36, b"\xff\xff\xff\xff", "no room"),
    ("fat32", 42, b"\x01\x00", "unknown version"),
    ("fat32", 44, b"\x00\x00\x00\x00", "root directory is outside"),
    ("fat32", 44, b"\x01\x00\x00\x00", "root directory is outside"),
    ("fat32", 44, b"\x03\x00\x00\x00", "differs from its backup"),
    ("fat32", 44, b"\xff\xff\xff\xff", "root directory is outside"),
    ("fat32", 48, b"\x20\x00", "reserved area"),
    ("fat32", 50, b"\x20\x00", "reserved area"),
    ("fat32", 50, b"\x05\x00", "differs from its backup"),
    ("fat32", 52, b"\x01", "unknown version"),
    ("fat32", 63, b"\x80", "unknown version"),
]


@pytest.mark.parametrize(("image", "offset", "content", "reason"), BAD_FIELDS, indirect=["image"])
def test_a_boot_sector_field_that_makes_no_sense(
    image: bytearray, offset: int, content: bytes, reason: str
) -> None:
    image[offset : offset + len(content)] = content
    with pytest.raises(NotUnderstoodError, match=reason):
        read(image)


@pytest.mark.parametrize("image", ["fat32"], indirect=True)
def test_the_free_count_is_not_looked_at(image: bytearray) -> None:
    before = read(image)
    image[512:1024] = random.Random(6).randbytes(512)
    assert read(image) == before


@pytest.mark.parametrize("image", ["fat32"], indirect=True)
def test_a_state_of_the_first_boot_sector_alone_is_no_difference(image: bytearray) -> None:
    image[3:11] = b"MSWIN4.1"
    struct.pack_into("<I", image, 28, 63)
    image[65] = 1
    assert read(image).notes == ("not cleanly unmounted",)


@each_small
def test_a_cut_volume_is_refused(image: bytearray) -> None:
    layout = bpb(image)
    for size in (0, 511, 512, layout.data, layout.size - 1):
        with pytest.raises(NotUnderstoodError, match=r"too small|larger than its volume"):
            read(image[:size])


@each_small
def test_what_lies_behind_the_file_system_is_left_to_the_caller(image: bytearray) -> None:
    before = read(image)
    assert read(image + bytes(4096)) == before
    assert before.allocated.end <= before.size


@pytest.mark.parametrize("image", ["fat32", "few-clusters"], indirect=True)
def test_sectors_smaller_than_the_disks_are_refused(image: bytearray) -> None:
    if struct.unpack_from("<H", image, 11)[0] == 4096:
        assert read(image, 4096) == read(image)
    else:
        with pytest.raises(NotUnderstoodError, match="smaller than the disk's"):
            read(image, 4096)


def root_start(image: bytearray) -> int:
    layout = bpb(image)
    return layout.data if layout.bits == 32 else layout.fats[-1] + layout.fat_size


def root_entries(image: bytearray) -> Iterator[tuple[int, bytes]]:
    """Offset and content of the entries in the root directory that have clusters."""
    layout = bpb(image)
    end = layout.data + layout.cluster if layout.bits == 32 else layout.data
    for at in range(root_start(image), end, 32):
        if (
            image[at] not in (0, 0xE5)
            and not image[at + 11] & 8
            and image[at + 26 : at + 28] != b"\0\0"
        ):
            yield at, bytes(image[at : at + 32])


@each_small
def test_the_root_directory_must_fit_the_table(image: bytearray) -> None:
    layout = bpb(image)
    entries = list(root_entries(image))
    folder = next(at for at, content in entries if content[11] & 0x10)
    file = next(at for at, content in entries if not content[11] & 0x10)
    free = next(at for at in range(9, layout.clusters) if entry(image, at) == 0)
    for at in (folder, file):
        for number in (free, 1, layout.clusters + 2):
            spoilt = image[:]
            struct.pack_into("<H", spoilt, at + 26, number & 0xFFFF)
            struct.pack_into("<H", spoilt, at + 20, number >> 16)
            with pytest.raises(NotUnderstoodError, match="free cluster"):
                read(spoilt)
    (number,) = struct.unpack_from("<H", image, folder + 26)
    for spot in (0, 32, 26):
        spoilt = image[:]
        spoilt[layout.data + (number - 2) * layout.cluster + spot] ^= 1
        with pytest.raises(NotUnderstoodError, match="not where the root directory says"):
            read(spoilt)
    spoilt = image[:]
    spoilt[folder] = 0xE5
    struct.pack_into("<H", spoilt, folder + 26, free)
    assert read(spoilt) == read(image), "a deleted entry says nothing"
    spoilt = image[:]
    struct.pack_into("<H", spoilt, folder + 26, 0)
    struct.pack_into("<H", spoilt, folder + 20, 0)
    with pytest.raises(NotUnderstoodError, match="free cluster"):
        read(spoilt)
    start = root_start(image)
    spoilt[start + 64 : start + 96] = spoilt[folder : folder + 32]
    spoilt[start], spoilt[start + 32] = 0xE5, 0
    assert read(spoilt) == read(image), "nothing counts behind the end of the directory"


@pytest.mark.parametrize("image", ["fat32"], indirect=True)
def test_the_root_directory_of_fat32_must_be_allocated(image: bytearray) -> None:
    set_entry(image, 2, 0)
    with pytest.raises(NotUnderstoodError, match="root directory is in a free cluster"):
        read(image)


def make_by_hand(clusters: int, fat_sectors: int) -> bytearray:
    """A FAT12 or FAT16 volume with clusters of one sector and nothing but a label."""
    image = bytearray((1 + fat_sectors + 1 + clusters) * 512)
    fields = (512, 1, 1, 1, 16, 0, 0xF8, fat_sectors, 1, 1, 0, len(image) // 512)
    struct.pack_into("<3s8sHBHBHHBHHHII", image, 0, b"\xe9\x3c\x00", b"", *fields)
    image[510:512] = b"\x55\xaa"
    image[512:516] = b"\xf8\xff\xff" + (b"\0" if clusters < 4085 else b"\xff")
    root = (1 + fat_sectors) * 512
    image[root : root + 12] = b"LABEL      \x08"
    assert bpb(image).clusters == clusters
    return image


@pytest.mark.parametrize("image", ["fat16"], indirect=True)
def test_a_size_that_makes_another_type_of_it(image: bytearray) -> None:
    """Entries of 12 bits instead of 16: other clusters would be free."""
    layout = bpb(image)
    before = read(image)
    image[54:62] = b"FAT     "  # the name says nothing then
    assert read(image) == before
    image[54:62] = b"FAT16   "
    sectors = (layout.data + 4000 * layout.cluster) // 512
    struct.pack_into("<H", image, 19, sectors if sectors < 1 << 16 else 0)
    struct.pack_into("<I", image, 32, 0 if sectors < 1 << 16 else sectors)
    with pytest.raises(NotUnderstoodError, match="name of the FAT type"):
        read(image)


@pytest.mark.parametrize("clusters", [4083, 4084, 4085, 4086, 4087, 65524, 65525])
def test_the_number_of_clusters_decides_between_fat12_and_fat16(clusters: int) -> None:
    bits = 12 if clusters < 4085 else 16
    image = make_by_hand(clusters, -(-(clusters + 2) * bits // 8 // 512))
    if clusters in (4085, 4086, 65525):
        with pytest.raises(NotUnderstoodError, match="leaves the FAT type open"):
            read(image)
        return
    for number in range(clusters - 20, clusters + 1):
        entry(image, number, number + 1)
    entry(image, clusters + 1, (1 << bits) - 1)
    entry(image, 4000, (1 << bits) - 1)
    assert len(read(image).allocated) == 3
    assert read(image).allocated == expected(image)


def test_the_table_must_have_an_entry_for_each_cluster() -> None:
    assert read(make_by_hand(30 * 256 - 2, 30)).size
    with pytest.raises(NotUnderstoodError, match="too short"):
        read(make_by_hand(30 * 256 - 1, 30))


def test_a_single_table_must_not_run_into_what_follows() -> None:
    longer = make_by_hand(30 * 256 - 2, 40)
    assert read(longer).size
    longer[41 * 512 - 1] = 1
    with pytest.raises(NotUnderstoodError, match="more entries than"):
        read(longer)
    assert read(make_by_hand(30 * 256 - 2, 30 + 2048)).size
    with pytest.raises(NotUnderstoodError, match="too long"):
        read(make_by_hand(30 * 256 - 2, 31 + 2048))


@pytest.mark.parametrize("image", ["fat16", "fat32"], indirect=True)
def test_files_without_a_root_directory_are_refused(image: bytearray) -> None:
    image[root_start(image)] = 0
    with pytest.raises(NotUnderstoodError, match="empty, yet"):
        read(image)
    one_cluster = make_by_hand(100, 1)
    entry(one_cluster, 50, 0xFFF)
    assert read(one_cluster).allocated == expected(one_cluster)
    one_cluster[root_start(one_cluster)] = 0
    with pytest.raises(NotUnderstoodError, match="empty, yet"):
        read(one_cluster)


@pytest.mark.parametrize("name", CASES)
def test_a_volume_without_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    make(path, CASES[name])
    allocation = read_allocation("vfat", FileVolume(path))
    with path.open("rb") as file:
        layout = bpb(file.read(512))
    used = layout.cluster if layout.bits == 32 else 0
    assert allocation.allocated.clip(0, layout.data + used).total == layout.data + used
    assert allocation.allocated.total - layout.data - used < layout.cluster
    assert fsck(path) == (used // layout.cluster, layout.clusters)


def test_the_same_size_may_be_given_twice() -> None:
    image = make_by_hand(5000, 20)
    before = read(image)
    image[19:21] = image[32:34]
    assert read(image) == before


@each_small
def test_flipped_bits_in_metadata_lose_nothing(image: bytearray) -> None:
    """One flip: refused, or all that was allocated is still kept, inside or behind the volume."""
    layout = bpb(image)
    needed = expected(image)
    chance = random.Random(7)
    tables_end = layout.fats[-1] + layout.fat_size
    used_table = (layout.clusters + 2) * layout.bits // 8
    places = [
        *range(64),
        *range(510, 512),
        *(chance.randrange(layout.data) for _ in range(150)),
        *(fat + chance.randrange(used_table) for fat in layout.fats for _ in range(60)),
        *(chance.randrange(tables_end, layout.data + layout.cluster) for _ in range(100)),
    ]
    refused = 0
    for place in places:
        for bit in range(8) if place < 64 else [chance.randrange(8)]:
            image[place] ^= 1 << bit
            try:
                allocation = read(image)
            except NotUnderstoodError:
                refused += 1
            else:
                kept = allocation.allocated | Extents.span(allocation.size, len(image))
                assert not needed - kept, f"bit {bit} of byte {place}"
            image[place] ^= 1 << bit
    assert refused > 100


@pytest.mark.parametrize("image", ["floppy", "fat12", "fat16"], indirect=True)
def test_wrong_lengths_of_table_and_root_directory_lose_nothing(image: bytearray) -> None:
    """FAT12 and FAT16 have no backup boot sector, and the floppy not even a second table."""
    needed = expected(image)
    for offset in (17, 22):
        (right,) = struct.unpack_from("<H", image, offset)
        for step in [-right, -right // 2, right, -16, 32, 64, *range(-9, 30)]:
            value = max(right + step, 0)
            struct.pack_into("<H", image, offset, value)
            try:
                allocation = read(image)
            except NotUnderstoodError:
                continue
            assert not needed - allocation.allocated, f"{value} at {offset}"
        struct.pack_into("<H", image, offset, right)
    assert read(image).allocated == needed


@each_small
def test_garbage_in_metadata_is_refused_or_harmless(image: bytearray) -> None:
    """Many changed bytes: never another exception, never a range outside of the volume."""
    layout = bpb(image)
    chance = random.Random(8)
    refused = 0
    for _ in range(250):
        changes: list[tuple[int, bytes]] = []
        for _ in range(chance.choice((1, 2, 8))):
            anywhere = chance.randrange(layout.data + layout.cluster)
            at = chance.choice((chance.randrange(11, 64), anywhere))
            length = chance.choice((1, 2, 4, 64))
            contents = (chance.randbytes(length), bytes(length), b"\xff" * length)
            changes.append((at, bytes(image[at : at + length])))
            image[at : at + length] = chance.choice(contents)
        try:
            allocation = read(image)
        except NotUnderstoodError:
            refused += 1
        else:
            assert allocation.allocated.end <= allocation.size <= len(image)
        for at, content in reversed(changes):
            image[at : at + len(content)] = content
    assert refused > 100


def test_garbage_is_refused() -> None:
    chance = random.Random(9)
    for _ in range(200):
        image = bytearray(chance.randbytes(8192))
        image[0], image[510:512] = 0xEB, b"\x55\xaa"
        image[11:22] = struct.pack("<HBHBHHB", 512, 1, chance.randrange(1, 5), 2, 16, 16, 0xF8)
        with pytest.raises(NotUnderstoodError):
            read(image)


def fat32_boot(sector: int, per_cluster: int, fat_sectors: int, clusters: int) -> bytes:
    """A boot sector with 32 reserved sectors, two tables and its backup in sector 6."""
    sectors = 32 + 2 * fat_sectors + clusters * per_cluster
    shared = (sector, per_cluster, 32, 2, 0, 0, 0xF8, 0, 63, 255, 0, sectors)
    boot = struct.pack("<3s8sHBHBHHBHHHII", b"\xeb\x58\x90", b"", *shared)
    boot += struct.pack("<IHHIHH12sBBB", fat_sectors, 0, 0, 2, 1, 6, b"", 128, 0, 0x29)
    return boot.ljust(510, b"\0") + b"\x55\xaa"


class HugeVolume:
    """2 TiB of FAT32 in clusters of 32 KiB, with both tables fragmented all over."""

    def __init__(self) -> None:
        self.size = 2**41
        self.sector_size = 512
        self.fat = 524288 * 512
        self.data = 32 * 512 + 2 * self.fat
        self.clusters = (2**32 - 1 - self.data // 512) // 64
        self.boot = fat32_boot(512, 64, 524288, self.clusters)
        chance = random.Random(10)
        chains = b"".join(
            b"\x05\0\0\0" * chance.randrange(1, 100)
            + b"\xff\xff\xff\x0f"
            + bytes(4 * chance.randrange(1, 60))
            for _ in range(8192)
        )
        self.pattern = chains * (8 * MIB // len(chains) + 1)

    def read(self, offset: int, size: int) -> bytes:
        if offset in (0, 6 * 512, 6 * 4096):
            return self.boot
        if offset >= self.data:
            return b"LABEL      \x08".ljust(size, b"\0")
        place = (offset - 32 * 512) % self.fat
        if place == 0:
            return b"\xf8\xff\xff\x0f\xff\xff\xff\x0f"
        start = place % (4 * MIB)
        return self.pattern[start : start + size]


def test_a_fragmented_volume_of_2_tib_takes_seconds() -> None:
    volume = HugeVolume()
    begin = time.perf_counter()
    allocation = read_allocation("vfat", volume)
    seconds = time.perf_counter() - begin
    assert volume.clusters > 67_000_000
    assert len(allocation.allocated) > 800_000
    assert seconds < 10, "about 2 s on an idle machine"
    entries = bitarray(endian="little")
    piece = volume.read(32 * 512 + 8, MIB)
    entries.pack(bytes(map(any, zip(*[iter(piece)] * 4, strict=True))))
    builder = ExtentsBuilder()
    builder.add_bitmap(entries.tobytes(), len(entries), 32768, volume.data)
    end = volume.data + len(entries) * 32768
    assert allocation.allocated.clip(volume.data, end) == builder.build()


def test_more_clusters_than_fat32_can_number() -> None:
    volume = HugeVolume()
    volume.size = 2**44
    for clusters, reason in ((0x0FFFFFF5, "media type"), (0x0FFFFFF6, "more clusters than")):
        volume.boot = fat32_boot(4096, 8, 262144, clusters)
        with pytest.raises(NotUnderstoodError, match=reason):
            read_allocation("vfat", volume)
