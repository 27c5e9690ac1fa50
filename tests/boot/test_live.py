"""A running machine captures the disk that it runs from, under load; the restored one starts, and its
disk is as it was at one instant. What the load proves, and how: see `load`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from imager.check import check
from tests.boot.load import RECORD
from tests.boot.machine import make_machine
from tests.boot.vm import Vm, VmDisk
from tests.command import imager
from tests.disks import MIB
from tests.loop import LoopDevice, mounted, run

LONG = 900
_DISKS = {"virtio": "vda", "sata": "sda", "nvme": "nvme0n1"}
_JOB = """\
disk=/dev/{disk}
imager="python3 -m imager"
steps() {{ echo "$1=$(($(stat --format %s /home/load/log) / {record}))."; }}
python3 /usr/local/lib/load.py write /var/load /home/load /boot/efi {pauses} &
load=$!
sleep 4
steps BEFORE
{commands}
steps AFTER
kill $load
umount /job
echo JOB done
systemctl --no-block poweroff
"""
_CAPTURE = "$imager capture --level 1 --target-pause 3s --max-pause 30s"
"""The emulated processor is that slow."""


@dataclass(frozen=True)
class Worked:
    """A machine that has done its job and is off."""

    text: str
    """What it said."""
    before: int
    """Steps of the load before the job's commands, and after them."""
    after: int
    store: Path
    """The disk that it wrote to."""

    def status(self, name: str) -> int:
        """The exit status that the job printed under this name."""
        found = re.search(rf"{name} exited (\d+)\.", self.text)
        assert found, self.text[-4000:]
        return int(found[1])


def work(
    folder: Path,
    kind: str,
    bus: str,
    commands: str,
    pauses: str = "0.05 0.3",
    disk: Path | None = None,
) -> Worked:
    """Start a machine whose load runs while `commands` do."""
    disk = disk or make_machine(kind, folder)
    store = folder / "store.raw"
    words = {"disk": _DISKS[bus], "record": RECORD, "pauses": pauses, "commands": commands}
    with LoopDevice(store, 1200 * MIB) as device:
        run("mkfs.ext4", "-q", "-L", "JOB", device.path)
        with mounted(device.path, folder / "place") as place:
            (place / "job").write_text(_JOB.format(**words))
    disks = [VmDisk(disk, bus, "OWN"), VmDisk(store, "virtio", "STORE")]
    with Vm(disks, memory=1024) as vm:
        vm.serial.wait(r"STATE new", LONG)
        before = vm.serial.wait(r"BEFORE=(\d+)\.", LONG)
        after = vm.serial.wait(r"AFTER=(\d+)\.", LONG)
        vm.serial.wait("JOB done", LONG)
        vm.wait_off(LONG)
        return Worked(vm.serial.text, int(before[1]), int(after[1]), store)


def bring_back(worked: Worked, image: str, folder: Path) -> Path:
    """The newest image of the pattern `image`, checked and restored, as a disk."""
    target = folder / "restored.raw"
    target.unlink(missing_ok=True)
    with LoopDevice(worked.store) as device, mounted(device.path, folder / "place", "ro") as place:
        newest = max(place.glob(image), key=lambda path: path.stat().st_mtime)
        assert check(newest).verdict == "ok"
        imager("restore", "--yes", newest, target)
    return target


def require_instant(worked: Worked, disk: Path, bus: str) -> None:
    """The restored machine starts to its login prompt, from a state within the job's time."""
    with Vm([VmDisk(disk, bus, "NEW")], memory=512) as vm:
        said = vm.serial.wait(r"STATE (?:ok steps=(\d+) blocks=(\d+)\.|(?:wrong|new).*)", LONG)
        assert said[1], said[0]
        assert worked.before <= int(said[1]) <= worked.after and int(said[2]) > 0
        vm.serial.wait("machine login:", LONG)


@pytest.mark.parametrize(
    ("kind", "bus"),
    [pytest.param("plain", "virtio", marks=pytest.mark.ci), ("lvm", "sata"), ("luks", "nvme")],
)
def test_own_disk(kind: str, bus: str, tmp_path: Path) -> None:
    """Into one file."""
    commands = f'{_CAPTURE} $disk /job/own.img; echo "capture exited $?."'
    worked = work(tmp_path, kind, bus, commands)
    assert worked.status("capture") == 0
    assert "the disk as it was at" in worked.text
    require_instant(worked, bring_back(worked, "own.img", tmp_path), bus)
