"""What the unattended scenarios share: the guest, booted once and captured; machines made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bootmedia.host import default_cache
from imager.capture import CaptureOptions, capture
from tests.boot.guest import SIZE, Report, boot, fresh_copy, make_guest
from tests.boot.kernel_line import with_orders
from tests.boot.keys import Keys
from tests.boot.medium import ci_medium
from tests.boot.vm import Vm, VmDisk
from tests.disks import MIB, make_disk
from tests.loop import LoopDevice, mounted, run

LONG = 900
"""Seconds for a medium to boot and restore; a busy host's emulation may be ten times as slow."""
LABEL = "BACKUP"
IMAGE = "images/guest.img"
TARGET, STORE = "TARGET1", "STORE1"
JOB = f"imager.restore=auto imager.image={LABEL}:/{IMAGE} imager.target=serial:{TARGET}"
LARGER = SIZE + 413 * MIB


@dataclass(frozen=True)
class Lab:
    """A guest that ran once, and a disk with its image; the guest's own disk is gone."""

    folder: Path
    store: Path
    report: Report

    @property
    def cache(self) -> Path:
        """Where guests and media are kept."""
        return default_cache()

    def medium(self, words: str, name: str = "medium") -> Path:
        """The medium with these orders, in a file that may be written to."""
        place = self.folder / f"{name}.iso"
        place.unlink(missing_ok=True)
        return with_orders(ci_medium(), words, place)

    def target(self, size: int = SIZE, name: str = "target") -> Path:
        """A blank disk."""
        place = self.folder / name
        place.unlink(missing_ok=True)
        return make_disk(place, size)


def make_lab(folder: Path) -> Lab:
    """Boot the guest once, capture it from outside, destroy its disk."""
    disk = fresh_copy(make_guest(default_cache()), folder / "guest")
    report = boot([VmDisk(disk, "virtio", "OLD1")], "bios")
    assert report.is_sound and report.boots == 1
    store = folder / "store"
    with LoopDevice(store, 600 * MIB) as device:
        run("mkfs.ext4", "-q", "-L", LABEL, device.path)
        with mounted(device.path, folder / "place") as place:
            (place / "images").mkdir()
            capture(disk, place / IMAGE, CaptureOptions(host="guest"))
    disk.unlink()
    return Lab(folder, store, report)


def run_medium(
    lab: Lab, words: str, target: VmDisk, firmware: str, expected: str, medium_bus: str = "usb"
) -> str:
    """Boot the medium with a job until it has said `expected` and gone off; all that it said."""
    disks = [
        VmDisk(lab.medium(words), medium_bus, keep=False),
        target,
        VmDisk(lab.store, "virtio", STORE, read_only=True),
    ]
    with Vm(disks, firmware) as vm:
        vm.serial.wait(expected, LONG)
        vm.serial.wait("This machine will power off", LONG)
        vm.wait_off(LONG)
        return vm.serial.text


def stays_on(lab: Lab, words: str, disks: list[VmDisk], reason: str) -> str:
    """Boot the medium with a job that must fail for `reason`, said on serial; it stays on."""
    medium = VmDisk(lab.medium(words), "usb", keep=False)
    with Vm([medium, *disks], "bios") as vm:
        vm.serial.wait(f"Reason: .*{reason}", LONG)
        vm.serial.wait("This machine stays on, and does not restart by itself", LONG)
        # The menu comes, and begins with the reason.
        screen = Keys(vm).see("The job on the kernel line", seconds=LONG)
        assert vm.is_on
        return screen


def require_itself(lab: Lab, disk: VmDisk, firmware: str) -> Report:
    """Boot the restored disk alone; AssertionError unless it is the guest, one boot later."""
    report = boot([disk], firmware)
    wanted = replace(
        lab.report, boots=lab.report.boots + 1, root=report.root, efi=firmware != "bios"
    )
    assert report == wanted, f"{report} instead of {wanted}"
    return report
