"""A dead machine for tests of the rescue program: loop devices as its disks, a stick with images."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from imager.capture import CaptureOptions, capture
from imager.disk import programs
from imager.rescue.app import open_session
from imager.rescue.session import Machine, Session
from tests.disks import MIB
from tests.loop import LoopDevice, mounted, run
from tests.rescue_program import DATA, loop_machine, named_disks
from tests.scripted_screen import ScriptedScreen
from tests.small_disk import SMALL_SIZE, Small, garbage

HOST = "office-pc"


@dataclass
class Lab:
    """What the tests work with."""

    folder: Path
    """Below it, what is a disk to the program."""
    stick: LoopDevice
    old: LoopDevice
    """The disk that was imaged."""
    new: LoopDevice
    tiny: LoopDevice
    machine: Machine
    commands: list[tuple[str, ...]] = field(default_factory=list)
    """What would have been run, of what must not be run in tests."""

    def session(self, screen: ScriptedScreen) -> Session:
        """A session at a screen."""
        return open_session(screen, self.machine)

    @contextmanager
    def data(self) -> Iterator[Path]:
        """The stick's files."""
        with mounted(self.stick.path, self.folder / "look") as place:
            yield place


@contextmanager
def lab(
    folder: Path, small: Small, answers: dict[tuple[str, ...], str] | None = None
) -> Iterator[Lab]:
    """Make it; `answers` are what the programs that are not run would print."""
    disks = folder / "disks"
    disks.mkdir()
    # The disk as it was, and is now that its machine is dead.
    shutil.copyfile(small.disk, disks / "old.raw")
    commands: list[tuple[str, ...]] = []
    with ExitStack() as stack:
        stack.enter_context(named_disks(disks))
        stick = stack.enter_context(LoopDevice(disks / "stick.raw", 256 * MIB))
        old = stack.enter_context(LoopDevice(disks / "old.raw"))
        new = stack.enter_context(LoopDevice(garbage(disks / "new.raw", SMALL_SIZE)))
        tiny = stack.enter_context(LoopDevice(disks / "tiny.raw", 10 * MIB))
        old.scan()
        run("mkfs.ext4", "-q", "-L", DATA, stick.path)
        with mounted(stick.path, folder / "stick") as place:
            (place / "images").mkdir()
            capture(old.path, place / f"images/{HOST}.img", CaptureOptions(host=HOST))
            cut = (place / f"images/{HOST}.img").read_bytes()[:5_000_000]
            (place / "images/unfinished.img.partial").write_bytes(cut)
        machine = loop_machine(disks)
        real = machine.run

        def pretend(program: str, package: str, *words: str) -> CompletedProcess[str]:
            if program in ("umount", "mount"):
                return real(program, package, *words)
            commands.append((program, *words))
            text = (answers or {}).get((program, *words[:1]), "")
            return CompletedProcess((program, *words), 0, text, "")

        machine = Machine(**{**vars(machine), "run": pretend})
        yield Lab(disks, stick, old, new, tiny, machine, commands)


def wiped(device: LoopDevice) -> None:
    """Make a disk blank."""
    run("wipefs", "--all", "--quiet", device.path)


def mounts_left(folder: Path) -> list[str]:
    """Devices below `folder` that are still mounted, or attached to another loop device."""
    names = {
        device.name
        for device in Path("/sys/block").glob("loop*")
        if (device / "loop/backing_file").exists()
        and str(folder) in (device / "loop/backing_file").read_text()
    }
    listed = subprocess.run(
        [programs.find("losetup", "util-linux"), "--list", "--noheadings", "--output", "BACK-FILE"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    attached = [file for file in listed if file.removeprefix("/dev/") in names]
    held = [line for line in Path("/proc/mounts").read_text().splitlines()
            if line.split()[0].removeprefix("/dev/") in names]  # fmt: skip
    return attached + held
