"""exFAT volumes from mkfs.exfat, filled through FUSE, against partclone, fsck.exfat and the bitmap."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from tests.command import imager, info
from tests.command import volumes as volumes_of
from tests.comparing import disk_facts
from tests.exfat_images import (
    CASES,
    MIB,
    content,
    expected,
    fill,
    fsck,
    make,
    opened,
    places,
    seal,
)
from tests.loop import LoopDevice, mounted, run
from tests.oracles import allocated_by_partclone
from tests.small_disk import garbage_device, partition
from tests.volumes import BytesVolume, FileVolume

VOLUME_FLAGS = 106
Volumes = Callable[[str], Path]
each = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Volumes:
    """The image of a case, filled on first use."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("exfat")
            made[name] = make(folder / "volume.img", CASES[name])
            with opened(made[name], folder / "place", CASES[name]) as place:
                fill(place, CASES[name].size // 2, len(made))
        return made[name]

    return get


@pytest.fixture
def image(volumes: Volumes) -> bytearray:
    """A small volume, to be spoilt."""
    return bytearray(volumes("smallest").read_bytes())


def read(image: bytes | bytearray, sector_size: int = 512) -> Allocation:
    return read_allocation("exfat", BytesVolume(image, sector_size))


def reason(image: bytes | bytearray) -> str:
    with pytest.raises(NotUnderstoodError) as caught:
        read(image)
    return str(caught.value)


@each
def test_allocation_is_partclones_and_the_bitmaps(
    name: str, volumes: Volumes, tmp_path: Path
) -> None:
    path = volumes(name)
    before = path.read_bytes()
    allocation = read_allocation("exfat", FileVolume(path))
    at = places(before)
    assert allocation.size == at.size
    assert allocation.notes == ()
    assert allocation.allocated == expected(before)
    assert len(allocation.allocated) > 2, "the volume was meant to have holes"
    clusters_end = at.offset(at.clusters + 2)
    theirs = allocated_by_partclone("exfat", path, tmp_path)
    assert allocation.allocated.clip(0, clusters_end) == theirs.clip(0, clusters_end)
    assert path.read_bytes() == before


@each
def test_a_copy_of_the_allocated_ranges_has_every_file(
    name: str, volumes: Volumes, tmp_path: Path
) -> None:
    path, case = volumes(name), CASES[name]
    volume = FileVolume(path)
    copy = tmp_path / "copy.img"
    chance = random.Random(1)
    with copy.open("wb") as file:
        for _ in range(volume.size >> 20):
            file.write(chance.randbytes(1 << 20))
        file.truncate(volume.size)
        for start, end in read_allocation("exfat", volume).allocated:
            file.seek(start)
            file.write(volume.read(start, end - start))
    assert fsck(copy)
    with opened(copy, tmp_path / "ours", case) as ours:
        found = content(ours)
    original = tmp_path / "original.img"
    original.write_bytes(path.read_bytes())
    with opened(original, tmp_path / "theirs", case) as theirs:
        assert found == content(theirs)
    assert len(found) > 25


def test_a_volume_in_use_is_read_and_noted(tmp_path: Path) -> None:
    """As a stick looks that is pulled out."""
    case = CASES["usual"]
    path = make(tmp_path / "volume.img", case)
    with opened(path, tmp_path / "place", case) as place:
        fill(place, case.size // 2, 3)
        image = path.read_bytes()
    assert image[VOLUME_FLAGS] & 2
    allocation = read(image)
    assert "not cleanly unmounted" in allocation.notes
    assert not expected(image) - allocation.allocated


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_stick_comes_back_over_garbage(sector_size: int, tmp_path: Path) -> None:
    size, first = 100 * MIB, MIB // sector_size
    with LoopDevice(tmp_path / "disk", size, sector_size) as device:
        partition(device.path, {1: (first, 70 * first)})
        device.scan()
        run("mkfs.exfat", "-c", "4K", device.partition(1))
        with mounted(device.partition(1), tmp_path / "place", fs_type="exfat-fuse") as place:
            fill(place, 20 * MIB, 7)
        facts = disk_facts(device, {1: "exfat"}, tmp_path)
        imager("capture", device.path, tmp_path / "image")
    (volume,) = volumes_of(info(tmp_path / "image"))
    assert volume["kind"] == "exfat"
    assert volume["stored"] == "used"
    used = volume["used"]
    assert isinstance(used, int) and used < 30 * MIB
    with garbage_device(tmp_path, size, sector_size) as target:
        imager("restore", "--yes", tmp_path / "image", target.path)
        assert disk_facts(target, {1: "exfat"}, tmp_path) == facts


def clear_bits(image: bytearray, first: int, count: int) -> None:
    at = places(image)
    for number in range(first - 2, first - 2 + count):
        image[at.bitmap + number // 8] &= ~(1 << number % 8)


def file_entries(image: bytes | bytearray) -> list[tuple[int, int, int, int]]:
    """Where the stream extensions in the root directory are: offset, flags, cluster, length."""
    at = places(image)
    start = at.offset(at.root)
    found = []
    for entry in range(start, start + at.cluster, 32):
        if image[entry] == 0xC0:
            flags, first, length = struct.unpack_from("<B18xIQ", image, entry + 1)
            found.append((entry, flags, first, length))
    return found


@pytest.fixture
def with_file(tmp_path: Path) -> bytearray:
    """A volume with one file of 10 clusters in one run, and one in two runs."""
    case = CASES["usual"]
    path = make(tmp_path / "volume.img", case)
    with opened(path, tmp_path / "place", case) as place:
        (place / "hole").write_bytes(b"h" * 4096 * 4)
        (place / "whole").write_bytes(b"w" * 4096 * 10)
        (place / "hole").unlink()
        (place / "pieces").write_bytes(b"p" * 4096 * 9)
        (place / "folder").mkdir()
        (place / "folder" / "inner").write_bytes(b"i" * 4096 * 3)
    return bytearray(path.read_bytes())


def test_files_that_the_bitmap_leaves_out_are_kept(with_file: bytearray) -> None:
    """The bits of each cluster with content are cleared: all come back by way of the directories."""
    before = read(with_file)
    assert before.notes == ()
    at = places(with_file)
    streams = [entry for entry in file_entries(with_file) if entry[2]]
    assert {flags & 2 for _, flags, _, _ in streams} == {0, 2}, "one was meant to have a chain"
    for number in range(2, at.clusters + 2):
        if with_file[at.offset(number)] in b"wpi":
            clear_bits(with_file, number, 1)
    assert expected(with_file) != before.allocated
    after = read(with_file)
    assert after.allocated == before.allocated
    assert after.notes == ("files have clusters that its bitmap does not mark",)


def test_a_bitmap_that_leaves_out_the_file_systems_own_is_none(image: bytearray) -> None:
    at = places(image)
    for number in (at.root, 2 + (at.bitmap - at.heap) // at.cluster):
        spoilt = bytearray(image)
        clear_bits(spoilt, number, 1)
        assert "does not mark" in reason(spoilt)


def test_texfat_unites_both_bitmaps(with_file: bytearray) -> None:
    """A second FAT, and a second bitmap that marks other clusters."""
    at = places(with_file)
    image = bytearray(with_file)
    (fat_length,) = struct.unpack_from("<I", image, 84)
    spare = next(
        number
        for number in range(at.root + 50, at.clusters)
        if at.offset(number) not in expected(image)
    )
    bitmap = bytearray(image[at.bitmap : at.bitmap + at.cluster])
    bitmap[-1 - (at.cluster - -(-at.clusters // 8))] |= 1
    bitmap[(spare - 2) // 8] |= 1 << (spare - 2) % 8
    image[at.offset(spare) : at.offset(spare + 1)] = bitmap
    struct.pack_into("<I", image, at.fat + 4 * spare, 0xFFFFFFFF)
    start = at.offset(at.root)
    free = next(entry for entry in range(start, start + at.cluster, 32) if image[entry] == 0)
    struct.pack_into("<BB18xIQ", image, free, 0x81, 1, spare, -(-at.clusters // 8))
    # The FAT is followed by as much room as another one takes, up to the heap.
    second = at.fat + fat_length * at.sector
    assert second + fat_length * at.sector <= at.heap
    image[second : second + fat_length * at.sector] = image[at.fat : second]
    image[110] = 2
    for flags in (0, 1):
        image[VOLUME_FLAGS] = flags
        seal(image)
        allocation = read(image)
        assert not expected(with_file) - allocation.allocated
        assert allocation.allocated.covers(at.offset(spare), at.offset(spare + 1))
    struct.pack_into("<B", image, free, 0x01)
    assert reason(image) == "it has no allocation bitmap"


def test_every_field_of_the_boot_sector_counts(image: bytearray) -> None:
    """Any flipped bit that the checksum covers is seen, in each sector of the region."""
    chance = random.Random(2)
    for _ in range(300):
        spoilt = bytearray(image)
        at = chance.randrange(12 * 512)
        if at in (106, 107, 112):
            continue
        spoilt[at] ^= 1 << chance.randrange(8)
        reason(spoilt)


@pytest.mark.parametrize(
    ("offset", "form", "value", "words"),
    [
        (11, "B", 1, "no exFAT boot sector"),
        (72, "Q", 1 << 62, "larger than its volume"),
        (80, "I", 23, "overlap"),
        (84, "I", 0xFFFFFFFF, "overlap"),
        (88, "I", 25, "overlap"),
        (92, "I", 0, "number of clusters"),
        (92, "I", 0xFFFFFFFF, "number of clusters"),
        (92, "I", 0x00FFFFFF, "too short"),
        (96, "I", 1, "outside of the volume"),
        (96, "I", 0xFFFFFFF7, "outside of the volume"),
        (104, "H", 0x0200, "unknown revision, 2.00"),
        (108, "B", 8, "sector size"),
        (108, "B", 13, "sector size"),
        (109, "B", 200, "cluster size"),
        (110, "B", 3, "number of file allocation tables"),
        (106, "B", 1, "number of file allocation tables"),
    ],
)
def test_fields_that_make_no_sense(
    image: bytearray, offset: int, form: str, value: int, words: str
) -> None:
    struct.pack_into(f"<{form}", image, offset, value)
    if image[108] == 9:
        seal(image)
    assert words in reason(image)


def test_a_volume_cut_short_is_refused(image: bytearray) -> None:
    for size in (0, 100, 511, 512, 6144, len(image) // 2, len(image) - 512):
        reason(image[:size])


def test_a_damaged_backup_is_noted(image: bytearray) -> None:
    image[12 * 512 + 80] ^= 1
    assert read(image).notes == ("its backup boot region is damaged",)


def test_sectors_smaller_than_the_disks(image: bytearray) -> None:
    with pytest.raises(NotUnderstoodError, match="smaller than the disk's"):
        read(image, 4096)


def test_another_up_case_table(image: bytearray) -> None:
    image[places(image).up_case + 7] ^= 1
    assert reason(image) == "wrong checksum of its up-case table"


def chained(with_file: bytearray) -> tuple[int, int]:
    """Offset of the stream extension of the file in pieces, and its first cluster."""
    return next(
        (entry, first)
        for entry, flags, first, length in file_entries(with_file)
        if length == 9 * 4096
    )


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (0, "outside of the volume"),
        (1, "outside of the volume"),
        (0xFFFFFFF7, "outside of the volume"),
        (0xFFFFFFFF, "ends before its file does"),
        (-1, "circle"),
    ],
)
def test_chains_that_lead_nowhere(with_file: bytearray, link: int, words: str) -> None:
    entry, first = chained(with_file)
    at = places(with_file)
    with_file[entry + 1] = 1  # with a chain
    struct.pack_into("<I", with_file, at.fat + 4 * first, first if link < 0 else link)
    assert words in reason(with_file)


def test_a_file_larger_than_the_volume(with_file: bytearray) -> None:
    entry, _ = chained(with_file)
    for length in (1 << 40, (1 << 64) - 1):
        struct.pack_into("<Q", with_file, entry + 24, length)
        assert reason(with_file) == "a file is larger than the volume"


def test_directories_that_contain_each_other(with_file: bytearray) -> None:
    """The folder's only file becomes the folder itself."""
    at = places(with_file)
    start = at.offset(at.root)
    folder = next(
        struct.unpack_from("<I", with_file, entry + 32 + 20)[0]
        for entry in range(start, start + at.cluster, 32)
        if with_file[entry] == 0x85 and with_file[entry + 4] & 0x10
    )
    inner = at.offset(folder)
    with_file[inner + 4] |= 0x10
    struct.pack_into("<B18xIQ", with_file, inner + 33, 3, folder, at.cluster)
    began = time.monotonic()
    assert reason(with_file) == "files have more clusters than the volume"
    assert time.monotonic() - began < 20


def test_an_unknown_kind_of_entry(with_file: bytearray) -> None:
    entry, _ = chained(with_file)
    for kind in (0x80, 0x84, 0x9F, 0xC2, 0xDF, 0xFF):
        with_file[entry] = kind
        assert reason(with_file) == f"unknown kind of directory entry, {kind:#04x}"


def test_damage_never_makes_the_map_smaller(image: bytearray) -> None:
    """Random bytes all over the metadata: understood only where nothing that was kept is missing.

    Where the bitmap itself is hit, the bits that were cleared are proof of nothing but themselves.
    """
    whole = read(image).allocated
    at = places(image)
    chance = random.Random(5)
    ends = [(0, 12 * 512), (at.fat, at.fat + 4096), (at.offset(at.root), at.offset(at.root + 1))]
    understood = 0
    for _ in range(1500):
        spoilt = bytearray(image)
        start, end = chance.choice(ends)
        for _ in range(chance.choice((1, 1, 2, 8))):
            spoilt[chance.randrange(start, end)] = chance.randrange(256)
        try:
            found = read(spoilt).allocated
        except NotUnderstoodError:
            continue
        understood += 1
        assert not whole - found
    assert understood > 100


def test_fragmented_chains_are_followed_across_windows(tmp_path: Path) -> None:
    """A file of 400,000 clusters in runs of odd lengths, forwards and backwards, against a loop."""
    case = CASES["usual"]._replace(size=2200 << 20)
    path = make(tmp_path / "volume.img", case)
    with path.open("r+b") as file:
        head = bytearray(file.read(64 << 20))
        at = places(head)
        chance = random.Random(6)
        runs, number = [], 1000
        while number < 400_000:
            count = chance.choice((1, 2, 3, 70_000, 17))
            runs.append(range(number, number + count))
            number += count + chance.randrange(3)
        chance.shuffle(runs)
        clusters = [cluster for piece in runs for cluster in piece]
        for cluster, following in zip(clusters, [*clusters[1:], 0xFFFFFFFF], strict=True):
            struct.pack_into("<I", head, at.fat + 4 * cluster, following)
        start = at.offset(at.root)
        free = next(entry for entry in range(start, start + at.cluster, 32) if head[entry] == 0)
        struct.pack_into("<BB30x", head, free, 0x85, 2)
        size = len(clusters) * at.cluster - 5
        struct.pack_into("<BB18xIQ", head, free + 32, 0xC0, 1, clusters[0], size)
        file.seek(0)
        file.write(head)
    allocation = read_allocation("exfat", FileVolume(path))
    files = Extents.of((at.offset(number), at.offset(number + 1)) for number in clusters)
    assert allocation.allocated == expected(head) | files
    assert allocation.notes == ("files have clusters that its bitmap does not mark",)
