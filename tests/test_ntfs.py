"""NTFS volumes made by mkfs.ntfs and filled by ntfs-3g, compared with what others' tools say."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Allocation, read_allocation
from tests.disks import run, scrubbed
from tests.ntfs_images import NO_CLIENT, STRIDE, protect, restart_page, runs_of
from tests.volumes import BytesVolume, FileVolume

MIB = 1 << 20


def mkfs(path: Path, size: int, *options: str) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    run("mkfs.ntfs", "-q", "-F", "-Q", *options, path)
    return path


@contextmanager
def mounted(image: Path, *options: str) -> Iterator[Path]:
    """The volume through ntfs-3g, unmounted in order."""
    point = image.with_suffix(".mnt")
    point.mkdir(exist_ok=True)
    run("ntfs-3g", "-o", ",".join(("noatime", *options)), image, point)
    try:
        yield point
    finally:
        run("umount", point)
        wait_for_end_of(image)


def wait_for_end_of(image: Path) -> None:
    """Wait until no process has the image open: umount returns before ntfs-3g has written all."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_open(image):
        time.sleep(0.02)


def is_open(image: Path) -> bool:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == image:
                return True
        except OSError:
            continue
    return False


def fill(root: Path, compress: bool, seed: int = 1) -> None:
    """Small and large, fragmented, sparse, compressed and deleted files."""
    rng = random.Random(seed)
    for index in range(120):
        folder = root / f"folder{index % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"file {index}").write_bytes(rng.randbytes(rng.choice((0, 90, 3000, 30_000))))
    with (root / "one").open("wb") as one, (root / "two").open("wb") as two:
        for _ in range(40):
            for file in (one, two):
                file.write(rng.randbytes(9000))
                file.flush()
    with (root / "sparse").open("wb") as file:
        for index in range(6):
            file.seek(index * 700_000)
            file.write(b"island" * 1000)
    if compress:
        (root / "packed").mkdir()
        os.setxattr(root / "packed", "system.ntfs_attrib", struct.pack("<I", 0x0800))
        for index in range(4):
            (root / "packed" / f"text{index}").write_bytes(b"the same words again " * 20_000)
    for index in range(0, 120, 3):
        (root / f"folder{index % 7}" / f"file {index}").unlink()


def allocation_of(image: Path, sector_size: int = 512) -> Allocation:
    return read_allocation("ntfs", FileVolume(image, sector_size=sector_size))


def kept(image: Path) -> Extents:
    """What a capture would keep: what is allocated, and what lies behind the file system."""
    found = allocation_of(image)
    return found.allocated | Extents.span(found.size, image.stat().st_size)


def partclone_says(image: Path) -> Extents:
    """The used ranges of partclone's ddrescue domain file."""
    log = image.with_suffix(".domain")
    run("partclone.ntfs", "-D", "-s", image, "-o", log, "-L", "/dev/null")
    lines = re.findall(r"^(0x\w+) +(0x\w+) +\+$", log.read_text(), re.MULTILINE)
    return Extents.of((int(at, 16), int(at, 16) + int(size, 16)) for at, size in lines)


def ntfsinfo(image: Path, field: str) -> int:
    (value,) = re.findall(rf"\s{field}: (\d+)", run("ntfsinfo", "-m", "-f", image))
    return int(value)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def check_scrubbed_copy_is_complete(image: Path) -> None:
    """Nothing that a driver can read may be missing from what a capture keeps."""
    with mounted(image, "ro") as root:
        wanted = contents(root)
    with mounted(scrubbed(image, kept(image)), "ro") as root:
        assert contents(root) == wanted
    assert wanted


class Editor:
    """Changes structures of a volume in memory, keeping their protection intact."""

    def __init__(self, image: Path) -> None:
        self.data = bytearray(image.read_bytes())
        self.volume = BytesVolume(self.data)
        sector, per_cluster = struct.unpack_from("<HB", self.data, 11)
        self.cluster = sector * per_cluster
        self.mft, self.mirror = struct.unpack_from("<QQ", self.data, 48)
        size = struct.unpack_from("<b", self.data, 64)[0]
        self.record_size = 1 << -size if size < 0 else size * self.cluster
        (self.log,) = (lcn * self.cluster for lcn, _ in runs_of(image, 2))
        (self.bitmap,) = (lcn * self.cluster for lcn, _ in runs_of(image, 6))

    def allocation(self) -> Allocation:
        return read_allocation("ntfs", self.volume)

    def edit(self, number: int, change: Callable[[bytearray], None]) -> None:
        """Change the MFT record of a contiguous MFT, and its mirror."""
        at = self.mft * self.cluster + number * self.record_size
        record = unprotect(self.data[at : at + self.record_size])
        change(record)
        block = protect(record)
        self.data[at : at + len(block)] = block
        if number < 4:
            at = self.mirror * self.cluster + number * self.record_size
            self.data[at : at + len(block)] = block

    def edit_attribute(
        self, number: int, kind: int, change: Callable[[bytearray, int], None], name: str = ""
    ) -> None:
        """Change the first attribute of this kind and name; `change` gets record and offset."""

        def find(record: bytearray) -> None:
            (at,) = struct.unpack_from("<H", record, 20)
            while True:
                found, length = struct.unpack_from("<II", record, at)
                assert found != 0xFFFFFFFF
                name_length, name_at = struct.unpack_from("<BH", record, at + 9)
                found_name = record[at + name_at : at + name_at + 2 * name_length]
                if found == kind and found_name == name.encode("utf-16-le"):
                    change(record, at)
                    return
                at += length

        self.edit(number, find)

    def write_log(self, *pages: bytes) -> None:
        for page in pages:
            assert len(page) == 4096
        self.data[self.log : self.log + 4096 * len(pages)] = b"".join(pages)


def unprotect(block: bytearray) -> bytearray:
    usa_ofs, usa_count = struct.unpack_from("<HH", block, 4)
    for index in range(1, usa_count):
        block[index * STRIDE - 2 : index * STRIDE] = block[usa_ofs + 2 * index :][:2]
    return block


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small volume in order, with files of all kinds; tests copy it before changing it."""
    image = mkfs(tmp_path_factory.mktemp("ntfs") / "filled.img", 24 * MIB)
    with mounted(image, "compression") as root:
        fill(root, compress=True)
    return image


@pytest.fixture
def editor(filled: Path) -> Editor:
    return Editor(filled)


GEOMETRIES = [
    pytest.param(("-c", "512"), 32 * MIB, id="cluster-512"),
    pytest.param(("-c", "1024"), 32 * MIB, id="cluster-1K"),
    pytest.param(("-c", "4096"), 64 * MIB + 13 * 512, id="cluster-4K"),
    pytest.param(("-c", "65536"), 96 * MIB + 77 * 512, id="cluster-64K"),
    pytest.param(("-c", "131072"), 128 * MIB, id="cluster-128K"),
    pytest.param(("-c", "2097152"), 640 * MIB + 5 * 512, id="cluster-2M"),
    pytest.param(("-s", "4096", "-c", "4096"), 64 * MIB, id="sector-4096"),
    pytest.param(("-s", "4096", "-c", "65536"), 96 * MIB + 3 * 4096, id="sector-4096-cluster-64K"),
]


@pytest.mark.parametrize(("options", "size"), GEOMETRIES)
def test_equals_what_partclone_and_ntfsinfo_say(
    tmp_path: Path, options: tuple[str, ...], size: int
) -> None:
    image = mkfs(tmp_path / "volume.img", size, *options)
    cluster = int(options[-1])
    with mounted(image, "compression") as root:
        fill(root, compress=cluster <= 4096)
    before = image.read_bytes() if size < 100 * MIB else b""
    sector_size = 4096 if "-s" in options else 512
    found = allocation_of(image, sector_size)
    clusters = ntfsinfo(image, "Volume Size in Clusters")
    end = clusters * cluster
    in_clusters = found.allocated.clip(0, end)
    assert in_clusters == partclone_says(image).clip(0, end)
    assert in_clusters.total == (clusters - ntfsinfo(image, "Free Clusters")) * cluster
    assert found.notes == ()
    # All behind the last cluster is kept, with the backup boot sector as the last.
    assert found.size == size // sector_size * sector_size
    assert found.allocated.covers(end, found.size)
    backup = FileVolume(image).read(found.size - sector_size, 512)
    assert backup == FileVolume(image).read(0, 512)
    assert not before or before == image.read_bytes()


def test_every_file_survives_when_all_else_is_garbage(filled: Path) -> None:
    check_scrubbed_copy_is_complete(filled)
    run("ntfsfix", "-n", scrubbed(filled, kept(filled)))


def test_smaller_than_its_partition(filled: Path, tmp_path: Path) -> None:
    larger = Path(shutil.copyfile(filled, tmp_path / "larger.img"))
    with larger.open("r+b") as file:
        file.truncate(40 * MIB)
    assert allocation_of(larger) == allocation_of(filled)
    assert allocation_of(filled).size == 24 * MIB


def test_without_room_for_the_backup_boot_sector(editor: Editor) -> None:
    del editor.data[-512:]
    found = editor.allocation()
    assert found.size == len(editor.data)
    assert found.allocated.end == found.size


def test_fragmented_mft_and_bitmap_of_many_runs(tmp_path: Path) -> None:
    """Holes of three sectors, filled with empty files: the MFT grows into hundreds of runs."""
    image = mkfs(tmp_path / "volume.img", 12 * MIB, "-c", "512")
    with mounted(image) as root:
        names = (root / f"f{index}" for index in range(100_000))
        written: list[Path] = []
        with pytest.raises(OSError, match="No space"):
            for name in names:
                written.append(name)
                name.write_bytes(b"q" * 1500)
        for name in written[::2]:
            name.unlink(missing_ok=True)
        with pytest.raises(OSError, match="No space"):
            for index in range(100_000):
                (root / f"r{index}").touch()
    assert "$ATTRIBUTE_LIST" in run("ntfsinfo", "-i", "0", "-v", image)
    (runs,) = re.findall(r"Total runs: (\d+)", run("ntfsinfo", "-i", "0", "-v", image))
    assert int(runs) > 300
    clusters = ntfsinfo(image, "Volume Size in Clusters")
    found = allocation_of(image).allocated.clip(0, clusters * 512)
    assert found == partclone_says(image).clip(0, clusters * 512)
    assert len(found) > 200
    # Without one of its extension records $MFT cannot be put together.
    data = bytearray(image.read_bytes())
    at = [m.start() for m in re.finditer(b"FILE0", data) if is_extension_of_mft(data, m.start())]
    assert at
    for position in at:
        changed = data[:]
        changed[position : position + 4] = b"BAAD"
        with pytest.raises(NotUnderstoodError):
            read_allocation("ntfs", BytesVolume(changed))


def is_extension_of_mft(data: bytearray, at: int) -> bool:
    flags, base = struct.unpack_from("<H8xQ", data, at + 22)
    return bool(flags & 1) and base == 1 << 48


def test_bitmap_older_than_the_mft(filled: Path, tmp_path: Path) -> None:
    """Power went after the MFT was written and before the bitmap was: the log says nothing."""
    image = Path(shutil.copyfile(filled, tmp_path / "stale.img"))
    old = Editor(image)
    before = old.allocation().allocated
    with mounted(image) as root:
        for index in range(30):
            (root / f"new{index}").write_bytes(os.urandom(50_000))
    new = allocation_of(image).allocated
    with image.open("r+b") as file:
        file.seek(old.bitmap)
        file.write(old.data[old.bitmap : old.bitmap + 4096])
    found = allocation_of(image)
    assert found.allocated == new
    missing = (new - before).total // 4096
    assert missing >= 30 * 13
    assert found.notes == (f"{missing} clusters of files are not marked as used; they are kept",)
    check_scrubbed_copy_is_complete(image)


def test_killed_while_it_writes(filled: Path, tmp_path: Path) -> None:
    image = Path(shutil.copyfile(filled, tmp_path / "killed.img"))
    point = tmp_path / "mnt"
    point.mkdir()
    driver = subprocess.Popen(["ntfs-3g", "-o", "no_detach,big_writes", image, point])
    try:
        while not point.is_mount():
            time.sleep(0.02)
        with pytest.raises(OSError):
            for index in range(2000):
                (point / f"new{index}").write_bytes(os.urandom(20_000))
                if index == 150:
                    driver.kill()
    finally:
        driver.kill()
        driver.wait()
        run("umount", "-l", point)
    check_scrubbed_copy_is_complete(image)
    found = allocation_of(image).allocated
    inodes = [int(n) for n in re.findall(r"Inode (\d+) ", run("ntfscluster", "-fqc0-6142", image))]
    assert len(inodes) > 150
    for inode in inodes[::10]:
        for lcn, length in runs_of(image, inode):
            assert found.covers(lcn * 4096, (lcn + length) * 4096)


def test_dirty_flag_is_noted(editor: Editor) -> None:
    clean = editor.allocation()
    set_volume_flags(editor, 0x0001)
    found = editor.allocation()
    assert found.notes == ("volume is marked as dirty: windows will check it",)
    assert found.allocated == clean.allocated


def set_volume_flags(editor: Editor, flags: int) -> None:
    def change(record: bytearray, at: int) -> None:
        (value_at,) = struct.unpack_from("<H", record, at + 20)
        struct.pack_into("<H", record, at + value_at + 10, flags)

    editor.edit_attribute(3, 0x70, change)


@pytest.mark.parametrize("version", [(1, 2), (3, 0), (3, 1)])
def test_known_versions(editor: Editor, version: tuple[int, int]) -> None:
    set_version(editor, version)
    assert editor.allocation().allocated


@pytest.mark.parametrize("version", [(1, 1), (2, 0), (3, 2), (4, 0)])
def test_unknown_versions(editor: Editor, version: tuple[int, int]) -> None:
    set_version(editor, version)
    with pytest.raises(NotUnderstoodError, match=r"version \d\.\d is not known"):
        editor.allocation()


def set_version(editor: Editor, version: tuple[int, int]) -> None:
    def change(record: bytearray, at: int) -> None:
        (value_at,) = struct.unpack_from("<H", record, at + 20)
        record[at + value_at + 8 : at + value_at + 10] = bytes(version)

    editor.edit_attribute(3, 0x70, change)


def test_unknown_volume_flag(editor: Editor) -> None:
    set_volume_flags(editor, 0x0400)
    with pytest.raises(NotUnderstoodError, match="flags 0x0400"):
        editor.allocation()


CLEAN = restart_page(flags=2)
OPEN = restart_page()

CLEAN_LOGS = {
    "clean flag, as Windows XP and later": (CLEAN, CLEAN),
    "closed, as Windows 2000": (restart_page(in_use=NO_CLIENT),) * 2,
    "the second copy is newer": (OPEN, restart_page(lsn=0x100001, flags=2)),
    "the first copy is newer": (restart_page(lsn=0x100001, flags=2), OPEN),
}
OTHER_LOGS = {
    "open": ((OPEN, OPEN), "did not shut the volume down"),
    "copies of one age contradict": ((CLEAN, OPEN), "did not shut the volume down"),
    "newer copy is open": ((CLEAN, restart_page(lsn=0x100001)), "did not shut"),
    "windows 8": ((restart_page(version=(2, 0), flags=2),) * 2, "version 2.0"),
    "unknown version": ((restart_page(version=(1, 2), flags=2),) * 2, "1.2 is not known"),
    "chkdsk": ((restart_page(magic=b"CHKD", flags=2),) * 2, "no restart page"),
    "no second copy": ((CLEAN, b"\xff" * 4096), "no restart page"),
    "no first copy": ((b"\xff" * 4096, CLEAN), "no restart page"),
    "torn": ((CLEAN, CLEAN[:-2] + b"??"), "not written completely"),
    "size": ((restart_page(flags=2, file_size=3 * MIB),) * 2, "damaged restart area"),
    "clients": ((restart_page(flags=2, clients=300),) * 2, "damaged restart area"),
    "client index": ((restart_page(flags=2, in_use=1),) * 2, "damaged restart area"),
}


@pytest.mark.parametrize("log", CLEAN_LOGS.values(), ids=CLEAN_LOGS)
def test_log_of_a_volume_in_order(editor: Editor, log: tuple[bytes, ...]) -> None:
    wanted = editor.allocation()
    editor.write_log(*log)
    assert editor.allocation() == wanted


@pytest.mark.parametrize(("log", "reason"), OTHER_LOGS.values(), ids=OTHER_LOGS)
def test_log_to_be_replayed(editor: Editor, log: tuple[bytes, ...], reason: str) -> None:
    editor.write_log(*log)
    with pytest.raises(NotUnderstoodError, match=reason):
        editor.allocation()


@pytest.mark.parametrize("is_clean", [True, False])
def test_ntfs_3g_reads_these_restart_pages_alike(
    editor: Editor, tmp_path: Path, is_clean: bool
) -> None:
    """The pages that the tests make are judged by another's eyes too."""
    editor.write_log(*((CLEAN, CLEAN) if is_clean else (OPEN, OPEN)))
    image = tmp_path / "log.img"
    image.write_bytes(editor.data)
    point = tmp_path / "mnt"
    point.mkdir()
    done = subprocess.run(
        ["ntfs-3g", "-o", "norecover", image, point], capture_output=True, text=True
    )
    if done.returncode == 0:
        run("umount", point)
    assert ("unclean" in done.stderr) != is_clean


SLEEPING = [b"hibr", b"HIBR", b"RSTR", b"wake"]


@pytest.mark.parametrize("crowd", [0, 300], ids=["index root", "index blocks"])
def test_hibernated(tmp_path: Path, crowd: int) -> None:
    image = mkfs(tmp_path / "windows.img", 16 * MIB)
    with mounted(image) as root:
        for index in range(crowd):
            (root / f"a long enough name {index:04} ü").touch()
        (root / "sub").mkdir()
        (root / "sub" / "hiberfil.sys").write_bytes(b"hibr" * 2048)
        (root / "not hiberfil.sys").write_bytes(b"hibr" * 2048)
    assert allocation_of(image).notes == ()
    for signature in SLEEPING:
        with mounted(image) as root:
            (root / "HiberFil.sys").write_bytes(signature.ljust(8192, b"\0"))
        with pytest.raises(NotUnderstoodError, match="hibernated"):
            allocation_of(image)
        # As after a proper shutdown, and without the file.
        with mounted(image) as root:
            (root / "HiberFil.sys").write_bytes(bytes(8192))
        assert allocation_of(image).notes == ()
        with mounted(image) as root:
            (root / "HiberFil.sys").write_bytes(b"hibr")
        with pytest.raises(NotUnderstoodError, match="hibernated"):
            allocation_of(image)
        with mounted(image) as root:
            (root / "HiberFil.sys").unlink()
        assert allocation_of(image).notes == ()


def test_bad_clusters_are_noted_and_kept(editor: Editor) -> None:
    """Two clusters, marked in $Bitmap, as real runs of the sparse stream $Bad."""
    clusters = struct.unpack_from("<Q", editor.data, 40)[0] * 512 // 4096
    bad = clusters - 1000
    assert bad * 4096 not in editor.allocation().allocated

    def change(record: bytearray, at: int) -> None:
        (pairs_at,) = struct.unpack_from("<H", record, at + 32)
        (length,) = struct.unpack_from("<I", record, at + 4)
        pairs = struct.pack("<BHBBH", 0x02, bad, 0x21, 2, bad)
        pairs += struct.pack("<BH", 0x02, clusters - bad - 2) + b"\0"
        more = (len(pairs) - (length - pairs_at) + 7) // 8 * 8
        record[at + length : at + length] = bytes(more)
        del record[-more:]
        struct.pack_into("<I", record, at + 4, length + more)
        struct.pack_into("<I", record, 24, struct.unpack_from("<I", record, 24)[0] + more)
        record[at + pairs_at : at + pairs_at + len(pairs)] = pairs

    editor.edit_attribute(8, 0x80, change, "$Bad")
    with pytest.raises(NotUnderstoodError, match="mark the clusters of mft record 8"):
        editor.allocation()
    for cluster in (bad, bad + 1):
        editor.data[editor.bitmap + cluster // 8] |= 1 << cluster % 8
    found = editor.allocation()
    assert found.notes == ("2 bad clusters",)
    assert found.allocated.covers(bad * 4096, (bad + 2) * 4096)


def test_bits_behind_the_last_cluster_mean_nothing(editor: Editor) -> None:
    wanted = editor.allocation()
    clusters = (len(editor.data) - 512) // 4096
    assert clusters % 8
    editor.data[editor.bitmap + clusters // 8] |= 0xFF << clusters % 8 & 0xFF
    assert editor.allocation() == wanted
    editor.data[editor.bitmap + clusters // 8] &= 0xFF >> -clusters % 8
    assert editor.allocation() == wanted


def put(at: int, layout: str, *values: int | bytes) -> Callable[[Editor], None]:
    return lambda editor: struct.pack_into(layout, editor.data, at, *values)


def in_attribute(
    number: int, kind: int, at: int, layout: str, *values: int, name: str = ""
) -> Callable[[Editor], None]:
    def change(record: bytearray, offset: int) -> None:
        struct.pack_into(layout, record, offset + at, *values)

    return lambda editor: editor.edit_attribute(number, kind, change, name)


def in_record(number: int, at: int, layout: str, *values: int) -> Callable[[Editor], None]:
    return lambda editor: editor.edit(
        number, lambda record: struct.pack_into(layout, record, at, *values)
    )


def in_mft(at: int, layout: str, *values: int | bytes) -> Callable[[Editor], None]:
    def change(editor: Editor) -> None:
        struct.pack_into(layout, editor.data, editor.mft * editor.cluster + at, *values)

    return change


def unmark(number: int) -> Callable[[Editor], None]:
    """Clear the bit of the first cluster of a system file."""

    def change(editor: Editor) -> None:
        lcn = {0: editor.mft, 1: editor.mirror, 2: editor.log // 4096, 7: 0}[number]
        editor.data[editor.bitmap + lcn // 8] &= ~(1 << lcn % 8)

    return change


def at_pairs(number: int, pairs: bytes) -> Callable[[Editor], None]:
    def change(record: bytearray, at: int) -> None:
        (pairs_at,) = struct.unpack_from("<H", record, at + 32)
        record[at + pairs_at : at + pairs_at + len(pairs)] = pairs

    return lambda editor: editor.edit_attribute(number, 0x80, change)


def empty(number: int) -> Callable[[Editor], None]:
    """Leave no content, in a consistent way."""

    def change(record: bytearray, at: int) -> None:
        struct.pack_into("<q", record, at + 24, -1)
        struct.pack_into("<qqq", record, at + 40, 0, 0, 0)
        (pairs_at,) = struct.unpack_from("<H", record, at + 32)
        record[at + pairs_at] = 0

    return lambda editor: editor.edit_attribute(number, 0x80, change)


DAMAGE: dict[str, tuple[Callable[[Editor], None], str]] = {
    "oem id": (put(3, "8s", b"-FVE-FS-"), "no ntfs boot sector"),
    "boot marker": (put(510, "<H", 0), "no ntfs boot sector"),
    "fat values": (put(16, "<B", 2), "values of a FAT volume"),
    "sector size 0": (put(11, "<H", 0), "sector size 0"),
    "sector size 513": (put(11, "<H", 513), "sector size 513"),
    "sectors per cluster": (put(13, "<B", 3), "cluster of 3 sectors"),
    "no sectors per cluster": (put(13, "<B", 0), "cluster of 0 sectors"),
    "cluster of 4 MiB": (put(11, "<HB", 1024, 244), "cluster size 4194304"),
    "too large": (put(40, "<Q", 24 * MIB // 512 + 1), "larger than its volume"),
    "negative size": (put(40, "<q", -8), "larger than its volume"),
    "mft outside": (put(48, "<Q", 1 << 40), "outside the volume"),
    "mft elsewhere": (put(48, "<Q", 1), "mft record 0 is"),
    "mirror elsewhere": (put(56, "<Q", 1), "MFTMirr is not where"),
    "record size": (put(64, "<b", 3), "record size"),
    "record size 0": (put(64, "<b", 0), "record size"),
    "record size 2^128": (put(64, "<b", -128), "record size"),
    "other record size": (put(64, "<b", -12), "mft record 0"),
    "mft record torn": (in_mft(510, "<H", 0xDEAD), "not written completely"),
    "mft record signature": (in_mft(6 * 1024, "4s", b"BAAD"), "mft record 6 is damaged"),
    "update sequence count": (in_mft(6, "<H", 99), "update sequence|damaged"),
    "mirror differs": (in_mft(2 * 1024 + 8, "<Q", 77), "MFTMirr differs"),
    "file record torn": (in_mft(70 * 1024 + 510, "<H", 0xDEAD), "70 was not written completely"),
    "record number": (in_record(6, 44, "<I", 7), "record 6 is in the wrong place"),
    "not in use": (in_record(6, 22, "<H", 0), "record 6 is not in use"),
    "not a base record": (in_record(6, 32, "<Q", 5), "not the base record"),
    "bytes in use": (in_record(6, 24, "<I", 1 << 31), "record 6 is damaged"),
    "bytes allocated": (in_record(6, 28, "<I", 4096), "record 6 is damaged"),
    "attribute offset": (in_record(6, 20, "<H", 0xFFF8), "record 6 has damaged attributes"),
    "attribute length 0": (in_attribute(6, 0x80, 4, "<I", 0), "damaged attributes"),
    "attribute length": (in_attribute(6, 0x80, 4, "<I", 0xFFFFFFF8), "damaged attributes"),
    "attribute name": (in_attribute(6, 0x80, 10, "<H", 0xFFF0), "."),
    "attribute order": (in_attribute(6, 0x80, 0, "<I", 0x10), "damaged attributes"),
    "attribute type": (in_attribute(6, 0x80, 0, "<I", 0x84), "no content"),
    "resident": (in_attribute(6, 0x80, 8, "<B", 0), "damaged|no content"),
    "resident value": (in_attribute(3, 0x70, 16, "<I", 0xFFFFFFFF), "damaged attributes"),
    "lowest vcn": (in_attribute(6, 0x80, 16, "<q", -1), "damaged attributes"),
    "highest vcn": (in_attribute(6, 0x80, 24, "<q", 1 << 40), "does not map"),
    "runs start late": (in_attribute(6, 0x80, 16, "<qq", 1, 1), "gap"),
    "pairs offset": (in_attribute(6, 0x80, 32, "<H", 0xFFFF), "damaged attributes"),
    "initialised size": (in_attribute(6, 0x80, 56, "<q", 1 << 40), "contradict"),
    "bitmap too short": (in_attribute(6, 0x80, 48, "<qq", 100, 100), "too short"),
    "bitmap not mapped": (in_attribute(6, 0x80, 48, "<qq", 8192, 8192), "not fully allocated"),
    "bitmap sparse": (at_pairs(6, b"\x01\x01\x00"), "not fully allocated"),
    "bitmap outside": (at_pairs(6, b"\x31\x01\xff\xff\x7f\x00"), "points outside"),
    "bitmap before the start": (at_pairs(6, b"\x11\x01\x80\x00"), "points outside"),
    "run of negative length": (at_pairs(6, b"\x11\xff\x10\x00"), "runlist is damaged"),
    "run of no length": (at_pairs(6, b"\x10\x10\x00"), "runlist is damaged"),
    "run of 15-byte numbers": (at_pairs(6, b"\xff\x01\x10\x00"), "runlist is damaged"),
    "runlist without an end": (at_pairs(6, b"\x11\x01\x10\x11\x01\x10\x11\x01"), "runlist"),
    "bitmap elsewhere": (at_pairs(6, b"\x11\x01\x40\x00"), "does not mark"),
    "mft unmarked": (unmark(0), "does not mark the clusters of mft record 0"),
    "mirror unmarked": (unmark(1), "does not mark the clusters of mft record 1"),
    "log unmarked": (unmark(2), "does not mark the clusters of mft record 2"),
    "boot unmarked": (unmark(7), "does not mark the clusters of mft record 7"),
    "boot elsewhere": (at_pairs(7, b"\x11\x02\x01\x00"), "does not hold the boot sector|mark"),
    "empty mft": (empty(0), "shorter than what should be in it"),
    "empty mirror": (empty(1), "MFTMirr is not fully allocated"),
    "empty log": (empty(2), "LogFile is not fully allocated"),
    "empty bitmap": (empty(6), "Bitmap is not fully allocated"),
    "empty boot": (empty(7), "does not hold the boot sector"),
    "root index": (in_attribute(5, 0x90, 0, "<I", 0x91, name="$I30"), "root directory is damaged"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused(editor: Editor, damage: Callable[[Editor], None], reason: str) -> None:
    damage(editor)
    with pytest.raises(NotUnderstoodError, match=reason):
        editor.allocation()


def test_unreadable_metadata_is_reported_as_such(filled: Path) -> None:
    class Failing(FileVolume):
        def read(self, offset: int, size: int) -> bytes:
            if offset:
                raise ReadFailedError("input/output error")
            return super().read(offset, size)

    with pytest.raises(ReadFailedError):
        read_allocation("ntfs", Failing(filled))


def test_mft_larger_than_ntfs_allows_is_not_scanned(editor: Editor) -> None:
    """A sparse image could claim an $MFT of terabytes, and every record unused."""

    class Huge(BytesVolume):
        @property
        def size(self) -> int:
            return 1 << 44

    def change(record: bytearray, at: int) -> None:
        clusters = (1 << 30) + 1
        struct.pack_into("<q", record, at + 24, clusters - 1)
        struct.pack_into("<qqq", record, at + 40, *(clusters * 4096,) * 3)
        (pairs_at,) = struct.unpack_from("<H", record, at + 32)
        struct.pack_into("<BIHB", record, at + pairs_at, 0x24, clusters, editor.mft, 0)

    editor.edit_attribute(0, 0x80, change)
    struct.pack_into("<Q", editor.data, 40, (1 << 44) // 512)
    with pytest.raises(NotUnderstoodError, match="larger than ntfs allows"):
        read_allocation("ntfs", Huge(editor.data))


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096])
def test_tiny_volumes(filled: Path, size: int) -> None:
    with pytest.raises(NotUnderstoodError):
        read_allocation("ntfs", BytesVolume(filled.read_bytes()[:size]))


def test_flipped_bytes_never_lose_a_cluster(editor: Editor) -> None:
    """Any answer but a refusal has to hold all that the volume in order has in use."""
    rng = random.Random(2024)
    length = len(editor.data)
    wanted = editor.allocation().allocated
    regions = [
        range(96),
        range(editor.mft * 4096, editor.mft * 4096 + 12 * 1024),
        range(editor.mft * 4096, editor.mft * 4096 + 200 * 1024),
        range(editor.mirror * 4096, editor.mirror * 4096 + 4096),
        range(editor.bitmap, editor.bitmap + 768),
        range(editor.log, editor.log + 8192),
        *(range(lcn * 4096, (lcn + n) * 4096) for lcn, n in runs_of_root(editor)),
    ]
    editor.write_log(CLEAN, CLEAN)
    answers = refusals = 0
    for _ in range(1500):
        region = rng.choice(regions)
        undo: list[tuple[int, int]] = []
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.choice(region)
            undo.append((at, editor.data[at]))
            editor.data[at] = rng.choice((0, 0xFF, rng.randrange(256), editor.data[at] ^ 1))
        try:
            found = editor.allocation()
        except NotUnderstoodError:
            refusals += 1
        else:
            answers += 1
            assert not wanted - (found.allocated | Extents.span(found.size, length)), undo
        for at, old in reversed(undo):
            editor.data[at] = old
    assert answers > 100
    assert refusals > 100


def runs_of_root(editor: Editor) -> list[tuple[int, int]]:
    """The root directory's index blocks, found by their signature."""
    return [
        (at // 4096, 1)
        for at in range(0, len(editor.data), 4096)
        if editor.data.startswith(b"INDX", at)
    ]


def test_garbage_behind_a_good_start(editor: Editor) -> None:
    rng = random.Random(7)
    start = editor.mft * 4096
    for size in (0, 512, 1024, 1500, 4096, 7 * 1024, 30 * 1024):
        data = editor.data[:start] + editor.data[start : start + size]
        data += rng.randbytes(len(editor.data) - len(data))
        with pytest.raises(NotUnderstoodError):
            read_allocation("ntfs", BytesVolume(data))
