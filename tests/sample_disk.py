"""A sample disk as a PC has it: GPT with an EFI system partition, ext4, NTFS and swap, with files.

    | GPT | ESP (FAT32) |        ext4        |   NTFS   | swap | GPT |

`build` needs neither root nor loop devices: every file system is made at its offset in a plain file
and filled by its own tools. `fill` does it on a real block device, through mounts, with all that
only the kernel can write: owners, extended attributes, special files, what was deleted.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.disks import MIB, copy_into, make_disk, run
from tests.loop import LoopDevice, mounted

_SWAP = 8 * MIB
_WORDS = ("block", "sector", "cluster", "inode", "extent", "bitmap", "journal", "chunk", "digest")


class Part(NamedTuple):
    """A partition of the sample disk; `start` and `size` in bytes."""

    number: int
    kind: str
    name: str
    type_code: str
    start: int
    size: int


def parts(size: int, sector_size: int = 512) -> tuple[Part, ...]:
    """How a disk of `size` bytes is divided; ValueError if it is too small."""
    # FAT32 needs more than 65,524 clusters (Microsoft's FAT specification, "FAT Type
    # Determination"), and a cluster has at least one sector.
    esp = (40 if sector_size == 512 else 272) * MIB
    rest = (size - esp - _SWAP) // MIB * MIB - 2 * MIB
    if rest < 100 * MIB:
        raise ValueError(f"a sample disk of {size} bytes is too small")
    ntfs = rest // 3 // MIB * MIB
    sizes = (esp, rest - ntfs, ntfs, _SWAP)
    kinds = (
        ("vfat", "EFI system partition", "ef00"),
        ("ext4", "Debian", "8300"),
        ("ntfs", "Windows", "0700"),
        ("swap", "swap", "8200"),
    )
    found, start = [], MIB
    for number, (length, kind) in enumerate(zip(sizes, kinds, strict=True), 1):
        found.append(Part(number, *kind, start, length))
        start += length
    return tuple(found)


def build(path: Path, size: int) -> None:
    """Make the sample disk as a new sparse file of `size` bytes, as an ordinary user.

    Deterministic but for the identifiers and times that the tools put in; FileExistsError if there
    is one already.
    """
    layout = parts(size)
    if path.exists():
        raise FileExistsError(path)
    make_disk(path, size)
    _write_table(path, layout, 512)
    esp, ext4, ntfs, swap = layout
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _make_esp(path, esp, folder)
        _make_ext4(path, ext4, folder)
        _make_ntfs(path, ntfs, folder)
        area = make_disk(folder / "swap", swap.size)
        run("mkswap", "--label", "swap", area)
        copy_into(area, path, swap.start)


def fill(device: LoopDevice, folder: Path) -> None:
    """The same disk on an empty loop device, filled through mounts; `folder` is for scratch."""
    sector = device.sector_size
    layout = parts(device.file.stat().st_size, sector)
    _write_table(device.path, layout, sector)
    device.scan()
    esp, ext4, ntfs, swap = (device.partition(part.number) for part in layout)
    run("mkfs.fat", "-F", "32", "-s", "1", "-S", str(sector), "-n", "ESP", esp)
    files = folder / "esp"
    write_boot_files(files)
    run("mcopy", "-i", esp, "-s", "-Q", "-m", *sorted(files.iterdir()), "::")
    run("mkfs.ext4", "-q", "-L", "Debian", ext4)
    with mounted(ext4, folder / "ext4") as place:
        write_tree(place / "home", 6 * MIB, 1)
        _write_what_root_can(place)
        write_and_delete(place)
    run("mkfs.ntfs", "-q", "-f", "-F", "-L", "Windows", "-s", str(sector), ntfs)
    with mounted(ntfs, folder / "ntfs", "streams_interface=xattr", fs_type="ntfs-3g") as place:
        write_tree(place / "Users", 4 * MIB, 2)
        write_and_delete(place)
        os.setxattr(place / "Users/letter.txt", "user.stream", b"an alternate data stream")
    run("mkswap", "--label", "swap", swap)


def write_tree(folder: Path, amount: int, seed: int) -> None:
    """A tree of files of about `amount` bytes: text, noise, holes, links, strange names."""
    chance = random.Random(seed)
    folder.mkdir()
    (folder / "letter.txt").write_text("Dear reader,\n" + _text(chance, 5000))
    (folder / "empty").touch()
    (folder / "grüße aus köln.txt").write_text(_text(chance, 700))
    (folder / ("long" * 50)).write_text("its name has 200 letters\n")
    deep = folder
    for name in ("projects", "2024", "reports"):
        deep = deep / name
        deep.mkdir()
    written = number = 0
    while written < amount:
        size = min(int(chance.lognormvariate(10.5, 1.5)), amount // 4)
        place = (folder, deep.parent, deep)[number % 3] / f"file-{number:04}"
        if number % 2:
            place.write_bytes(chance.randbytes(size))
        else:
            place.write_text(_text(chance, size))
        written += size
        number += 1
    os.link(folder / "letter.txt", deep / "the same letter.txt")
    with (folder / "with holes").open("wb") as file:
        for offset in (0, 2 * MIB, 5 * MIB + 777):
            file.seek(offset)
            file.write(b"not a hole\n" * 100)
        file.truncate(9 * MIB)
    (folder / "short link").symlink_to("letter.txt")
    (folder / "long link").symlink_to("projects/2024/../" * 12)


def write_boot_files(folder: Path) -> None:
    """What an EFI system partition may hold."""
    chance = random.Random(3)
    boot = folder / "EFI" / "BOOT"
    boot.mkdir(parents=True)
    (boot / "BOOTX64.EFI").write_bytes(b"MZ" + chance.randbytes(900_000))
    (boot / "grub.cfg").write_text("set timeout=5\n" + _text(chance, 2000))
    vendor = folder / "EFI" / "debian"
    vendor.mkdir()
    (vendor / "a long file name of the vendor.efi").write_bytes(chance.randbytes(300_000))


def _write_table(disk: Path, layout: tuple[Part, ...], sector: int) -> None:
    words = []
    for part in layout:
        first, last = part.start // sector, (part.start + part.size) // sector - 1
        words += [f"--new={part.number}:{first}:{last}"]
        words += [f"--typecode={part.number}:{part.type_code}"]
        words += [f"--change-name={part.number}:{part.name}"]
    run("sgdisk", "--clear", f"--set-alignment={MIB // sector}", *words, disk)


def _make_esp(disk: Path, part: Part, folder: Path) -> None:
    options = ("-F", "32", "-s", "1", "-n", "ESP", f"--offset={part.start // 512}")
    run("mkfs.fat", *options, disk, str(part.size // 1024))
    files = folder / "esp"
    write_boot_files(files)
    run("mcopy", "-i", f"{disk}@@{part.start}", "-s", "-Q", *sorted(files.iterdir()), "::")


def _make_ext4(disk: Path, part: Part, folder: Path) -> None:
    files = folder / "ext4"
    files.mkdir()
    write_tree(files / "home", part.size // 8, 1)
    (files / "deleted").write_bytes(random.Random(4).randbytes(part.size // 16))
    options = ("-q", "-F", "-t", "ext4", "-L", "Debian", "-d", files, "-E", f"offset={part.start}")
    run("mke2fs", *options, disk, f"{part.size // 1024}k")
    # What was in a deleted file is still in its blocks: unused must not mean zero.
    run("debugfs", "-w", "-R", "rm deleted", f"{disk}?offset={part.start}")


def _make_ntfs(disk: Path, part: Part, folder: Path) -> None:
    volume = make_disk(folder / "ntfs", part.size)
    first = str(part.start // 512)
    run("mkfs.ntfs", "-q", "-F", "-f", "-L", "Windows", "-p", first, "-H", "255", "-S", "63",
        "-s", "512", volume)  # fmt: skip
    chance = random.Random(5)
    for name, data in (
        ("letter.txt", _text(chance, 5000).encode()),
        ("photo.jpg", chance.randbytes(part.size // 16)),
        ("table.csv", _text(chance, part.size // 32).encode()),
    ):
        (folder / name).write_bytes(data)
        run("ntfscp", "-q", volume, folder / name, name)
    copy_into(volume, disk, part.start)


def _write_what_root_can(place: Path) -> None:
    """Owners, modes, attributes and special files."""
    system = place / "system"
    system.mkdir(mode=0o750)
    for number, mode in enumerate((0o400, 0o644, 0o4755, 0o2711, 0o1777)):
        file = system / f"mode-{mode:o}"
        file.write_text("#!/bin/sh\n")
        os.chown(file, 1000 + number, 2000 + number)
        file.chmod(mode)
        os.utime(file, ns=(10**18, 1_234_567_890_123_456_789 + number))
    os.setxattr(system / "mode-644", "user.small", b"an attribute")
    os.setxattr(system / "mode-644", "user.large", b"x" * 700)
    os.setxattr(system / "mode-644", "trusted.only", b"root's")
    os.mkfifo(system / "fifo")
    os.mknod(system / "null", 0o600 | 0o020000, os.makedev(1, 3))
    os.symlink("mode-644", system / "link")
    os.chown(system / "link", 7, 8, follow_symlinks=False)
    many = system / "many"
    many.mkdir()
    for number in range(300):
        (many / f"a file in a large directory {number}").touch()


def write_and_delete(place: Path) -> None:
    """Leave old content in unused blocks, and holes between used ones."""
    chance = random.Random(6)
    folder = place / "temporary"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}").write_bytes(chance.randbytes(chance.randrange(1, 150_000)))
    os.sync()
    for number in range(60):
        if number % 3:
            (folder / f"{number}").unlink()


def _text(chance: random.Random, size: int) -> str:
    words = chance.choices(_WORDS, k=max(size // 7, 1))
    return " ".join(words)[:size] + "\n"
