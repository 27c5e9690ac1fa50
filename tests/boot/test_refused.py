"""Jobs that must not be done: the reason on the serial line, no restart, every byte as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bootmedia.stick import plan_stick, write_stick
from tests.boot.guest import SIZE
from tests.boot.keys import DOWN, ENTER, Keys
from tests.boot.lab import IMAGE, JOB, LABEL, LONG, STORE, TARGET, Lab, require_itself, stays_on
from tests.boot.vm import Vm, VmDisk
from tests.comparing import digest
from tests.disks import MIB, clone, make_disk, put
from tests.loop import LoopDevice, mounted
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
    """The image is missing on the stick, which then stays usable; put there, it is restored; and
    not a second time by the restart that follows, with the stick still first in the boot order.
    """
    words = JOB.replace(f"{LABEL}:/{IMAGE}", "IMAGER_DATA:/images/own.img")
    iso = lab.medium(f"{words} imager.after=reboot", "once")
    stick = make_disk(tmp_path / "stick", iso.stat().st_size // MIB * MIB + 256 * MIB)
    with LoopDevice(stick) as device:
        write_stick(plan_stick(iso, str(device.path)))
    target = VmDisk(lab.target(), "virtio", TARGET)
    with Vm([VmDisk(stick, "usb", "STICK1"), target, store(lab)], reboots=True) as vm:
        vm.serial.wait("Reason: .*own.img does not exist", LONG)
        keys = Keys(vm)
        keys.see("The job on the kernel line", seconds=LONG)
        keys.press(ENTER)
        keys.see("Shell, for those who know")
        keys.press(*[DOWN] * 7, ENTER)
        vm.serial.wait("This is a shell", LONG)
        for command, answer in (
            ("mkdir /s /d && mount -o ro,noload -L BACKUP /s && echo sto''re", "store"),
            ("mount -L IMAGER_DATA /d && mkdir -p /d/images && echo sti''ck", "stick"),
            (f"cp /s/{IMAGE} /d/images/own.img && umount /s /d && echo cop''ied", "copied"),
        ):
            vm.serial.send(f"{command}\r")
            vm.serial.wait(answer, LONG)
        vm.serial.send("systemctl reboot\r")
        vm.serial.wait("The restore is finished: guest", LONG)
        vm.serial.wait("This machine will restart", LONG)
        vm.serial.wait(r"Nothing is done: this job has run already \(finished: ok\)", LONG)
        vm.serial.wait("This machine stays on", LONG)
    require_itself(lab, target, "bios")
