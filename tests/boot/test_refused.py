"""Jobs that must not be done: the reason on the serial line, no restart, every byte as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bootmedia.stick import plan_stick, write_stick
from tests.boot.guest import SIZE
from tests.boot.lab import IMAGE, JOB, LONG, STORE, TARGET, Lab, stays_on
from tests.boot.vm import Vm, VmDisk
from tests.comparing import digest
from tests.disks import MIB, clone, make_disk, put
from tests.loop import LoopDevice, mounted, run
from tests.small_disk import garbage


@pytest.fixture
def target(tmp_path: Path) -> Iterator[VmDisk]:
    """A disk full of something that must stay."""
    disk = VmDisk(garbage(tmp_path / "garbage", SIZE), "virtio", TARGET)
    before = digest(disk.path)
    yield disk
    assert digest(disk.path) == before


def store(lab: Lab) -> VmDisk:
    return VmDisk(lab.store, "virtio", STORE, read_only=True)


def test_misspelt_word(lab: Lab, target: VmDisk) -> None:
    words = f"{JOB} imager.atfer=reboot"
    stays_on(lab, words, [target, store(lab)], "imager.atfer on the kernel line is not known")


def test_image_that_is_missing(lab: Lab, target: VmDisk) -> None:
    words = JOB.replace(IMAGE, "images/other.img")
    stays_on(lab, words, [target, store(lab)], "other.img does not exist")


def test_image_that_is_damaged(lab: Lab, target: VmDisk, tmp_path: Path) -> None:
    damaged = clone(lab.store, tmp_path / "damaged")
    with (
        LoopDevice(damaged) as device,
        mounted(device.path, tmp_path / "place") as place,
    ):
        put(place / IMAGE, (place / IMAGE).stat().st_size // 2, b"damage" * 1000)
    words = f"{JOB} imager.after=reboot"
    stays_on(lab, words, [target, VmDisk(damaged, "virtio", STORE)], "is damaged")


def test_two_disks_where_there_must_be_one(lab: Lab, target: VmDisk, tmp_path: Path) -> None:
    other = VmDisk(make_disk(tmp_path / "other", SIZE), "sata", "OTHER1")
    words = JOB.replace(f"serial:{TARGET}", "only-disk")
    stays_on(lab, words, [target, other, store(lab)], "only-disk, but there are 2 disks")


def test_sectors_of_4096_bytes(lab: Lab, tmp_path: Path) -> None:
    disk = VmDisk(garbage(tmp_path / "disk", SIZE), "virtio", TARGET, sector=4096)
    before = digest(disk.path)
    stays_on(lab, JOB, [disk, store(lab)], "has sectors of 4096 bytes, the imaged disk had 512")
    assert digest(disk.path) == before


def test_a_stick_does_its_job_once(lab: Lab, tmp_path: Path) -> None:
    """Restarted from the stick that restored it, as when it is first in the boot order."""
    iso = lab.medium(f"{JOB} imager.after=reboot", "once")
    stick = make_disk(tmp_path / "stick", iso.stat().st_size // MIB * MIB + 128 * MIB)
    with LoopDevice(stick) as device:
        write_stick(plan_stick(iso, str(device.path)))
    target = VmDisk(lab.target(), "virtio", TARGET)
    disks = [VmDisk(stick, "usb", "STICK1"), target, store(lab)]
    with Vm(disks, reboots=True) as vm:
        vm.serial.wait("The restore is finished", LONG)
        vm.serial.wait("This machine will restart", LONG)
        vm.serial.wait(r"Nothing is done: this job has run already \(finished: ok\)", LONG)
        vm.serial.wait("This machine stays on", LONG)
    with LoopDevice(stick) as device:
        device.scan()
        assert "IMAGER_DATA" in run("blkid", "-p", device.partition(3))
