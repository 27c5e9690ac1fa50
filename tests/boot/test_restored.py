"""A dead machine comes back: restored without a person by the medium, it boots and is itself."""

from __future__ import annotations

import pytest

from tests.boot.guest import SIZE, boot, fresh_copy, make_guest
from tests.boot.keys import DOWN, ENTER, Keys
from tests.boot.lab import (
    IMAGE,
    JOB,
    LABEL,
    LARGER,
    LONG,
    STORE,
    TARGET,
    Lab,
    require_itself,
    run_medium,
)
from tests.boot.medium import ci_medium
from tests.boot.vm import Vm, VmDisk
from tests.disks import clone

DONE = "The restore is finished: guest"
SIZES = {"same": SIZE, "larger": LARGER}
CI = pytest.mark.ci


@pytest.mark.parametrize(
    ("firmware", "medium", "bus", "size"),
    [
        pytest.param("bios", "usb", "virtio", "same", marks=CI),
        pytest.param("uefi", "usb", "sata", "larger", marks=CI),
        pytest.param("sb", "usb", "nvme", "same", marks=CI),
        ("bios", "cd", "sata", "same"),
        ("bios", "usb", "nvme", "larger"),
        ("uefi", "cd", "virtio", "same"),
        ("uefi", "usb", "nvme", "larger"),
        ("sb", "cd", "virtio", "larger"),
        ("sb", "usb", "sata", "same"),
    ],
)
def test_restored(lab: Lab, firmware: str, medium: str, bus: str, size: str) -> None:
    """From a disk with the image onto a blank one on another bus, then booted from that alone."""
    target = VmDisk(lab.target(SIZES[size]), bus, TARGET)
    said = run_medium(lab, JOB, target, firmware, DONE, medium)
    assert "read back and compared: equal" in said and "verdict: ok" in said
    require_itself(lab, target, firmware)


def test_captured_by_the_medium(lab: Lab) -> None:
    """The machine that will not start any more is saved by the medium itself, then brought back."""
    lost = fresh_copy(make_guest(lab.cache), lab.folder / "lost")
    before = boot([VmDisk(lost, "virtio", "OLD2")], "bios")
    store = clone(lab.store, lab.folder / "own-store")
    medium = VmDisk(ci_medium(), "usb", keep=False)
    disks = [medium, VmDisk(lost, "virtio", "OLD2"), VmDisk(store, "virtio", STORE)]
    with Vm(disks) as vm:
        keys = Keys(vm)
        keys.start()
        keys.press(*[DOWN] * 7, ENTER)
        vm.serial.wait("This is a shell", LONG)
        for command, answer in (
            (f"mount -L {LABEL} /mnt && echo moun''ted", "mounted"),
            ("imager capture -q /dev/vda /mnt/own.img; echo capture ''status $?", r"status 0"),
            ("umount /mnt && echo un''mounted", "unmounted"),
        ):
            vm.serial.send(f"{command}\r")
            vm.serial.wait(answer, LONG)
    lost.unlink()
    own = Lab(lab.folder, store, before)
    target = VmDisk(lab.target(), "sata", TARGET)
    run_medium(own, JOB.replace(IMAGE, "own.img"), target, "bios", "The restore is finished")
    require_itself(own, target, "bios")
