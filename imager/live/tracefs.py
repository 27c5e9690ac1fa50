"""A private instance of the kernel's event tracing: made, switched on, read, and always removed.

The instance is ours alone: whatever else is traced on the machine goes on undisturbed. One that a
process of ours left behind, because it was killed, is removed by the next.
(linux/Documentation/trace/ftrace.rst, "Instances")
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imager.errors import NotCaughtError
from imager.live.pages import PageFormat, page_format

EVENT = "events/block/block_rq_complete"
_BUFFERS = 1 << 27
"""Bytes of all buffers together, as far as that leaves each CPU at least `_MIN_BUFFER`."""
_MIN_BUFFER, _MAX_BUFFER = 1 << 20, 1 << 23
_NAME = re.compile(r"imager-(?P<process>\d+)-(?P<start>\d+)")
_LOSSES = ("overrun", "commit overrun", "dropped events")

# linux/mount.h; the numbers of the calls are the same on all machines (asm-generic/unistd.h)
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOSE_ON_EXEC = 1
"""FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC"""
_CREATE = 6
"""FSCONFIG_CMD_CREATE"""
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_LIBC = ctypes.CDLL(None, use_errno=True)


class TracingError(NotCaughtError):
    """The kernel cannot, or may not, tell which sectors are written."""


def buffer_size(cpus: int) -> int:
    """Bytes of each CPU's buffer: 150,000 events where there are few CPUs."""
    return max(_MIN_BUFFER, min(_MAX_BUFFER, _BUFFERS // max(cpus, 1)))


@contextmanager
def tracefs() -> Iterator[Path]:
    """Where tracefs is mounted; if it is nowhere, a mount that only this process has, in no tree.

    Nothing of that is left, however the process ends.
    """
    for place in (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing")):
        if (place / "instances").is_dir():
            yield place
            return
    try:
        fd = _mounted_nowhere()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise TracingError(
            f"tracefs cannot be mounted ({reason}): writes to a mounted disk cannot be "
            "followed; run as root, outside of containers"
        ) from None
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _mounted_nowhere() -> int:
    """A descriptor on the root of a tracefs that is not attached anywhere."""
    context = _call(_FSOPEN, b"tracefs", _CLOSE_ON_EXEC)
    try:
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _CLOSE_ON_EXEC, _NOSUID_NODEV_NOEXEC)
    finally:
        os.close(context)


def _call(number: int, *words: bytes | int | None) -> int:
    result: int = _LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Instance:
    """One tracing instance that records completed requests which are not reads, of one disk."""

    def __init__(self, root: Path, device: int, buffer: int) -> None:
        """Begin to record writes to the block device `device` (a device number).

        `buffer` is the size of each CPU's buffer in bytes. Raises TracingError where the kernel
        refuses; then nothing is left behind.
        """
        remove_abandoned(root)
        self._filter = f'dev == {os.major(device) << 20 | os.minor(device)} && !(rwbs ~ "R*")'
        self.directory = root / "instances" / f"imager-{os.getpid()}-{start_time(os.getpid())}"
        self._readers: list[int] = []
        try:
            self.directory.mkdir()
            self._begin(root, buffer)
        except OSError as error:
            self.close()
            reason = (error.strerror or str(error)).lower()
            raise TracingError(
                f"the kernel's event tracing cannot be used ({reason}): writes to a mounted disk "
                "cannot be followed; run as root, outside of containers"
            ) from None
        except BaseException:
            self.close()
            raise

    def _begin(self, root: Path, buffer: int) -> None:
        self._write("tracing_on", "0")
        self._write("buffer_size_kb", str(buffer >> 10))
        # Where a buffer is full the new events are dropped, and counted: what was recorded stays.
        self._write("options/overwrite", "0")
        for option in ("options/record-cmd", "options/irq-info"):
            with contextlib.suppress(OSError):
                self._write(option, "0")
        self.format: PageFormat = page_format(
            (root / "events/header_page").read_text(),
            (self.directory / EVENT / "format").read_text(),
        )
        self.page_size = os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError):
            self.page_size = int(self._read("buffer_subbuf_size_kb")) << 10
        self._cpus = sorted((self.directory / "per_cpu").iterdir())
        for cpu in self._cpus:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            self._readers.append(os.open(cpu / "trace_pipe_raw", flags))
        self._write(f"{EVENT}/filter", self._filter)
        self._write(f"{EVENT}/enable", "1")
        self._write("tracing_on", "1")

    def pages(self) -> Iterator[bytes]:
        """All pages with events recorded so far, in no particular order across CPUs."""
        for reader in self._readers:
            while True:
                try:
                    page = os.read(reader, self.page_size)
                except BlockingIOError:
                    break
                if not page:
                    break
                yield page

    def lost(self) -> int:
        """How many events the kernel had to drop so far."""
        total = 0
        for cpu in self._cpus:
            for line in (cpu / "stats").read_text().splitlines():
                key, _, value = line.partition(":")
                if key in _LOSSES:
                    total += int(value)
        return total

    def still_records(self) -> bool:
        """Whether nobody has switched it off or changed its filter."""
        return (
            self._read("tracing_on") == "1"
            and self._read(f"{EVENT}/enable").startswith("1")
            and self._read(f"{EVENT}/filter") == self._filter
        )

    def close(self) -> None:
        """Stop, and remove the instance; harmless when done twice."""
        for reader in self._readers:
            os.close(reader)
        self._readers = []
        _remove(self.directory)

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def _read(self, name: str) -> str:
        return (self.directory / name).read_text().strip()


def remove_abandoned(root: Path) -> None:
    """Remove instances of ours whose process is gone."""
    for directory in (root / "instances").iterdir():
        match = _NAME.fullmatch(directory.name)
        if match and start_time(int(match["process"])) != int(match["start"]):
            _remove(directory)


def _remove(directory: Path) -> None:
    for name in ("tracing_on", f"{EVENT}/enable"):
        with contextlib.suppress(OSError):
            (directory / name).write_text("0")
    with contextlib.suppress(OSError):
        directory.rmdir()


def start_time(process: int) -> int | None:
    """When a process began, in ticks since boot (proc(5), /proc/pid/stat, field 22)."""
    try:
        text = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
