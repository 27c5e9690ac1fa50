"""F2FS volumes from mkfs.f2fs, filled by sload.f2fs, and ways to change and read them without the kernel."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from imager.filesystems.f2fs.superblock import crc
from tests.loop import run, sparse_file

MIB = 1 << 20
BLOCK = 4096


class Case(NamedTuple):
    size: int
    options: str = ""
    partclone: bool = True
    """Whether partclone understands it."""


CASES = {
    "smallest": Case(100 * MIB),
    "features": Case(
        130 * MIB,
        "-O extra_attr,inode_checksum,sb_checksum,quota,verity,encrypt,casefold,project_quota -C utf8",
    ),
    "compression": Case(160 * MIB, "-O extra_attr,compression,inode_crtime,lost_found"),
    "large sections": Case(800 * MIB, "-s 4"),
    "zones": Case(300 * MIB, "-s 2 -z 2"),
    "large NAT bitmap": Case(500 * MIB, "-i", partclone=False),
    "cut off": Case(200 * MIB + 12288 + 512),
}


def make(path: Path, case: Case) -> Path:
    """A new, empty volume."""
    run("mkfs.f2fs", "-q", *case.options.split(), sparse_file(path, case.size))
    return path


def fill(path: Path, tree: Path, seed: int) -> None:
    """Make files and directories in `tree`, and load them into the volume `path`, in two goes."""
    chance = random.Random(seed)
    folders = [tree, tree / "first", tree / "first" / "inner"]
    for folder in folders[1:]:
        folder.mkdir(parents=True)
    for number in range(80):
        size = chance.choice((0, 100, 3000, 4096, 4097, chance.randrange(1, 400_000)))
        (folders[number % 3] / f"file-{number}.bin").write_bytes(chance.randbytes(size))
    (tree / "large").write_bytes(chance.randbytes(9 * MIB))
    run("sload.f2fs", "-f", tree, path)


def fsck(path: Path) -> bool:
    """Whether fsck.f2fs finds nothing to mend."""
    done = subprocess.run(
        ["fsck.f2fs", "--dry-run", path], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and "[Fail]" not in done.stdout


def holds(path: Path, tree: Path) -> bool:
    """Whether GRUB's own reader finds every file of `tree` in the volume, and its content."""
    for file in sorted(tree.rglob("*")):
        if file.is_file() and file.stat().st_size:
            place = f"(loop0)/{file.relative_to(tree)}"
            words = ["grub-fstest", str(path), "cmp", place, str(file)]
            if subprocess.run(words, capture_output=True, check=False).returncode:
                return False
    return True


class Places(NamedTuple):
    """The tests' own view; addresses in blocks."""

    checkpoint: int
    """The newer pack's first block."""
    sit: int
    main: int
    segments: int


def places(image: bytes | bytearray) -> Places:
    """The layout of an image, by its first superblock."""
    at = 1024
    (segments,) = struct.unpack_from("<I", image, at + 68)
    cp, sit, main = (struct.unpack_from("<I", image, at + field)[0] for field in (76, 80, 92))
    packs = (cp, cp + 512)
    newer = max(packs, key=lambda pack: struct.unpack_from("<Q", image, pack * BLOCK)[0])
    return Places(newer, sit, main, segments)


def set_checkpoint(image: bytearray, offset: int, form: str, value: int) -> None:
    """Change a field in the newer checkpoint's first and last block, and their checksums."""
    first = places(image).checkpoint
    (total,) = struct.unpack_from("<I", image, first * BLOCK + 136)
    for block in (first, first + total - 1):
        start = block * BLOCK
        struct.pack_into(f"<{form}", image, start + offset, value)
        (at,) = struct.unpack_from("<I", image, start + 164)
        checksum = crc(bytes(image[start : start + at]))
        if at < BLOCK - 4:
            checksum = crc(bytes(image[start + at + 4 : start + BLOCK]), checksum)
        struct.pack_into("<I", image, start + at, checksum)


def checkpoint_field(image: bytes | bytearray, offset: int, form: str) -> int:
    """A field of the newer checkpoint."""
    value: int = struct.unpack_from(f"<{form}", image, places(image).checkpoint * BLOCK + offset)[0]
    return value


def fragmented(path: Path) -> Path:
    """One block in use of each segment: entries in the table, and their sum in the checkpoint."""
    run("mkfs.f2fs", "-q", "-t", "0", path)
    with path.open("r+b") as file:
        head = bytearray(file.read(16 * MIB))
        at = places(head)
        (sit_segments,) = struct.unpack_from("<I", head, 1024 + 56)
        entry = struct.pack("<H64s8x", 1, b"\x80" + bytes(63))
        block = (entry * 55).ljust(BLOCK, b"\0")
        count = -(-at.segments // 55)
        for copy in (0, sit_segments // 2 * 512):
            file.seek((at.sit + copy) * BLOCK)
            file.write(block * count)
        # The segments that logs have begun are in the journal.
        set_checkpoint(head, 16, "Q", at.segments * 2)
        file.seek(0)
        file.write(head)
    return path
