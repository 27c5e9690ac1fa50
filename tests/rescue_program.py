"""The rescue program on loop devices: python -m tests.rescue_program FOLDER

Only loop devices whose files lie in FOLDER are disks to it, so that it can be driven key by key
against the real `dialog` without touching the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from imager.disk.inventory import Disk, list_disks
from imager.rescue import app
from imager.rescue.dialogs import DialogScreen
from imager.rescue.media import MediaVolume, media_volumes
from imager.rescue.session import Machine

DATA = "IMAGER_DATA"


def loop_disks(folder: Path) -> tuple[Disk, ...]:
    """The loop devices over files in `folder`."""
    return tuple(
        disk
        for disk in list_disks()
        if Path(disk.identity.backing_file or "/").is_relative_to(folder)
    )


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
    )


if __name__ == "__main__":
    app.run(app.open_session(DialogScreen(), loop_machine(Path(sys.argv[1]))), leave=True)
