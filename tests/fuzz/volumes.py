"""Small volumes for the fuzzer, made by the usual tools and as equal each time as these allow."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests import btrfs_images, exfat_images, ext_images, f2fs_images, xfs_images
from tests.disks import make_disk, put, run
from tests.ext_logs import HandMade
from tests.hfsplus_images import add_journal, populated
from tests.loop import LoopDevice
from tests.lvm_volumes import Lvm
from tests.md_volumes import Array, write_superblock
from tests.ntfs_images import restart_page, runs_of

LOGGED_BYTES = 64 << 10
"""More than the transactions that `ext_logged` writes put to use."""

_MIB = 1 << 20
_UUID = "12345678-1234-1234-1234-123456789abc"
_EXT_IDENTITY = ("-U", _UUID, "-E", f"hash_seed={_UUID}")


def ext(folder: Path, options: Sequence[str]) -> Path:
    """ext2/3/4 with files, by mke2fs alone."""
    tree = _tree(folder / "tree")
    more = ("-N", "256", "-J", "size=1") if "ext2" not in options else ("-N", "256")
    return ext_images.make(
        folder / "volume", 8 * _MIB, *_EXT_IDENTITY, "-d", str(tree), *more, *options
    )


def ext_logged(folder: Path, options: str, version: str) -> Path:
    """ext3/4 with two transactions in its journal, by debugfs; `version` chooses checksums."""
    made = HandMade(folder, f"{options} -J size=1 -N 256 {' '.join(_EXT_IDENTITY)}")
    made.log(3000)
    made.log(2000, 2001, 4000)
    made.write(version)
    return made.image


def ext_fast_commit(folder: Path) -> Path:
    """ext4 as a crash leaves it behind fast commits; needs root."""
    image = ext_images.make(
        folder / "volume", 16 * _MIB, "-t", "ext4", "-b", "1024", "-O", "fast_commit",
        "-J", "size=1,fast_commit_size=256", *_EXT_IDENTITY,
    )  # fmt: skip

    def change(point: Path) -> None:
        for file in ext_images.write_files(point, 4, 30):
            ext_images.sync(file)

    def good(copied: Path) -> bool:
        return "tag ADD_RANGE" in ext_images.run("debugfs", "-R", "logdump", copied)

    return ext_images.crash(image, "", change, good)


def fat(folder: Path, size: int, options: Sequence[str]) -> Path:
    """FAT with files, by mkfs.fat and mtools."""
    path = make_disk(folder / "volume", size)
    run("mkfs.fat", "-i", "1234abcd", "--invariant", *options, path)
    tree = _tree(folder / "tree")
    os.environ.setdefault("MTOOLS_SKIP_CHECK", "1")
    run("mcopy", "-s", "-i", path, *sorted(tree.iterdir()), "::")
    run("mdel", "-i", path, "::folder/file4")
    return path


def ntfs(folder: Path) -> Path:
    """NTFS with files, by mkfs.ntfs and ntfscp."""
    path = make_disk(folder / "volume", 8 * _MIB)
    run("mkfs.ntfs", "-q", "-F", "-Q", path)
    for file in sorted((_tree(folder / "tree") / "folder").iterdir()):
        run("ntfscp", "-f", path, file, file.name)
    return path


def ntfs_logged(folder: Path) -> Path:
    """NTFS with a log that Windows closed."""
    path = ntfs(folder)
    ((first, _),) = runs_of(path, 2)
    put(path, first * 4096, restart_page(flags=2) * 2)
    return path


def hfsplus(folder: Path, journal: bool) -> Path:
    """HFS+ with files, by xorriso; perhaps with a journal that is empty."""
    volume = populated(folder, _tree(folder / "tree"), 4000)
    if journal:
        add_journal(volume)
    path = folder / "volume"
    path.write_bytes(volume.data)
    return path


def xfs(folder: Path, crashed: bool) -> Path:
    """XFS with files; perhaps with a log that has to be replayed. Needs root."""
    return xfs_images.small_volume(folder, crashed).rename(folder / "volume")


def btrfs(folder: Path, options: str, size: int) -> Path:
    """btrfs with files, by mkfs.btrfs alone."""
    return btrfs_images.small(folder, options, size).rename(folder / "volume")


def exfat(folder: Path) -> Path:
    """exFAT with files, through FUSE; needs root."""
    case = exfat_images.CASES["smallest"]
    path = exfat_images.make(folder / "volume", case)
    with exfat_images.opened(path, folder / "place", case) as place:
        exfat_images.fill(place, case.size // 2, 1)
    return path


def f2fs(folder: Path, case: str) -> Path:
    """F2FS with files, by mkfs.f2fs and sload.f2fs."""
    path = f2fs_images.make(folder / "volume", f2fs_images.CASES[case])
    f2fs_images.fill(path, folder / "tree", 1)
    return path


def luks(folder: Path, version: int) -> Path:
    """An empty LUKS volume."""
    path = make_disk(folder / "volume", 20 * _MIB)
    key = folder / "key"
    key.write_text("x")
    words = ["--type", f"luks{version}", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    run("cryptsetup", "luksFormat", "-q", *words, "--key-file", key, path)
    return path


def lvm(folder: Path) -> Path:
    """A physical volume with five logical ones; needs root."""
    path = make_disk(folder / "volume", 64 * _MIB)
    with LoopDevice(path) as device:
        tools = Lvm(folder, (device.path,))
        tools.run("pvcreate", "-ff", "-y", device.path)
        tools.run("vgcreate", "-s", "1m", "group", device.path)
        for number in range(5):
            tools.create("group", f"volume{number}", 3 + number, device.path)
    return path


def md(folder: Path, version: str) -> Path:
    """A member of a RAID1."""
    path = make_disk(folder / "volume", 8 * _MIB)
    write_superblock(path, Array(version=version))
    return path


def swap(folder: Path) -> Path:
    """Swap space."""
    path = make_disk(folder / "volume", 2 * _MIB)
    run("mkswap", "-q", "-U", _UUID, path)
    return path


def gpt(folder: Path) -> Path:
    """A disk with a GPT."""
    path = make_disk(folder / "volume", 4 * _MIB)
    script = f"label: gpt\nlabel-id: {_UUID}\nstart=2048 size=953\nstart=3001 size=500\n"
    run("sfdisk", path, text=script)
    return path


def mbr(folder: Path) -> Path:
    """A disk with an MBR, an extended partition and two logical ones."""
    path = make_disk(folder / "volume", 8 * _MIB)
    lines = "label: dos\n,2M\n,,E\n,1M\n,1M\n"
    run("sfdisk", path, text=lines)
    return path


DISK = {24 * _MIB: "vfat", 60 * _MIB: "ext4"}
"""Where `disk` has partitions, in bytes, and of what kind."""


def disk(folder: Path) -> Path:
    """A GPT disk with two file systems, and gaps in which a lost partition is searched for."""
    path = make_disk(folder / "volume", 128 * _MIB)
    rows = "".join(f"start={at // 512} size=16384\n" for at in DISK)
    run("sfdisk", path, text=f"label: gpt\nlabel-id: {_UUID}\n{rows}")
    parts = folder / "parts"
    parts.mkdir()
    put(path, 24 * _MIB, fat(parts, 8 * _MIB, ("-F", "12", "-s", "8")).read_bytes())
    put(path, 60 * _MIB, ext(parts, ("-t", "ext4", "-b", "1024")).read_bytes())
    return path


def noise(folder: Path) -> Path:
    """Random bytes."""
    path = folder / "volume"
    path.write_bytes(random.Random(1).randbytes(_MIB))
    return path


def _tree(folder: Path) -> Path:
    """Files of many sizes in two folders."""
    chance = random.Random(2)
    shutil.rmtree(folder, ignore_errors=True)
    inner = folder / "folder" / "inner"
    inner.mkdir(parents=True)
    for number in range(12):
        place = inner.parent if number % 3 else folder
        content = chance.randbytes(chance.choice((0, 1, 700, 5000, 40_000)))
        (place / f"file{number}").write_bytes(content)
    return folder
