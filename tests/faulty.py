"""`imager` on hardware that fails: its system calls on chosen files and ranges go wrong.

    python -m tests.faulty FAULTS ARGUMENT...

FAULTS is a JSON list of the fields of `Fault`. A range of bytes that fails does so as in the kernel:
a transfer that begins before it ends short of it.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from imager.cli import main
from imager.disk import abi

ENDLESS = 1 << 62


@dataclass
class Fault:
    """What happens to a call on the file `path` that touches its bytes [start, end)."""

    call: str
    """read, write, discard, sync or rename; find, for a program that is not installed."""
    path: str
    action: str
    """The name of an errno; or end (of file), short, flip, kill, crash, run."""
    start: int = 0
    end: int = ENDLESS
    skip: int = 0
    """How many such calls go well before."""
    command: list[str] = field(default_factory=list)
    """What to run, once, just before the call."""


def faulty(*faults: Fault) -> tuple[str, ...]:
    """The program that has these faults, for `tests.command.imager`."""
    spec = json.dumps([asdict(fault) for fault in faults])
    return (sys.executable, "-m", "tests.faulty", spec)


STILL = Fault("clock", "", "")
"""Not a fault: captures of the same disk at any time give the same image."""

# What the faults below stand between, as it was.
_real = SimpleNamespace(**vars(os))


class _Faults:
    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = list(faults)

    def find(self, call: str, path: str, start: int = 0, size: int = 1) -> Fault | None:
        """The fault that this call meets, if any; what kills or crashes does so here."""
        for fault in self._faults:
            if (fault.call, fault.path) != (call, path):
                continue
            if fault.start < start + size and start < fault.end:
                if fault.skip:
                    fault.skip -= 1
                    return None
                return self._act(fault, start)
        return None

    def _act(self, fault: Fault, start: int) -> Fault | None:
        if fault.action == "crash":
            raise RuntimeError("injected")
        if fault.action == "run":
            self._faults.remove(fault)
            subprocess.run(fault.command, check=True)
            return None
        if fault.action == "kill" and start >= fault.start:
            _real.kill(os.getpid(), signal.SIGKILL)
        return fault

    def transfer(
        self, call: str, fd: int, view: memoryview, offset: int, real: Callable[[memoryview], int]
    ) -> int:
        """Read into or write from `view` at `offset` of a file, or not quite."""
        fault = self.find(call, os.readlink(f"/proc/self/fd/{fd}"), offset, len(view))
        if fault is None:
            return real(view)
        if fault.action == "short":
            return real(view[:50_001])
        if fault.action == "flip":
            data = bytearray(view)
            data[max(fault.start - offset, 0)] ^= 0x10
            return real(memoryview(data))
        if offset < fault.start:
            return real(view[: fault.start - offset])
        if fault.action == "end":
            return 0
        raise _error(fault)

    def fail(self, call: str, fd: int) -> None:
        """Raise what a call that transfers no bytes meets, if anything."""
        fault = self.find(call, os.readlink(f"/proc/self/fd/{fd}"))
        if fault is not None:
            raise _error(fault)


def _error(fault: Fault) -> OSError:
    number = getattr(errno, fault.action)
    return OSError(number, os.strerror(number))


def _install(faults: _Faults) -> None:
    """Put the faults under everything that `imager` reads and writes with."""

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        (view,) = buffers

        def read(part: memoryview) -> int:
            count: int = _real.preadv(fd, [part], offset, flags)
            return count

        return faults.transfer("read", fd, view, offset, read)

    def pread(fd: int, size: int, offset: int) -> bytes:
        data = bytearray(size)
        return bytes(data[: preadv(fd, [memoryview(data)], offset)])

    def pwrite(fd: int, data: Any, offset: int) -> int:
        return faults.transfer(
            "write", fd, memoryview(data), offset, lambda part: _real.pwrite(fd, part, offset)
        )

    def write(fd: int, data: Any) -> int:
        try:
            offset = os.lseek(fd, 0, os.SEEK_CUR)
        except OSError:  # a pipe
            offset = 0
        return faults.transfer(
            "write", fd, memoryview(data), offset, lambda part: _real.write(fd, part)
        )

    def fsync(fd: int) -> None:
        faults.fail("sync", fd)
        _real.fsync(fd)

    really_discard = abi.discard

    def discard(fd: int, offset: int, size: int) -> None:
        faults.fail("discard", fd)
        really_discard(fd, offset, size)

    def rename(source: Any, target: Any, **options: Any) -> None:
        faults.find("rename", str(source))
        _real.rename(source, target, **options)

    which = shutil.which

    def find(program: str, *arguments: Any, **options: Any) -> str | None:
        missing = faults.find("find", program) is not None
        return None if missing else which(program, *arguments, **options)

    for function in (preadv, pread, pwrite, write, fsync, rename):
        mock.patch.object(os, function.__name__, function).start()
    mock.patch.object(shutil, "which", find).start()
    mock.patch.object(abi, "discard", discard).start()
    if faults.find("clock", "") is not None:
        for name in ("imager.capture_facts", "imager.description"):
            module = importlib.import_module(name)
            mock.patch.object(module, "now", lambda *_: "2024-02-29T12:00:00+01:00").start()
        mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=1)).start()


if __name__ == "__main__":
    _install(_Faults([Fault(**fields) for fields in json.loads(sys.argv[1])]))
    sys.exit(main(sys.argv[2:]))
