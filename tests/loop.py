"""Real loop devices and mounts for tests, undone whatever happens."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self


def run(*command: str | Path, stdin: str | None = None) -> str:
    """The standard output of a command that must succeed; AssertionError with what it said."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, input=stdin, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"{command} exited {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def sparse_file(path: Path, size: int) -> Path:
    """A file of `size` bytes, all of them holes."""
    with path.open("xb") as file:
        file.truncate(size)
    return path


class LoopDevice:
    """A loop device over a file, made of `size` sparse bytes where it does not exist.

    Partition nodes appear by `scan`; leaving the context removes them and detaches.
    """

    def __init__(
        self,
        file: Path,
        size: int = 0,
        sector_size: int = 512,
        read_only: bool = False,
        direct: bool = False,
    ) -> None:
        """With `direct` the file is not read through the page cache: as slow as its disk."""
        self.file = file if file.exists() else sparse_file(file, size)
        self.sector_size = sector_size
        self._read_only = read_only
        self._options = ["--read-only"] * read_only + ["--direct-io=on"] * direct
        self.path = Path()

    def __enter__(self) -> Self:
        options = [*self._options, "--sector-size", str(self.sector_size)]
        self.path = Path(run("losetup", "--find", "--show", *options, self.file).strip())
        if not self._read_only:
            # What `blockdev --setro` did to the loop device outlives the file that it had then.
            run("blockdev", "--setrw", self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Without this the kernel keeps the partitions for the next user of the loop device.
        subprocess.run(["partx", "--delete", self.path], capture_output=True, check=False)
        run("losetup", "--detach", self.path)
        backing = Path("/sys/block") / self.path.name / "loop/backing_file"
        for _attempt in range(50):
            try:
                if backing.read_text().strip() != str(self.file):
                    return
            except FileNotFoundError:
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.path} is still attached: something holds it open")

    def scan(self) -> None:
        """Make nodes for the partitions that the table has now.

        Tried more than once: whoever looks at new devices may hold an old partition for a moment.
        """
        for _attempt in range(20):
            subprocess.run(["partx", "--delete", self.path], capture_output=True, check=False)
            added = subprocess.run(["partx", "--add", self.path], capture_output=True, check=False)
            if added.returncode == 0:
                return
            time.sleep(0.1)
        run("partx", "--add", self.path)

    def partition(self, number: int) -> Path:
        """The node of a partition, once scanned."""
        return Path(f"{self.path}p{number}")


@contextmanager
def mounted(device: Path, place: Path, *options: str, fs_type: str = "ext4") -> Iterator[Path]:
    """`device` mounted on the directory `place`, which is made; unmounted at the end."""
    place.mkdir(exist_ok=True)
    words = ["--options", ",".join(options)] if options else []
    run("mount", "--types", fs_type, *words, device, place)
    try:
        yield place
    finally:
        run("umount", "--recursive", place)


@contextmanager
def swapped_on(device: Path) -> Iterator[None]:
    """`device`, made swap space before, in use as such."""
    run("swapon", device)
    try:
        yield
    finally:
        run("swapoff", device)
