"""Signatures and blkid against real file systems."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from imager.errors import MissingToolError, NotUnderstoodError
from imager.layout.blkid import identify
from imager.layout.signatures import SIGNATURES, find_signature
from tests.disks import MIB, copy_into, get, make_disk, put, run
from tests.volumes import BytesVolume, FileVolume

SIZE = 320 * MIB
AT = 3 * MIB

MAKERS = {
    "ext2": (("mkfs.ext2", "-q", "-b", "1024"), "ext2/3/4"),
    "ext4": (("mkfs.ext4", "-q"), "ext2/3/4"),
    "xfs": (("mkfs.xfs", "-q"), "XFS"),
    "btrfs": (("mkfs.btrfs", "-q"), "btrfs"),
    "ntfs": (("mkfs.ntfs", "-qF"), "NTFS"),
    "vfat": (("mkfs.fat", "-F", "32", "-s", "1"), "FAT"),
    "vfat-16": (("mkfs.fat", "-F", "16"), "FAT"),
    "vfat-32": (("mkfs.fat", "-F", "32"), "FAT"),
    "swap": (("mkswap", "-q"), "swap"),
    "swap-64k": (("mkswap", "-q", "-p", "65536"), "swap"),
}


@pytest.fixture(scope="module", params=MAKERS)
def placed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with one file system at `AT`; the kind is the folder's name."""
    folder = tmp_path_factory.mktemp(request.param)
    command, _ = MAKERS[request.param]
    source = make_disk(folder / "source", SIZE)
    run(*command, source)
    target = make_disk(folder / request.param, AT + SIZE)
    copy_into(source, target, AT)
    source.unlink()
    return target


def test_real_file_systems(placed: Path) -> None:
    volume = FileVolume(placed)
    assert find_signature(volume, AT) == MAKERS[placed.name][1]
    assert find_signature(volume, 0) is None
    assert find_signature(volume, AT + 4096) is None
    assert find_signature(volume, AT + SIZE) is None
    assert find_signature(volume, AT + SIZE - 1024) is None


def test_identify(placed: Path) -> None:
    identity = identify(placed, AT, SIZE)
    assert identity is not None
    assert identity.kind == placed.name.partition("-")[0]
    assert identity.usage == ("other" if identity.kind == "swap" else "filesystem")
    assert identity.uuid
    assert identity.table is None
    assert identify(placed, 0, AT) is None


def test_every_magic_fits_into_one_read() -> None:
    volume = BytesVolume(bytes(1 << 20))
    assert find_signature(volume, 0) is None
    for offset, _, _ in SIGNATURES:
        assert offset < 68 * 1024 - 32


def test_random_data_is_no_signature() -> None:
    """Two-byte magics alone would hit once in 65,536 places."""
    chance = random.Random(1)
    volume = BytesVolume(chance.randbytes(1 << 20))
    assert [at for at in range(0, 1 << 20, 64) if find_signature(volume, at)] == []
    weak = bytearray(1 << 17)
    weak[1080:1082] = b"\x53\xef"
    weak[1082:1086] = b"\xff\xff\xff\xff"
    assert find_signature(BytesVolume(weak), 0) is None


def test_luks(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", 32 * MIB)
    put(tmp_path / "disk", 0, b"LUKS\xba\xbe\x00\x02")
    assert find_signature(FileVolume(path), 0) == "LUKS"


@pytest.mark.parametrize("label", ['a "b" \\x41', "zwölf ✓", "line\nfeed", "$(id)`id`", "="])
def test_labels(tmp_path: Path, label: str) -> None:
    path = make_disk(tmp_path / "disk", 16 * MIB)
    run("mkfs.ext4", "-q", "-L", label, path)
    identity = identify(path, 0, 16 * MIB)
    assert identity is not None
    assert identity.label == label


def test_label_that_is_no_utf8(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", 16 * MIB)
    run("mkfs.ext4", "-q", "-O", "^metadata_csum", path)
    put(path, 1024 + 120, b"\xff\xfe\x1b[31m\x80")
    identity = identify(path, 0, 16 * MIB)
    assert identity is not None
    assert identity.kind == "ext4"
    assert identity.label is not None
    assert identity.label.encode()


def test_ambivalent(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    run("mkfs.ext4", "-q", path)
    superblock = get(path, 1024, 1024)
    run("mkfs.xfs", "-q", "-f", path)
    put(path, 1024, superblock)
    with pytest.raises(NotUnderstoodError, match="several file systems"):
        identify(path, 0, SIZE)


def test_a_partition_table_is_told(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SIZE)
    run("sfdisk", path, text="label: gpt\n,\n")
    identity = identify(path, 0, SIZE)
    assert identity is not None
    assert (identity.kind, identity.table) == (None, "gpt")


def test_blkid_cannot_look(tmp_path: Path) -> None:
    with pytest.raises(NotUnderstoodError, match="cannot be opened"):
        identify(tmp_path / "missing", 0, SIZE)


def test_blkid_fails(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", MIB)
    with pytest.raises(NotUnderstoodError, match="could not look"):
        identify(path, 0, 2 * MIB)


def test_missing_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    monkeypatch.setattr("imager.layout.blkid._EXTRA_PATH", ())
    with pytest.raises(MissingToolError, match="util-linux"):
        identify(tmp_path / "disk", 0, SIZE)


def test_found_outside_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert identify(make_disk(tmp_path / "disk", MIB), 0, MIB) is None


def test_strange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_disk(tmp_path / "-o full", 16 * MIB)
    run("mkfs.ext4", "-q", path)
    monkeypatch.chdir(tmp_path)
    identity = identify("-o full", 0, 16 * MIB)
    assert identity is not None
    assert identity.kind == "ext4"
