"""What is fuzzed: small volumes, each with the reader that looks at it. A new one is one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imager.errors import NotUnderstoodError, RefusedError
from imager.extents import Extents
from imager.filesystems import Volume, read_allocation
from imager.layout.analyse import analyse
from imager.layout.blkid import Identity
from imager.layout.luks.header import read_header
from imager.layout.lvm.group import read_group
from imager.layout.lvm.label import read_label
from imager.layout.md import read_member
from imager.layout.relocate import relocate
from imager.layout.table import read_table
from tests.fuzz import volumes

_KIB = 1024
_MIB = 1 << 20
_CRC32C = "crc32c.crc32c"
_CRC32 = "zlib.crc32"
_CRC16 = "imager.filesystems.ext.groups.crc16"
_CRC32_BE = "imager.filesystems.ext.replay.crc32_be"


@dataclass(frozen=True)
class Target:
    """A volume and its reader."""

    name: str
    make: Callable[[Path], Path]
    """Makes the volume in an empty folder, quickly; a file of some MiB, holes not counted."""
    read: Callable[[Volume], Extents]
    """What the reader says must be kept."""
    checksums: tuple[str, ...] = ()
    """Dotted names of the functions that compute checksums, where the reader looks them up."""
    loss_per_byte: int | None = None
    """Bytes that the map may lose for each byte that was changed: what a byte of a bitmap stands
    for. None where no map is judged."""
    sealed: bool = False
    """Whether checksums cover all that a map is made of. A single change may not lose anything
    then; two may, as the first can take away the flag that there are checksums."""
    loss_anyway: int = 0
    """Bytes that the map may lose besides: what the last transactions of a log put to use. A log
    of which these are hit ends before them, for the kernel as well."""
    root: bool = False
    """Whether only root can make it."""


def _allocation(kind: str) -> Callable[[Volume], Extents]:
    """What is stored of a volume that blkid calls `kind`."""

    def read(volume: Volume) -> Extents:
        found = read_allocation(kind, volume)
        if not 0 < found.size <= volume.size:
            raise AssertionError(f"file system of {found.size} bytes on {volume.size}")
        if not all(note and note.isprintable() for note in found.notes):
            raise AssertionError(f"notes that cannot be printed: {found.notes}")
        behind = Extents.span(found.size, volume.size)
        return found.allocated.clip(0, found.size) | behind

    return read


def _table(volume: Volume) -> Extents:
    """What a partition table puts to use; the whole disk where there is none, or an empty MBR."""
    table = read_table(volume)
    if table.kind == "none" or (table.kind == "mbr" and not table.partitions):
        return Extents.span(0, volume.size)
    ranges = sorted((part.start, part.end) for part in table.partitions)
    if any(not 0 <= start < end <= volume.size for start, end in ranges):
        raise AssertionError("a partition is outside of the disk")
    return table.extents | Extents.of(ranges)


def _relocated(volume: Volume) -> Extents:
    """What a restore would write of a GPT on the same disk; it is not a map."""
    try:
        pieces = relocate(volume, volume.size)
    except RefusedError:
        return Extents()
    return Extents.of((offset, offset + len(data)) for offset, data in pieces)


def _disk(volume: Volume) -> Extents:
    """What is stored of a disk, whatever its table says; blkid would find what was put there."""

    def identify(path: object, offset: int, size: int) -> Identity | None:
        kind = volumes.DISK.get(offset)
        return Identity(kind, None, None, "filesystem", None, None) if kind else None

    return analyse(volume, "", identify=identify).used


def _found(volume: Volume, kinds: tuple[str, ...]) -> Extents:
    """For a volume of any kind: nothing but a refusal or bounds that hold, from each reader."""
    for kind in kinds:
        try:
            _allocation(kind)(volume)
        except NotUnderstoodError:
            continue
    return Extents.span(0, volume.size)


def _looked_at(look: Callable[[Volume], object]) -> Callable[[Volume], Extents]:
    """For what is no map by itself: only how the look ends is judged."""

    def read(volume: Volume) -> Extents:
        look(volume)
        return Extents.span(0, volume.size)

    return read


def _read_lvm(volume: Volume) -> None:
    for text in read_label(volume).metadata:
        read_group(text)


def _xfs(name: str, crashed: bool) -> Target:
    """Checksums cover all; a log may end before its last transactions."""
    make = partial(volumes.xfs, crashed=crashed)
    return Target(
        name, make, _allocation("xfs"), _XFS, _MIB, True, 4 * _MIB if crashed else 0, True
    )


def _btrfs(name: str, options: str, size: int) -> Target:
    make = partial(volumes.btrfs, options=options, size=size)
    return Target(name, make, _allocation("btrfs"), (_CRC32C,), _MIB, True)


def _f2fs(name: str, case: str) -> Target:
    """The SIT has no checksums."""
    make = partial(volumes.f2fs, case=case)
    return Target(name, make, _allocation("f2fs"), _F2FS, 8 * 4 * _KIB)


def _md(version: str) -> Target:
    make = partial(volumes.md, version=version)
    return Target(f"md-{version}", make, _looked_at(read_member), ("imager.layout.md._sum_1",))


def _luks(version: int, *checksums: str) -> Target:
    make = partial(volumes.luks, version=version)
    return Target(f"luks{version}", make, _looked_at(read_header), checksums)


def _ext(name: str, options: str, *checksums: str, per_bit: int = _KIB) -> Target:
    """A file system that is in order, without the kernel."""
    make = partial(volumes.ext, options=options.split())
    return Target(name, make, _allocation("ext4"), checksums, 8 * per_bit, _CRC32C in checksums)


def _logged(name: str, options: str, version: str, *checksums: str) -> Target:
    """A file system whose journal has not been replayed."""
    make = partial(volumes.ext_logged, options=options, version=version)
    sealed = _CRC32C in checksums
    return Target(
        name, make, _allocation("ext4"), checksums, 8 * _KIB, sealed, volumes.LOGGED_BYTES
    )


def _fat(name: str, size: int, options: str, cluster: int) -> Target:
    """Of FAT12 a byte holds parts of two entries; both tables have to be hit."""
    make = partial(volumes.fat, size=size, options=options.split())
    return Target(name, make, _allocation("vfat"), (), 2 * cluster)


def _hfsplus(name: str, journal: bool) -> Target:
    """Blocks of 2 KiB, no checksums."""
    make = partial(volumes.hfsplus, journal=journal)
    return Target(name, make, _allocation("hfsplus"), (), 8 * 2 * _KIB)


_XFS = ("imager.filesystems.xfs.checksum.crc32c", "imager.filesystems.xfs.record.crc32c")
_F2FS = ("imager.filesystems.f2fs.superblock.crc", "imager.filesystems.f2fs.checkpoint.crc")
_EXFAT = ("imager.filesystems.exfat.boot.checksum", "imager.filesystems.exfat.directory.checksum")
_KINDS = ("btrfs", "exfat", "ext4", "f2fs", "hfsplus", "ntfs", "swap", "vfat", "xfs")
_NO_SUM = "-O ^metadata_csum,^uninit_bg"

TARGETS: tuple[Target, ...] = (
    _ext("ext2", "-t ext2 -b 1024 -g 1024"),
    _ext("ext4", "-t ext4 -b 1024 -g 1024", _CRC32C),
    _ext("ext4-crc16", "-t ext4 -b 1024 -g 1024 -O ^metadata_csum,uninit_bg", _CRC16),
    _ext("ext4-bigalloc", "-t ext4 -b 1024 -O bigalloc -C 8192", _CRC32C, per_bit=8 * _KIB),
    _ext("ext4-meta-bg", "-t ext4 -b 1024 -O meta_bg,^resize_inode -g 1024", _CRC32C),
    _logged("ext3-log", "-t ext3", ""),
    _logged("ext4-log", "-t ext4", "-c -v 3", _CRC32C),
    _logged("ext4-log-v1", f"-t ext4 {_NO_SUM}", "-c", _CRC32_BE),
    Target(
        "ext4-fast-commit",
        volumes.ext_fast_commit,
        _allocation("ext4"),
        (_CRC32C,),
        8 * _KIB,
        True,
        _MIB,
        True,
    ),
    _fat("fat12", 2 * _MIB, "-F 12 -s 2", _KIB),
    _fat("fat16", 8 * _MIB, "-F 16 -s 2", _KIB),
    _fat("fat32", 40 * _MIB, "-F 32 -s 1", 512),
    _fat("fat32-one-table", 40 * _MIB, "-F 32 -s 1 -f 1", 512),
    Target("ntfs", volumes.ntfs, _allocation("ntfs"), (), 8 * 4 * _KIB),
    Target("ntfs-log", volumes.ntfs_logged, _allocation("ntfs"), (), 8 * 4 * _KIB),
    _hfsplus("hfsplus", journal=False),
    _hfsplus("hfsplus-journal", journal=True),
    _xfs("xfs", crashed=False),
    _xfs("xfs-log", crashed=True),
    _btrfs("btrfs", "--mixed -d single -m single", 24 * _MIB),
    _btrfs("btrfs-dup", "-d single -m dup", 160 * _MIB),
    Target("exfat", volumes.exfat, _allocation("exfat"), _EXFAT, 8 * 512, root=True),
    _f2fs("f2fs", "smallest"),
    _f2fs("f2fs-features", "features"),
    _luks(1),
    _luks(2, "hashlib.new", "hashlib.sha256"),
    Target(
        "lvm", volumes.lvm, _looked_at(_read_lvm), ("imager.layout.lvm.label.checksum",), root=True
    ),
    *(_md(version) for version in ("0.90", "1.0", "1.1", "1.2")),
    Target("swap", volumes.swap, _allocation("swap"), (), 0),
    Target("gpt", volumes.gpt, _table, (_CRC32,), _MIB, True),
    Target("gpt-relocated", volumes.gpt, _relocated, (_CRC32,)),
    Target("mbr", volumes.mbr, _table),
    Target("disk", volumes.disk, _disk, (_CRC32, _CRC32C), 2 * 4 * _KIB),
    Target("noise", volumes.noise, partial(_found, kinds=_KINDS)),
)
"""All of them; of those that the kernel has to make, only root has any."""


def available() -> dict[str, Target]:
    """The targets that can be made here, by name."""
    as_root = os.geteuid() == 0
    return {target.name: target for target in TARGETS if as_root or not target.root}
