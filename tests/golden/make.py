"""Makes the golden images, version 1.0 of the format; kept to show what they were made of.

    python -m tests.golden.make

Every later release must read what is here, so nothing is ever made anew: a later version of the
format gets images of its own beside these. All are of one disk of 8 MiB:

    | GPT | 1: FAT12, "EFI-SYSTEM" | 2: ext4, "golden" | GPT |

    full       the whole disk
    sha256     the same, hashed with SHA-256, in chunks of 1 MiB at level 19
    partial    partition 2 left out
    degraded   two ranges of the disk could not be read
    parts      the whole disk, in parts
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

from imager.capture import CaptureOptions, capture
from tests.disks import MIB, copy_into, make_disk, run
from tests.image_files import small_parts

HERE = Path(__file__).resolve().parent / "1.0"
SECTOR = 512
FAT = (64 * SECTOR, 2 * MIB)
EXT4 = (FAT[0] + FAT[1], 5 * MIB)
TEXT = "Every release of imager reads this disk.\n"


def make_source(folder: Path) -> Path:
    """The disk: unused sectors are zeros, so that a restore gives the very same file."""
    disk = make_disk(folder / "disk", 8 * MIB)
    table = "".join(
        f"start={start // SECTOR},size={size // SECTOR},type={kind},uuid={uuid}\n"
        for (start, size), kind, uuid in (
            (FAT, "U", "11111111-1111-4111-8111-111111111111"),
            (EXT4, "L", "22222222-2222-4222-8222-222222222222"),
        )
    )
    header = "label: gpt\nlabel-id: 33333333-3333-4333-8333-333333333333\nfirst-lba: 34\n"
    run("sfdisk", "--quiet", disk, text=header + table)
    files = folder / "files"
    (files / "folder").mkdir(parents=True)
    (files / "README").write_text(TEXT)
    for number in range(12):
        (files / "folder" / f"file-{number}").write_text(f"{number}\n" * 200 * number)
    fat = make_disk(folder / "fat", FAT[1])
    run("mkfs.fat", "-F", "12", "-n", "EFI-SYSTEM", "-i", "44444444", fat)
    run("mcopy", "-i", fat, "-s", files / "README", files / "folder", "::/")
    ext4 = make_disk(folder / "ext4", EXT4[1])
    run("mke2fs", "-q", "-t", "ext4", "-L", "golden", "-U", "55555555-5555-4555-8555-555555555555",
        "-O", "^has_journal", "-d", files, ext4)  # fmt: skip
    copy_into(fat, disk, FAT[0])
    copy_into(ext4, disk, EXT4[0])
    return disk


def unreadable_ranges(content: bytes) -> list[tuple[int, int]]:
    """Three sectors of a file in each partition."""
    words = b"11\n" * SECTOR
    found = []
    for start, size in (FAT, EXT4):
        place = -(-content.index(words, start, start + size) // SECTOR) * SECTOR
        found.append((place, place + 3 * SECTOR))
    return found


def without(content: bytes, ranges: list[tuple[int, int]]) -> bytes:
    """`content` with zeros in these ranges."""
    blank = bytearray(content)
    for start, end in ranges:
        blank[start:end] = bytes(end - start)
    return bytes(blank)


@contextlib.contextmanager
def failing(ranges: list[tuple[int, int]]) -> Iterator[None]:
    """Reading these ranges of the disk fails, as a kernel fails: short of them, then at them."""
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        (view,) = buffers
        for start, end in ranges:
            if start <= offset < end:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if offset < start < offset + view.nbytes:
                view = view[: start - offset]
        return real(fd, [view], offset)

    with mock.patch.object(os, "preadv", preadv):
        yield


def main() -> None:
    """Make all images, and write down what they must give."""
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.chdir(name),
        mock.patch("platform.node", return_value="golden"),
    ):
        disk = make_source(Path())
        content = disk.read_bytes()
        unreadable = unreadable_ranges(content)
        small = CaptureOptions(chunk_size=1 << 16, note="golden")
        capture(disk, HERE / "full", small)
        capture(disk, HERE / "sha256", CaptureOptions(hash_name="sha256", level=19))
        capture(disk, HERE / "partial", replace(small, exclude=(2,)))
        with small_parts():
            capture(disk, HERE / "parts", replace(small, split=12_000))
        with failing(unreadable):
            capture(disk, HERE / "degraded", replace(small, continue_on_read_error=True))
    table_end = EXT4[0] + EXT4[1]
    expected = {
        "full": content,
        "sha256": content,
        "parts": content,
        "partial": without(content, [(EXT4[0], table_end)]),
        "degraded": without(content, unreadable),
    }
    facts = {
        "disk_size": len(content),
        "content": {name: hashlib.sha256(data).hexdigest() for name, data in expected.items()},
        "unreadable": {"degraded": unreadable},
    }
    (HERE / "expected.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
