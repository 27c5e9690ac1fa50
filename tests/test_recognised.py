"""Volumes and tables that are recognised by name only: stored whole, and the reason says what."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import is_known, read_allocation
from imager.filesystems.recognised import _REASONS
from imager.layout.analyse import Analysis, analyse
from tests.disks import MIB, copy_into, get, make_disk, put, run
from tests.volumes import BytesVolume, FileVolume

SIZE = 64 * MIB
AT = 24 * MIB
UUID = bytes(range(1, 17))

MADE = {
    "jfs": (("mkfs.jfs", "-q"), SIZE, "JFS is not read"),
    "nilfs2": (("mkfs.nilfs2", "-q"), 160 * MIB, "NILFS2 is not read"),
    "apfs": (("mkapfs",), 528 * MIB, "APFS .* is not read"),
    "squashfs": (("mksquashfs", "/etc/fstab"), 0, "SquashFS has no free space"),
}
"""By these tools: their arguments but for the volume; its size; the reason."""


def _bitlocker() -> bytes:
    """A volume header of Windows 7 and later (libbde, "BitLocker Drive Encryption format")."""
    head = bytearray(512)
    head[:13] = b"\xeb\x58\x90-FVE-FS-\0\x02"
    head[160:176] = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
    struct.pack_into("<QQQ", head, 176, 65536, 131072, 196608)
    head[510:] = b"\x55\xaa"
    return bytes(head)


def _zfs() -> list[tuple[int, bytes]]:
    """Uberblocks in the first two labels (ZFS On-Disk Specification, chapter 1)."""
    uberblock = struct.pack("<5Q", 0x00BAB10C, 5000, 100, 1, 1_700_000_000).ljust(1024, b"\0")
    return [((256 * label + 128 + at) << 10, uberblock) for label in (0, 1) for at in range(8)]


def _reiserfs() -> bytes:
    """struct reiserfs_super_block of format 3.6."""
    head = struct.pack("<4I", SIZE // 4096, 2000, 8211, 18).ljust(44, b"\0")
    return head + struct.pack("<4H", 4096, 1024, 0, 1) + b"ReIsEr2Fs\0" + bytes(150)


CRAFTED: dict[str, tuple[list[tuple[int, bytes]], str]] = {
    "ReFS": ([(0, b"\0\0\0ReFS\0")], r"ReFS \(Windows\) is not read"),
    "BitLocker": (
        [(0, _bitlocker()), (65536, b"-FVE-FS-" + struct.pack("<4H", 64, 2, 4, 4))],
        "encrypted with BitLocker",
    ),
    "VMFS": (
        [(2 * MIB, struct.pack("<IIB16sI128s", 0x2FABF15E, 5, 20, UUID, 0, b"store"))],
        r"VMFS \(VMware\) is not read",
    ),
    "VMFS_volume_member": (
        [(MIB, struct.pack("<II122x16s", 0xC001D00D, 5, UUID))],
        r"VMFS \(VMware\) is not read",
    ),
    "zfs_member": (_zfs(), "part of a ZFS pool"),
    "reiserfs": ([(65536, _reiserfs())], "ReiserFS is not read"),
    "ufs": ([(65536 + 1372, struct.pack("<I", 0x19540119))], r"UFS .* is not read"),
}
"""Signatures as their formats have them: (offset, bytes), and the reason."""


def look(path: Path) -> Analysis:
    return analyse(FileVolume(path), path)


def partitioned(folder: Path, size: int) -> Path:
    """A disk with a partition of `size` bytes at `AT`."""
    path = make_disk(folder / "disk", AT + size + 64 * MIB)
    run("sfdisk", path, text=f"label: gpt\nstart={AT // 512} size={size // 512}\n")
    return path


def check(path: Path, kind: str | None, size: int, reason: str) -> None:
    """The partition is stored whole, for this reason."""
    found = look(path)
    (volume,) = found.layout.volumes
    assert (volume.kind, volume.stored, volume.used) == (kind, "raw", size)
    assert not Extents.span(AT, AT + size) - found.used
    assert re.search(reason, volume.reason or "")


@pytest.mark.parametrize("kind", MADE)
def test_real_file_systems(kind: str, tmp_path: Path) -> None:
    command, size, reason = MADE[kind]
    if kind == "squashfs":
        run(*command, tmp_path / "volume", "-quiet")
        size = (tmp_path / "volume").stat().st_size
    else:
        run(*command, make_disk(tmp_path / "volume", size))
    path = partitioned(tmp_path, size)
    copy_into(tmp_path / "volume", path, AT)
    check(path, kind, size, reason)


@pytest.mark.parametrize("version", ["1", "2"])
def test_ufs(version: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 10_000)
    run("makefs", "-t", "ffs", "-o", f"version={version}", "-s", "16m", tmp_path / "volume", tree)
    path = partitioned(tmp_path, 16 * MIB)
    put(path, AT, (tmp_path / "volume").read_bytes())
    check(path, "ufs", 16 * MIB, "UFS .* is not read")


@pytest.mark.parametrize("kind", CRAFTED)
def test_signatures(kind: str, tmp_path: Path) -> None:
    pieces, reason = CRAFTED[kind]
    path = partitioned(tmp_path, SIZE)
    for offset, data in pieces:
        put(path, AT + offset, data)
    check(path, kind, SIZE, reason)


def test_nothing_known(tmp_path: Path) -> None:
    path = partitioned(tmp_path, SIZE)
    put(path, AT + 5000, b"something")
    check(path, None, SIZE, "no file system recognised")


def test_every_reason_is_for_what_has_no_reader() -> None:
    for kind in _REASONS:
        assert not is_known(kind)
        with pytest.raises(NotUnderstoodError, match=r"read|free space|cannot be seen|journal"):
            read_allocation(kind, BytesVolume(bytes(512)))
    with pytest.raises(NotUnderstoodError, match="some-fs is not read by this version"):
        read_allocation("some-fs", BytesVolume(bytes(512)))


def _gpt(path: Path) -> None:
    run("sfdisk", path, text="label: gpt\nstart=2048 size=2048\nstart=4096 size=2048\n")


def _parted(label: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        run("parted", "-s", path, "mklabel", label)

    return make


def _amiga(path: Path) -> None:
    put(path, 0, b"RDSK" + struct.pack(">4I", 64, 0, 7, 512))


def _ldm(path: Path) -> None:
    run("sfdisk", path, text="label: dos\nstart=63 size=20000 type=42\n")


def _ldm_gpt(path: Path) -> None:
    kinds = ("5808C8AA-7E8F-42E0-85D2-E1E90434CFB3", "AF9B60A0-1431-4F62-BC68-3311714A69AD")
    rows = "".join(f"start={2048 * n} size=2048 type={kind}\n" for n, kind in enumerate(kinds, 1))
    run("sfdisk", path, text=f"label: gpt\n{rows}")


def _overlapping(path: Path) -> None:
    run("sfdisk", path, text="label: dos\nstart=2048 size=2048\nstart=8192 size=2048\n")
    put(path, 446 + 16 + 8, struct.pack("<I", 3000))


def _out_of_range(path: Path) -> None:
    run("sfdisk", path, text="label: dos\nstart=2048 size=2048\n")
    put(path, 446 + 12, struct.pack("<I", SIZE // 512))


def _both_damaged(path: Path) -> None:
    _gpt(path)
    put(path, 512 + 40, b"\xff")
    put(path, SIZE - 512 + 40, b"\xff")


WHOLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "apple": (_parted("mac"), "it has an Apple partition map"),
    "bsd": (_parted("bsd"), "it has a BSD disk label"),
    "sun": (_parted("sun"), "it has a Sun disk label"),
    "amiga": (_amiga, "it has an Amiga partition table"),
    "dynamic": (_ldm, r"the disk is a Windows dynamic disk \(LDM\)"),
    "dynamic-gpt": (_ldm_gpt, r"the disk is a Windows dynamic disk \(LDM\)"),
    "overlapping": (_overlapping, "partition 1 and partition 2 overlap"),
    "out-of-range": (_out_of_range, "partition 1 reaches past the disk's end"),
    "both-damaged": (_both_damaged, "the partition table is damaged"),
}
"""Tables for which the whole disk is stored, and the reason."""


@pytest.mark.parametrize("name", WHOLE)
def test_tables_of_disks_that_are_stored_whole(name: str, tmp_path: Path) -> None:
    make, reason = WHOLE[name]
    path = make_disk(tmp_path / "disk", SIZE)
    make(path)
    found = look(path)
    assert found.used == Extents.span(0, SIZE)
    (volume,) = found.layout.volumes
    assert re.search(reason, volume.reason or "")


def test_bsd_label_in_a_partition(tmp_path: Path) -> None:
    """A slice: the partitions in it are not this program's to find."""
    path = make_disk(tmp_path / "disk", AT + SIZE)
    run("sfdisk", path, text=f"label: dos\nstart={AT // 512} size={SIZE // 512} type=a5\n")
    run("mke2fs", "-q", make_disk(tmp_path / "volume", SIZE))
    put(tmp_path / "volume", 512, b"\x57\x45\x56\x82".ljust(132, b"\0") + b"\x57\x45\x56\x82")
    copy_into(tmp_path / "volume", path, AT)
    check(path, "ext2", SIZE, "it has a BSD disk label")


def _no_primary(path: Path) -> None:
    put(path, 512, bytes(512))


def _no_backup(path: Path) -> None:
    put(path, SIZE - 512, bytes(512))


def _hybrid(path: Path) -> None:
    put(path, 446 + 16, struct.pack("<B3sB3sII", 0, b"\0" * 3, 0x83, b"\0" * 3, 2048, 2048))


USED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no-primary": (_no_primary, "primary partition table is damaged .* backup used"),
    "no-backup": (_no_backup, "backup partition table is damaged"),
    "hybrid": (_hybrid, "hybrid MBR.*; the GPT is used"),
}


@pytest.mark.parametrize("name", USED)
def test_tables_of_which_one_copy_is_used(name: str, tmp_path: Path) -> None:
    change, note = USED[name]
    path = make_disk(tmp_path / "disk", SIZE)
    _gpt(path)
    change(path)
    found = look(path)
    assert [volume.number for volume in found.layout.volumes] == [1, 2]
    assert re.search(note, " ".join(found.layout.notes))
    assert get(path, 510, 2) == b"\x55\xaa"
    for start, end in found.layout.table.extents:
        assert found.used.covers(start, end)
