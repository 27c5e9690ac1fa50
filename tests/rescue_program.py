"""The rescue program on loop devices: python -m tests.rescue_program FOLDER [SECONDS]

Only loop devices whose files lie in FOLDER are disks to it, so that it can be driven key by key
against the real `dialog` without touching the machine. They get models and serial numbers, as disks
have them; all else about them is true. With SECONDS each step of the work takes that long.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from imager.disk.inventory import Disk, list_disks
from imager.disk.lsblk import Facts, lsblk
from imager.disk.sysfs import BlockTree
from imager.rescue import app
from imager.rescue.dialogs import DialogScreen
from imager.rescue.media import MediaVolume, media_volumes
from imager.rescue.session import Machine
from imager.rescue.work import Meter

DATA = "IMAGER_DATA"
NAMES = {
    "stick": {"model": "Ultra Fit", "serial": "4C530001", "tran": "usb"},
    "old": {"model": "Samsung SSD 870", "serial": "S6PXNZ0R40", "tran": "sata"},
    "new": {"model": "CT500MX500SSD1", "serial": "2151E5F7A8B3", "tran": "sata"},
    "tiny": {"model": "TOSHIBA MK8025GAS", "serial": "X5L2T1QZS", "tran": "ata"},
}
"""What is said of the loop device over the file NAME.raw."""


def loop_disks(folder: Path) -> tuple[Disk, ...]:
    """The loop devices over files in `folder`, in the order of their numbers."""
    found = (
        disk
        for disk in list_disks()
        if Path(disk.identity.backing_file or "/").is_relative_to(folder)
    )
    return tuple(sorted(found, key=lambda disk: int(disk.identity.name.removeprefix("loop"))))


def loop_machine(folder: Path) -> Machine:
    """A machine whose disks are these, and whose stick's data is on a volume called so."""

    def volumes() -> tuple[MediaVolume, ...]:
        return media_volumes(loop_disks(folder))

    def data() -> MediaVolume | None:
        return next((volume for volume in volumes() if volume.label == DATA), None)

    return Machine(
        state=folder / "run",
        disks=lambda: loop_disks(folder),
        volumes=volumes,
        data=data,
        sys=folder / "sys",
        pause=lambda: None,
    )


@contextmanager
def named_disks(folder: Path) -> Iterator[None]:
    """Have the loop devices over files in `folder` tell model and serial number."""

    def named(nodes: Iterable[Path] = ()) -> dict[str, Facts]:
        found = lsblk(nodes)
        for loop in BlockTree().loops:
            file = Path(loop.file)
            if file.is_relative_to(folder) and loop.name in found:
                found[loop.name] = {**found[loop.name], **NAMES.get(file.stem, {})}
        return found

    with (
        mock.patch("imager.disk.identity.lsblk", named),
        mock.patch("imager.disk.inventory.lsblk", named),
    ):
        yield


@contextmanager
def slowed(seconds: float) -> Iterator[None]:
    """Have the work take time, so that it can be watched and broken off."""
    real = Meter.__call__

    def call(meter: Meter, phase: str, done: int, total: int) -> None:
        time.sleep(seconds)
        real(meter, phase, done, total)

    with mock.patch.object(Meter, "__call__", call):
        yield


def main(folder: Path, seconds: float) -> None:
    """Run it on the terminal of this process."""
    signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(1))
    with named_disks(folder), slowed(seconds):
        app.run(app.open_session(DialogScreen(), loop_machine(folder)), leave=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0)
