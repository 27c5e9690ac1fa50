"""What a rescue program that was killed left mounted: cleared by the next one, and by nobody else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imager.disk.safety import check_target
from imager.errors import RefusedError
from imager.rescue import media
from imager.rescue.media import mounted_read_only
from imager.rescue.mount_places import clear_leftovers
from tests.disks import MIB
from tests.loop import LoopDevice, run
from tests.test_media import mounts, volumes_of

KILLED = """\
import sys, time
from pathlib import Path
from imager.rescue import media
media.STATE = Path(sys.argv[1])
volume = media.MediaVolume(sys.argv[2], "ext4", None, None, 0, media.list_disks()[0].identity)
with getattr(media, sys.argv[3])(volume):
    print("mounted", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("name", ["mounted_read_only", "mounted_for_writing"])
def test_what_a_killed_program_left(name: str, tmp_path: Path) -> None:
    with LoopDevice(tmp_path / "disk", 16 * MIB) as disk:
        run("mkfs.ext4", "-q", disk.path)
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, media.STATE, disk.path, name], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"mounted\n"
            assert clear_leftovers(media.STATE) == []  # it is at work
            assert mounts() != []
            process.send_signal(signal.SIGKILL)
        with pytest.raises(RefusedError, match="is in use"):
            check_target(disk.path, [])
        (line,) = clear_leftovers(media.STATE)
        assert "was left mounted" in line
        assert mounts() == [] and list(media.STATE.iterdir()) == []
        check_target(disk.path, [])


def test_own_mounts_stay(tmp_path: Path) -> None:
    with LoopDevice(tmp_path / "disk", 16 * MIB) as disk:
        run("mkfs.ext4", "-q", disk.path)
        (volume,) = volumes_of(disk)
        with mounted_read_only(volume) as root:
            assert clear_leftovers(media.STATE) == []
            assert (root / "lost+found").is_dir()
    assert clear_leftovers(tmp_path / "nothing") == []
