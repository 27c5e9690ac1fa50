"""A sysfs and a proc with devices that the test machine's kernel does not have."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from imager.disk.sysfs import BlockTree
from imager.disk.system import System


class FakeSystem:
    """Builds /sys and /proc in a directory; `system` looks at them, `node` makes device nodes."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.proc = root / "proc"
        self._nodes = root / "nodes"
        self._numbers: dict[str, int] = {}
        for directory in ("class/block", "dev/block", "block", "devices", "fs/btrfs"):
            (self.sys / directory).mkdir(parents=True)
        self._nodes.mkdir()
        self.add_process("self", [])

    @property
    def system(self) -> System:
        return System(BlockTree(self.sys), self.proc)

    def add_disk(self, name: str, number: int, made_of: tuple[str, ...] = ()) -> Path:
        """A whole device; returns its directory for more attributes."""
        directory = self.sys / "devices" / name
        self._add(name, number, directory)
        (self.sys / "block" / name).symlink_to(directory)
        for part in made_of:
            (directory / "slaves" / part).mkdir()
            (self.sys / "class/block" / part / "holders" / name).mkdir()
        return directory

    def add_partition(self, disk: str, name: str, number: int) -> None:
        directory = self.sys / "devices" / disk / name
        self._add(name, number, directory)
        (directory / "partition").write_text(f"{name.removeprefix(disk).lstrip('p')}\n")

    def add_process(
        self, process: str, mounts: list[str], namespace: str = "mnt:[1]", root: str = "/"
    ) -> None:
        """A process that sees these lines of mountinfo."""
        directory = self.proc / process
        (directory / "ns").mkdir(parents=True, exist_ok=True)
        for link, target in ((directory / "ns/mnt", namespace), (directory / "root", root)):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        (directory / "mountinfo").write_text("".join(f"{line}\n" for line in mounts))

    def mount_line(self, name: str, point: str, mode: str = "rw") -> str:
        """A line of mountinfo for a file system on the device `name`."""
        number = self._numbers[name]
        where = f"{os.major(number)}:{os.minor(number)}"
        return f"31 1 {where} / {point} {mode},relatime shared:1 - ext4 /dev/{name} {mode}"

    def node(self, name: str) -> Path:
        """A node of the device, which exists but cannot be opened."""
        path = self._nodes / name
        if not path.exists():
            os.mknod(path, stat.S_IFBLK | 0o600, self._numbers[name])
        return path

    def _add(self, name: str, number: int, directory: Path) -> None:
        self._numbers[name] = number
        for inner in ("slaves", "holders"):
            (directory / inner).mkdir(parents=True)
        (directory / "dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
        (directory / "size").write_text("2048\n")
        (self.sys / "class/block" / name).symlink_to(directory)
        link = self.sys / f"dev/block/{os.major(number)}:{os.minor(number)}"
        link.symlink_to(directory)
