"""A machine in QEMU: firmware, disks on any bus, a serial line to read and type on, cables to pull.

Software emulation only, so that it runs wherever QEMU does. Nothing here outlives the `with`
statement: QEMU is told to die with its parent.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyte

FIRMWARES = ("bios", "uefi", "sb")
"""SeaBIOS, UEFI (OVMF), UEFI with Secure Boot and the keys that shipping machines have."""
BUSES = ("virtio", "sata", "nvme", "usb", "cd")
_OVMF = Path("/usr/share/OVMF")
_PR_SET_PDEATHSIG = 1
_COLUMNS, _LINES = 80, 24
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class VmDisk:
    """A disk of the machine; the order of the disks is the firmware's boot order."""

    path: Path
    bus: str = "virtio"
    serial: str = ""
    sector: int = 512
    """Logical sector size; other than 512 on virtio and NVMe only."""
    keep: bool = True
    """Whether what is written to it stays."""
    read_only: bool = False


class Serial:
    """The machine's serial line: all that it said, and the screen of 80 x 24 that this makes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(0.2)
        self.text = ""
        self._seen = 0
        self._screen = pyte.Screen(_COLUMNS, _LINES)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def screen(self) -> str:
        """What a terminal would show now, without blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def poll(self) -> bool:
        """Take what has come; False once the line is closed."""
        try:
            data = self._connection.recv(1 << 16)
        except TimeoutError:
            return True
        except ConnectionError:
            return False
        self._stream.feed(data)
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def wait(self, pattern: str, seconds: float) -> re.Match[str]:
        """The next match of `pattern` in what is said; AssertionError when it does not come."""
        found = None

        def is_there() -> bool:
            nonlocal found
            found = re.compile(pattern).search(self.text, self._seen)
            return found is not None

        self._until(is_there, seconds, f"{pattern!r} was not said")
        assert found is not None
        self._seen = found.end()
        return found

    def wait_screen(self, pattern: str, seconds: float) -> str:
        """The screen, once `pattern` is found on it; AssertionError when it does not come."""
        self._until(
            lambda: re.search(pattern, self.screen) is not None,
            seconds,
            f"{pattern!r} is not on the screen:\n{self.screen}\n",
        )
        return self.screen

    def send(self, text: str) -> None:
        """Type `text`."""
        self._connection.sendall(text.encode())

    def _until(self, done: Callable[[], bool], seconds: float, problem: str) -> None:
        end = time.monotonic() + seconds
        while not done():
            open_still = self.poll()
            if done():
                return
            if not open_still or time.monotonic() > end:
                why = f"in {seconds:.0f} s" if open_still else "before the machine went off"
                tail = "\n".join(self.text.splitlines()[-60:])
                raise AssertionError(f"{problem} {why}; it said:\n{tail}")


class Vm:
    """A running machine; use it in a `with` statement."""

    def __init__(
        self,
        disks: Sequence[VmDisk],
        firmware: str = "bios",
        memory: int = 768,
        reboots: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        """Prepare a machine with `memory` MiB; unless `reboots`, a restart ends it."""
        assert firmware in FIRMWARES
        self._folder = Path(tempfile.mkdtemp(prefix="vm-", dir="/var/tmp"))
        self._words = [
            *("-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-m", str(memory)),
            *("-display", "none", "-nodefaults", "-nic", "none", "-vga", "std"),
            *("-qmp", f"unix:{self._folder}/qmp,server=on,wait=off"),
            *("-chardev", f"socket,id=line,path={self._folder}/serial,server=on,wait=on"),
            *("-serial", "chardev:line"),
            *("-device", "qemu-xhci,id=xhci"),
            *([] if reboots else ["-no-reboot"]),
            *self._firmware(firmware),
            *options,
        ]
        ports = itertools.count()
        for number, disk in enumerate(disks):
            self._words += _disk_words(number, disk, ports)

    def __enter__(self) -> Self:
        self.begun = time.monotonic()
        self._log = (self._folder / "qemu.log").open("wb")
        self._process = subprocess.Popen(
            ["qemu-system-x86_64", *self._words],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        try:
            self.serial = Serial(self._connect("serial"))
            self._qmp = self._connect("qmp")
            self._answers = self._qmp.makefile("r")
            self._answers.readline()
            self.qmp("qmp_capabilities")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """Since it was switched on."""
        return time.monotonic() - self.begun

    @property
    def is_on(self) -> bool:
        """Whether it is running."""
        return self._process.poll() is None

    def qmp(self, command: str, **arguments: object) -> Any:
        """QEMU's answer to a command of its machine protocol; AssertionError where it refuses."""
        message = {"execute": command, "arguments": arguments}
        self._qmp.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer = json.loads(self._answers.readline())
            if "error" in answer:
                raise AssertionError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def unplug(self, number: int) -> None:
        """Pull the cable of a USB disk, given by its place among the disks."""
        self.qmp("device_del", id=f"disk{number}")

    def cut_power(self) -> None:
        """Switch it off without a warning."""
        self._process.kill()
        self._process.wait()

    def wait_off(self, seconds: float) -> None:
        """Wait until it has switched itself off; AssertionError when it does not."""
        end = time.monotonic() + seconds
        while self.is_on and time.monotonic() < end:
            if not self.serial.poll():
                time.sleep(0.1)
        tail = "\n".join(self.serial.text.splitlines()[-40:])
        assert not self.is_on, f"the machine is still on after {seconds:.0f} s:\n{tail}"

    def close(self) -> None:
        """Switch it off and forget it."""
        if self.is_on:
            self.cut_power()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, name: str) -> socket.socket:
        end = time.monotonic() + 20
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._folder / name))
                return connection
            except OSError:
                connection.close()
                if not self.is_on or time.monotonic() > end:
                    said = (self._folder / "qemu.log").read_text(errors="replace")
                    raise AssertionError(f"QEMU does not run: {said}") from None
                time.sleep(0.05)

    def _firmware(self, firmware: str) -> list[str]:
        if firmware == "bios":
            return ["-machine", "q35"]
        secure = firmware == "sb"
        code = _OVMF / ("OVMF_CODE_4M.secboot.fd" if secure else "OVMF_CODE_4M.fd")
        variables = self._folder / "variables.fd"
        shutil.copy(_OVMF / ("OVMF_VARS_4M.ms.fd" if secure else "OVMF_VARS_4M.fd"), variables)
        flash = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if secure else []
        return [
            *("-machine", "q35,smm=on" if secure else "q35"),
            *flash,
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
        ]


def _disk_words(number: int, disk: VmDisk, ports: itertools.count[int]) -> list[str]:
    assert disk.bus in BUSES
    name = f"drive{number}"
    drive = f"if=none,id={name},format=raw,cache=unsafe,discard=unmap,file={disk.path}"
    drive += "" if disk.keep else ",snapshot=on"
    drive += ",readonly=on" if disk.read_only or disk.bus == "cd" else ""
    sectors = f",logical_block_size={disk.sector},physical_block_size={disk.sector}"
    device = {
        "virtio": f"virtio-blk-pci{sectors}",
        "sata": "ide-hd",
        "nvme": f"nvme{sectors}",
        "usb": "usb-storage,bus=xhci.0",
        "cd": "ide-cd",
    }[disk.bus]
    if disk.bus in ("sata", "cd"):
        device += f",bus=ide.{next(ports)}"
    if disk.bus == "cd":
        drive += ",media=cdrom"
    # QEMU wants a serial number for NVMe.
    serial = disk.serial or (f"disk{number}" if disk.bus == "nvme" else "")
    words = f"{device},id=disk{number},drive={name},bootindex={number + 1}"
    return ["-drive", drive, "-device", words + (f",serial={serial}" if serial else "")]


def die_with_parent() -> None:
    """In a process just made: be killed as soon as the test ends, however it does."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
