"""A small disk for tests of everything that does not need the sample disk, and its image.

Its partitions begin and end amid chunks, and its middle lies farther from both ends than the 16 MiB
that are always stored.

    | GPT | 1: ext4 | 2: ext2, 1 KiB blocks | 3: noise | gap | 4: ext4 | GPT |
"""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests import sample_disk
from tests.command import imager
from tests.comparing import digest, disk_facts
from tests.disks import MIB, run
from tests.loop import LoopDevice, mounted

SMALL_KINDS = {1: "ext4", 2: "ext2", 4: "ext4"}
SMALL_SIZE = 120 * MIB + 5 * 512
NOISE = 3
SMALL_PARTS = {1: (63, 41_003), 2: (41_066, 61_441), 3: (102_507, 8191), 4: (120_001, 100_000)}
"""First sector and number of sectors, by partition number."""


@dataclass(frozen=True)
class Small:
    disk: Path
    image: Path
    facts: dict[object, object]
    digest: str


def make_small(folder: Path) -> Small:
    """Make and capture it."""
    with LoopDevice(folder / "disk", SMALL_SIZE) as device:
        partition(device.path, SMALL_PARTS)
        device.scan()
        for number, kind in SMALL_KINDS.items():
            node = device.partition(number)
            block = "4096" if kind == "ext4" else "1024"
            run(f"mkfs.{kind}", "-q", "-b", block, "-L", f"volume-{number}", node)
            with mounted(node, folder / f"{number}", fs_type=kind) as place:
                sample_disk.write_tree(place / "home", 2 * MIB, number)
                sample_disk.write_and_delete(place)
        device.partition(NOISE).write_bytes(random.Random(1).randbytes(8191 * 512))
        facts = disk_facts(device, SMALL_KINDS, folder)
    imager("capture", folder / "disk", folder / "image")
    return Small(folder / "disk", folder / "image", facts, digest(folder / "disk"))


def partition(disk: Path, wanted: dict[int, tuple[int, int]]) -> None:
    """Make a GPT with partitions given by first sector and number of sectors."""
    words = [f"--new={n}:{first}:{first + count - 1}" for n, (first, count) in wanted.items()]
    run("sgdisk", "--clear", "--set-alignment=1", *words, disk)


def garbage(path: Path, size: int) -> Path:
    """A file in which no sector is zero, as a used disk has them."""
    block = random.Random(99).randbytes(MIB)
    with path.open("xb") as file:
        for start in range(0, size, MIB):
            file.write(block[: size - start])
    return path


def garbage_device(folder: Path, size: int, sector_size: int = 512) -> LoopDevice:
    """A loop device over garbage, to be entered."""
    return LoopDevice(garbage(folder / "target", size), sector_size=sector_size)


class ScannedLoopDevice(LoopDevice):
    """Has its partition nodes from the start."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.scan()
        return self


def blkid(path: Path) -> str:
    """What blkid finds there, if anything: the file system, or else the partition table."""
    done = subprocess.run(
        ["blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=False
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return found.get("TYPE") or found.get("PTTYPE") or ""
