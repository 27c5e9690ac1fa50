"""Volume groups for tests, by LVM's own tools as tools for metadata: nothing is activated.

What a logical volume holds is written and read here through the segments that `lvs` reports, which
knows nothing of our reader.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.disks import make_disk
from tests.loop import LoopDevice
from tests.loop import run as run_tool

MIB = 1 << 20
EXTENT = 1 << 20
"""Bytes of an extent in the groups made here."""


class Piece(NamedTuple):
    """Contiguous bytes of a logical volume, and where they are."""

    logical: int
    device: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Lvm:
    """LVM's tools, which see `devices` alone and keep their files in `folder`."""

    folder: Path
    devices: Sequence[Path]

    def run(self, *words: str | Path | int) -> str:
        """What a command that must succeed says."""
        accepted = ", ".join(f'"a|^{device}$|"' for device in self.devices)
        config = (
            f'devices {{ use_devicesfile=0 scan_lvs=0 filter=[{accepted}, "r|.*|"]'
            " md_component_detection=0 }"
            f' global {{ locking_dir="{self.folder}" use_lvmlockd=0 use_lvmpolld=0 }}'
            " backup { backup=0 archive=0 }"
        )
        os.environ.setdefault("LVM_SUPPRESS_FD_WARNINGS", "1")
        command, *rest = map(str, words)
        return run_tool("lvm", command, "--driverloaded", "n", "--config", config, *rest)

    def create(self, group: str, name: str, extents: int, *words: str | Path) -> None:
        """Add a logical volume, on the physical volumes that end `words` if any."""
        self.run(
            "lvcreate", "-y", "-an", "-Zn", "-Wn", "-n", name, "-l", extents, *words[:-1],
            group, *words[-1:],
        )  # fmt: skip

    def extend(self, group: str, name: str, extents: int, device: Path) -> None:
        """Enlarge a logical volume by extents of one physical volume."""
        self.run("lvextend", "-y", "-l", f"+{extents}", f"{group}/{name}", device)

    def pieces(self, group: str, name: str) -> list[Piece]:
        """Where the bytes of a logical volume are, by `lvs` and `pvs`."""
        return list(self._pieces(group, name))

    def write(self, group: str, name: str, source: Path) -> None:
        """The bytes of the file `source`, zeros included, into a logical volume."""
        with source.open("rb") as file:
            for piece in self.pieces(group, name):
                data = os.pread(file.fileno(), piece.size, piece.logical)
                with piece.device.open("r+b") as device:
                    os.pwrite(device.fileno(), data, piece.offset)

    def read(self, group: str, name: str, target: Path) -> Path:
        """A logical volume's bytes in the new file `target`."""
        with target.open("xb") as file:
            for piece in self.pieces(group, name):
                with piece.device.open("rb") as device:
                    data = os.pread(device.fileno(), piece.size, piece.offset)
                    os.pwrite(file.fileno(), data, piece.logical)
        return target

    def size(self, group: str, name: str) -> int:
        """Bytes."""
        words = ("--noheadings", "--nosuffix", "--units", "b", "-o", "lv_size")
        return int(self.run("lvs", *words, f"{group}/{name}"))

    def _pieces(self, group: str, volume: str) -> Iterator[Piece]:
        starts = {
            Path(row["pv_name"]): int(row["pe_start"])
            for row in self._report("pvs", "pv_name,pe_start")
        }
        columns = "lv_name,seg_start,seg_size,seg_pe_ranges,stripes,stripe_size"
        for row in self._report("lvs", columns, f"{group}/{volume}"):
            places: list[tuple[Path, int]] = []
            for words in row["seg_pe_ranges"].split():
                name, _, extents = words.rpartition(":")
                first = int(extents.split("-")[0])
                places.append((Path(name), starts[Path(name)] + first * EXTENT))
            start, size, count = int(row["seg_start"]), int(row["seg_size"]), len(places)
            assert count == int(row["stripes"])
            chunk = int(row["stripe_size"]) if count > 1 else size
            for number in range(size // chunk):
                device, offset = places[number % count]
                yield Piece(start + number * chunk, device, offset + number // count * chunk, chunk)

    def _report(self, command: str, columns: str, *words: str) -> list[dict[str, str]]:
        options = ("--reportformat", "json", "--nosuffix", "--units", "b", "-o", columns)
        kind = "pv" if command == "pvs" else ("seg" if command == "lvs" else "")
        said = json.loads(
            self.run(command, *options, *(["--segments"] if kind == "seg" else []), *words)
        )
        found: list[dict[str, str]] = said["report"][0][kind]
        return found


def small_group(path: Path, content: Path) -> Path:
    """A physical volume of 26 MiB; crypt/root holds the bytes of `content`, in two pieces."""
    with LoopDevice(path, 26 * MIB) as device:
        lvm = Lvm(path.parent, (device.path,))
        lvm.run("pvcreate", device.path)
        lvm.run("vgcreate", "-s", "1m", "crypt", device.path)
        lvm.create("crypt", "root", 4, device.path)
        lvm.create("crypt", "left", 2, device.path)
        lvm.extend("crypt", "root", content.stat().st_size // EXTENT - 4, device.path)
        lvm.write("crypt", "root", content)
    return path


def make_ext4(path: Path, size: int, files: Path, *options: str) -> Path:
    """A file with an ext4 that holds the tree `files`, and what a deleted file has left."""
    make_disk(path, size)
    run_tool("mkfs.ext4", "-q", "-F", "-b", "4096", "-d", files, *options, path)
    run_tool("debugfs", "-w", "-R", "rm deleted", path)
    return path
