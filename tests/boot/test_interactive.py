"""The rescue medium's dialogs, key by key over the serial line: restores, wrong turns, pulled cables."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootmedia.host import default_cache
from imager.capture import CaptureOptions, capture
from tests.boot.guest import Report, make_guest
from tests.boot.keys import DOWN, ENTER, ESCAPE, UP, Keys
from tests.boot.medium import ci_medium
from tests.boot.vm import Vm, VmDisk
from tests.comparing import digest, disk_facts
from tests.disks import MIB
from tests.loop import LoopDevice, mounted, run
from tests.small_disk import SMALL_KINDS, SMALL_SIZE, Small, garbage
from tests.ssh_server import PASSWORD, USER, ssh_server

HOST = "office-pc"
TARGET = "S6PXNZ0R401234"
MOST_KEYS = 6
SLOW = 4 * MIB
"""Bytes a second, for cables that are pulled in the middle."""
LONG = 900


@dataclass(frozen=True)
class Bench:
    """What is plugged into the machine beside the medium."""

    images: Path
    """A disk with an image of the small disk."""
    target: Path
    small: Small


@pytest.fixture
def bench(tmp_path: Path, small: Small) -> Bench:
    images = disk_with_image(tmp_path / "images", small.disk, 96 * MIB)
    return Bench(images, garbage(tmp_path / "target", SMALL_SIZE), small)


def disk_with_image(path: Path, source: Path, size: int) -> Path:
    """A disk with one file system, on it an image of `source`."""
    with LoopDevice(path, size) as device:
        run("mkfs.ext4", "-q", "-L", "BACKUP", device.path)
        with mounted(device.path, path.with_suffix(".place")) as place:
            capture(source, place / f"{HOST}.img", CaptureOptions(host=HOST))
    return path


def medium() -> VmDisk:
    return VmDisk(ci_medium(), "usb", keep=False)


def restored(bench: Bench, folder: Path) -> bool:
    """Whether the target is the small disk."""
    with LoopDevice(bench.target) as device:
        device.scan()
        return disk_facts(device, SMALL_KINDS, folder) == bench.small.facts


def slow(vm: Vm, number: int) -> None:
    """Make a disk slow enough to pull its cable in the middle."""
    limits = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    vm.qmp("block_set_io_throttle", device=f"drive{number}", bps=SLOW, **limits)


@pytest.mark.ci
def test_common_path_and_wrong_turns(bench: Bench, tmp_path: Path) -> None:
    before = digest(bench.target)
    tiny = tmp_path / "tiny"
    tiny.write_bytes(bytes(16 * MIB))
    disks = [
        medium(),
        VmDisk(bench.images, "usb", "BACKUP1"),
        VmDisk(bench.target, "sata", TARGET),
        VmDisk(tiny, "sata", "TINY"),
    ]
    with Vm(disks) as vm:
        keys = Keys(vm)
        keys.start()
        wrong_turns(keys)
        assert digest(bench.target) == before
        keys.pressed = 0
        keys.press(ENTER)
        keys.see("Which image", HOST, "< Back >")
        name = keys.to_the_last_question(TARGET)
        assert keys.pressed <= MOST_KEYS
        keys.type(name)
        keys.see("What now?", "read back and compared: equal", "verdict: ok", seconds=LONG)
        keys.press(DOWN, ENTER)
        keys.see("started by a BIOS", "remove the stick")
        keys.press(ENTER)
        keys.see("What now?")
        keys.press(ESCAPE)
        keys.see("Hardware report", "Restart or switch off")
        keys.press(*[DOWN] * 8, ENTER)
        keys.see("Switch the machine off")
        keys.press(DOWN, ENTER)
        vm.wait_off(LONG)
    assert restored(bench, tmp_path)


def wrong_turns(keys: Keys) -> None:
    """Escape at every screen, a disk that is too small, a name that is wrong."""
    keys.press(ESCAPE)
    keys.see("Hardware report")
    keys.press(ENTER)
    keys.see("Which image", HOST)
    keys.press(ENTER)
    keys.see("Onto which disk", "TINY")
    name = keys.name_of(TARGET)
    keys.move(TARGET, "TINY")
    keys.see("too small")
    keys.press(ENTER)
    keys.see("This disk cannot be used", "is too small")
    keys.press(ENTER)
    keys.see("Onto which disk", "TINY")
    keys.press(ESCAPE)
    keys.see("Which image", HOST)
    keys.press(ENTER)
    keys.see("Onto which disk", "TINY")
    keys.press(ENTER)
    keys.see("The plan")
    keys.press(ENTER)
    keys.see("The last question")
    keys.type(f"/dev/{name}")
    keys.see("Not begun", "Nothing was written")
    keys.press(ENTER)
    for words in ("The last question", "The plan", "Onto which disk", "Which image"):
        keys.see(words)
        keys.press(ESCAPE)
    keys.see("Hardware report")


def test_cables_that_are_pulled(bench: Bench, tmp_path: Path) -> None:
    """First that of the disk with the image, while it is verified; then the target's."""
    before = digest(bench.target)
    second = shutil.copyfile(bench.images, tmp_path / "second")
    with LoopDevice(second) as device:
        run("tune2fs", "-U", "random", "-L", "SECOND", device.path)
    disks = [
        medium(),
        VmDisk(bench.images, "usb", "BACKUP1"),
        VmDisk(second, "usb", "BACKUP2"),
        VmDisk(bench.target, "usb", TARGET),
    ]
    with Vm(disks) as vm:
        keys = Keys(vm)
        keys.start()
        keys.press(ENTER)
        first, left = (
            (1, "SECOND") if "(BACKUP)" in keys.see("Which image", HOST) else (2, "BACKUP")
        )
        name = keys.to_the_last_question(TARGET)
        slow(vm, first)
        keys.type(name)
        keys.catch("Checking")
        vm.unplug(first)
        keys.see("That did not work", "Nothing was written", seconds=LONG)
        assert digest(bench.target) == before
        keys.press(ENTER)
        keys.see("Which image", f"({left})")
        assert name == keys.to_the_last_question(TARGET)
        slow(vm, 3)
        keys.type(name)
        keys.catch("Writing", LONG)
        vm.unplug(3)
        keys.see("That did not work", "half written", seconds=LONG)
        keys.press(ENTER)
        keys.see("Which image", f"({left})")


def test_share_with_a_wrong_password(bench: Bench, tmp_path: Path) -> None:
    """Images on a server that is reached by SSH."""
    folder = tmp_path / "served"
    folder.mkdir()
    capture(bench.small.disk, folder / f"{HOST}.img", CaptureOptions(host=HOST))
    network = ("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
    with (
        ssh_server(folder) as port,
        Vm([medium(), VmDisk(bench.target, "sata", TARGET)], options=network) as vm,
    ):
        keys = Keys(vm)
        keys.start()
        keys.press(ENTER)
        keys.see("No image was found")
        keys.press(ESCAPE)
        keys.see("Hardware report")
        keys.press(DOWN, DOWN, DOWN, ENTER)
        if "Through which network card?" in keys.see("Connect to a network share", "< Back >"):
            keys.press(ENTER)
            keys.see("From the network, as nearly everywhere")
            keys.press(ENTER)
        keys.see("Where are the images?")
        keys.type(f"ssh://10.0.2.2:{port}/")
        keys.see("Is it the right server?", "SHA256:")
        keys.press(ENTER)
        keys.see("User name on the server")
        keys.type(USER)
        keys.see(f"Password of {USER}")
        keys.type("wrong")
        keys.see("That did not work", "cannot be mounted")
        keys.press(ENTER)
        keys.see("Where are the images?", f"ssh://10.0.2.2:{port}/")
        keys.press(ENTER)
        keys.see("User name on the server", USER)
        keys.press(ENTER)
        keys.see(f"Password of {USER}")
        keys.type(PASSWORD)
        keys.see("answers", "listed with those of the disks")
        keys.press(ENTER)
        keys.see("Hardware report")
        keys.press(UP, UP, UP, ENTER)
        keys.see("Which image", HOST, "ssh://10.0.2.2")
        keys.type(keys.to_the_last_question(TARGET))
        keys.see("What now?", "verdict: ok", seconds=LONG)
    assert restored(bench, tmp_path)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Path]:
    """A disk with an image of a real system whose loader only a boot entry finds."""
    disk = shutil.copyfile(make_guest(default_cache()), tmp_path / "guest")
    with LoopDevice(disk) as device:
        device.scan()
        esp = device.partition(2)
        for old, new in (("BOOTX64.EFI", "shimx64.efi"), ("grubx64.efi", "grubx64.efi")):
            run("mcopy", "-i", esp, f"::EFI/BOOT/{old}", tmp_path / new)
            run("mcopy", "-i", esp, tmp_path / new, f"::EFI/debian/{new}")
        run("mdeltree", "-i", esp, "::EFI/BOOT")
    yield disk_with_image(tmp_path / "images", disk, 700 * MIB)


def test_try_the_boot(guest: Path, tmp_path: Path) -> None:
    """UEFI: an entry is added for a loader that the firmware would not find, and starts it."""
    target = tmp_path / "target"
    with target.open("xb") as file:
        file.truncate(1024 * MIB)
    disks = [medium(), VmDisk(guest, "usb", "BACKUP1"), VmDisk(target, "sata", TARGET)]
    with Vm(disks, "uefi", reboots=True) as vm:
        keys = Keys(vm)
        keys.start()
        keys.press(ENTER)
        keys.see("Which image", HOST)
        keys.type(keys.to_the_last_question(TARGET))
        keys.see("What now?", "verdict: ok", seconds=2 * LONG)
        keys.press(DOWN, ENTER)
        keys.see("has no entry for this disk", "\\EFI\\debian\\shimx64.efi")
        keys.press(ENTER)
        keys.see("was added", "remove the stick")
        keys.press(ENTER)
        keys.see("What now?")
        keys.press(UP, ENTER)
        said = vm.serial.wait(
            r"GUEST machine-id=(\w+) payload=(\w+) boots=(\d+) root=(\S+) efi=(yes|no)\.", LONG
        )
        vm.wait_off(LONG)
    report = Report(said[1], said[2], int(said[3]), said[4], said[5] == "yes")
    assert report.is_sound and report.efi and report.boots == 1
