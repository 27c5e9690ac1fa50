"""Disks for tests: sparse files, loop devices with other sector sizes, tables by others' tools."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imager.extents import Extents

MIB = 1 << 20

_PARTED = """
import json, sys, parted
disk = parted.newDisk(parted.getDevice(sys.argv[1]))
print(json.dumps([
    [p.number, p.geometry.start, p.geometry.length] for p in disk.partitions
]))
"""


def run(*command: str | Path, text: str | None = None) -> str:
    """Run a program that must succeed; its standard output."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    program = shutil.which(str(command[0]), path=path)
    assert program is not None, f"{command[0]} is not installed"
    result = subprocess.run(
        [program, *map(str, command[1:])], input=text, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def make_disk(path: Path, size: int) -> Path:
    """An empty sparse file."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@contextmanager
def attached(path: Path, sector_size: int) -> Iterator[Path]:
    """A loop device over `path` with logical sectors of `sector_size` bytes."""
    device = run("losetup", "-f", "--show", "-b", str(sector_size), path).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "-d", device)


def sfdisk_json(device: Path) -> dict[str, Any]:
    """What sfdisk sees: {"id", "unit", "partitions": [{"node", "start", "size", ...}]}."""
    table: dict[str, Any] = json.loads(run("sfdisk", "--json", device))["partitiontable"]
    return table


def sfdisk_numbers(device: Path) -> list[int]:
    """The partitions' numbers, in the order in which `sfdisk_json` lists them."""
    nodes = [partition["node"] for partition in sfdisk_json(device)["partitions"]]
    return [int(node.removeprefix(str(device)).removeprefix("p")) for node in nodes]


def parted_partitions(device: Path) -> list[list[int]]:
    """[number, start, sectors] of each partition as libparted sees it, in a child process."""
    found: list[list[int]] = json.loads(run(sys.executable, "-c", _PARTED, device))
    return found


def clone(source: Path, target: Path) -> Path:
    """A sparse copy."""
    run("cp", "--sparse=always", source, target)
    return target


def put(path: Path, offset: int, data: bytes) -> None:
    """Overwrite `data` at `offset` of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def get(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes at `offset` of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def copy_into(source: Path, target: Path, offset: int) -> None:
    """Copy a small file into a disk, leaving holes."""
    run("dd", f"if={source}", f"of={target}", "bs=1M", f"seek={offset}", "oflag=seek_bytes",
        "conv=notrunc,sparse")  # fmt: skip


def reseal_header(header: bytearray) -> None:
    """Set the checksum of a GPT header to what its bytes are now."""
    size = min(max(int.from_bytes(header[12:16], "little"), 92), len(header))
    header[16:20] = bytes(4)
    header[16:20] = struct.pack("<I", zlib.crc32(bytes(header[:size])))


def scrubbed(image: Path, keep: Extents) -> Path:
    """A copy in which everything outside `keep` is garbage."""
    copy = image.with_name(f"scrubbed-{image.name}")
    shutil.copyfile(image, copy)
    with copy.open("r+b") as file:
        for start, end in keep.complement(0, image.stat().st_size):
            file.seek(start)
            while start < end:
                start += file.write(b"\xa5" * min(MIB, end - start))
    return copy
