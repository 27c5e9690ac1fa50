"""A shell script run on the medium's own shell, by way of the serial line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.boot.keys import DOWN, ENTER, Keys
from tests.boot.medium import ci_medium
from tests.boot.vm import Vm, VmDisk
from tests.disks import MIB
from tests.loop import LoopDevice, mounted, run

SECONDS = 1500
"""A script that takes longer has failed; a busy host's emulation may be ten times as slow."""
_LABEL = "SCRIPT"


def run_script(
    folder: Path,
    script: str,
    disks: Sequence[VmDisk],
    memory: int = 1024,
    options: Sequence[str] = (),
) -> str:
    """Boot the medium, with `disks` as vda, vdb, ..., and run a script to its end; what it said.

    `options` are QEMU's.

    AssertionError unless it ends with status 0. Then the power is cut.
    """
    tools = folder / "script"
    tools.unlink(missing_ok=True)
    with LoopDevice(tools, 16 * MIB) as device:
        run("mkfs.ext4", "-q", "-L", _LABEL, device.path)
        with mounted(device.path, folder / "place") as place:
            (place / "run.sh").write_text(f"set -eu\n{script}")
    medium = VmDisk(ci_medium(), "usb", keep=False)
    disks = [medium, *disks, VmDisk(tools, "virtio")]
    with Vm(disks, memory=memory, options=options) as vm:
        keys = Keys(vm)
        keys.start()
        keys.press(*[DOWN] * 7, ENTER)
        vm.serial.wait("This is a shell", SECONDS)
        vm.serial.send(f"mount -L {_LABEL} /media && sh /media/run.sh; echo script en''ded $?\r")
        begun = len(vm.serial.text)
        status = vm.serial.wait(r"script ended (\d+)", SECONDS)[1]
        vm.cut_power()
        said = re.sub(r"\r", "", vm.serial.text[begun:])
    assert status == "0", said
    return said
