"""The medium's own screen and keyboard, under Secure Boot; what the machine says of its disks."""

from __future__ import annotations

from pathlib import Path

from tests.boot.keys import DOWN, ENTER, Keys
from tests.boot.medium import ci_medium
from tests.boot.screen import Screen
from tests.boot.vm import Vm, VmDisk
from tests.disks import MIB, make_disk

LONG = 900


def test_screen_keyboard_and_health(tmp_path: Path) -> None:
    """A German layout is chosen at the screen, and holds there; the report tells firmware and health."""
    disk = make_disk(tmp_path / "disk", 64 * MIB)
    disks = [VmDisk(ci_medium(), "usb", keep=False), VmDisk(disk, "sata", "S6PXNZ0R401234")]
    with Vm(disks, "sb") as vm:
        keys = Keys(vm)
        keys.start()
        keys.press(*[DOWN] * 5, ENTER)
        report = keys.see("Hardware report", "Secure Boot on", "S6PXNZ0R401234")
        assert "It says that it is healthy" in " ".join(report.replace("|", " ").split())
        keys.press(ENTER)
        keys.see("Shell, for those who know")
        screen = Screen(vm, tmp_path)
        assert len(screen.picture().colours()) >= 2
        screen.press(*["down"] * 4, "ret")
        screen.press(*["down"] * 2, "ret")
        screen.press(*["down"] * 3, "ret")
        # On a German keyboard these two are in each other's place.
        screen.press(*"logger", "spc", *"yzyz", "ret")
        keys.press(DOWN, DOWN, ENTER)
        vm.serial.wait("This is a shell", LONG)
        vm.serial.send("journalctl -b -o cat | grep -x zyzy && echo fo''und\r")
        vm.serial.wait("found", LONG)
