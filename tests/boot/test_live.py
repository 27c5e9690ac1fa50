"""A running machine captures the disk that it runs from, under load; the restored one starts, and its
disk is as it was at one instant. What the load proves, and how: see `load`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imager.check import check
from tests.boot.load import RECORD, Wrong
from tests.boot.load import check as check_load
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
until [ -s /var/load/log ]; do sleep 1; done
sleep 3
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
    with LoopDevice(store, 2800 * MIB) as device:
        run("mkfs.ext4", "-q", "-L", "JOB", device.path)
        with mounted(device.path, folder / "place") as place:
            (place / "job").write_text(_JOB.format(**words))
    disks = [VmDisk(disk, bus, "OWN"), VmDisk(store, "virtio", "STORE")]
    with Vm(disks, memory=1024) as vm:
        vm.serial.wait("STATE new", LONG)
        before, after = (
            # A job that fails leads to the prompt.
            vm.serial.wait(rf"{word}=(\d+)\.|machine login:", LONG)
            for word in ("BEFORE", "AFTER")
        )
        assert before[1] and after[1], vm.serial.text[-4000:]
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


def state(disk: Path, folder: Path) -> tuple[int, int]:
    """What the load says of a plain machine's disk, looked at from here; Wrong as it raises it."""
    esp = folder / "esp"
    esp.mkdir(exist_ok=True)
    with LoopDevice(disk) as device:
        device.scan()
        (esp / "load").unlink(missing_ok=True)
        run("mcopy", "-i", device.partition(2), "::load", esp)
        with (
            mounted(device.partition(3), folder / "root") as root,
            mounted(device.partition(4), folder / "home") as home,
        ):
            return check_load(root / "var/load", home / "load", esp)


@pytest.mark.ci
def test_own_disk_plain(tmp_path: Path) -> None:
    """On virtio. What a power cut would leave is known to fail the same comparison."""
    commands = f"""\
{_CAPTURE} $disk /job/own.img; echo "capture exited $?."
{_CAPTURE} --consistency crash $disk /job/crash.img; echo "crash exited $?."
"""
    worked = work(tmp_path, "plain", "virtio", commands)
    assert worked.status("capture") == worked.status("crash") == 0
    disk = bring_back(worked, "crash.img", tmp_path)
    with pytest.raises((Wrong, AssertionError, OSError)):
        state(disk, tmp_path)
    disk = bring_back(worked, "own.img", tmp_path)
    steps, _ = state(disk, tmp_path)
    assert worked.before <= steps <= worked.after
    require_instant(worked, disk, "virtio")


@pytest.mark.parametrize(("kind", "bus"), [("lvm", "sata"), ("luks", "nvme")])
def test_own_disk(kind: str, bus: str, tmp_path: Path) -> None:
    """LVM, and LVM in LUKS."""
    commands = f'{_CAPTURE} $disk /job/own.img; echo "capture exited $?."'
    worked = work(tmp_path, kind, bus, commands)
    assert worked.status("capture") == 0
    assert "the disk as it was at" in worked.text
    require_instant(worked, bring_back(worked, "own.img", tmp_path), bus)


def test_nightly_store(tmp_path: Path) -> None:
    """A full image and one against it, both of the disk in use."""
    store = "$imager capture --store /job/store --level 1 --target-pause 3s --max-pause 30s $disk"
    commands = f"""\
$imager store init /job/store; echo "init exited $?."
{store}; echo "full exited $?."
steps SECOND
{store}; echo "incremental exited $?."
"""
    worked = work(tmp_path, "plain", "nvme", commands)
    assert [worked.status(name) for name in ("init", "full", "incremental")] == [0, 0, 0]
    second = re.search(r"SECOND=(\d+)\.", worked.text)
    assert second
    worked = replace(worked, before=int(second[1]))
    disk = bring_back(worked, "store/**/*.img", tmp_path)
    require_instant(worked, disk, "nvme")


_KILLED = """\
cat > /run/killed.py <<EOF
import pathlib, time
from imager.disk.sysfs import BlockTree
from imager.live.freezer import Freezer
from imager.live.snapshot import Snapshots
from imager.live.superblocks import Superblocks
disk = pathlib.Path("$disk")
size = BlockTree().size(disk.name)
with Superblocks(disk) as held, Snapshots(held.all, disk.name, 0, size) as made:
    with Freezer(held.all, 300) as freezer, freezer.frozen():
        made.take()
        print("TAKEN", flush=True)
        time.sleep(1000)
EOF
python3 /run/killed.py > /run/taken &
killed=$!
until grep -q TAKEN /run/taken; do sleep 0.2; done
kill -9 $killed
"""


def test_snapshots_of_what_is_written_without_a_pause(tmp_path: Path) -> None:
    """What a killed capture left goes, an image by snapshots is of one instant, and where the space
    for them runs out there is none.
    """
    capture = f"{_CAPTURE} --max-pause 60s --consistency snapshot $disk"
    left = "lvs --noheadings --options lv_name machine | grep --count imager-"
    commands = f"""\
{_KILLED}
date > /var/load/thawed && date > /home/load/thawed && sync && echo "THAWED LEFT=$({left})."
{capture} /job/own.img; echo "capture exited $?."
echo "NOW LEFT=$({left})."
steps AFTER
lvcreate --quiet --yes --zero n --wipesignatures n --name filler --extents 97%FREE machine
{capture} /job/not.img; echo "overflow exited $?."
echo "THEN LEFT=$({left}). FILES=$(ls /job)."
"""
    worked = work(tmp_path, "lvm", "virtio", commands, pauses="0.1 0")
    assert "THAWED LEFT=2." in worked.text
    assert worked.status("capture") == 0
    assert "was read from snapshots" in worked.text
    assert "NOW LEFT=0." in worked.text
    assert worked.status("overflow") == 11
    assert "ran over while it was read" in worked.text
    assert "THEN LEFT=0." in worked.text and "not.img" not in worked.text.rpartition("FILES=")[2]
    require_instant(worked, bring_back(worked, "own.img", tmp_path), "virtio")
