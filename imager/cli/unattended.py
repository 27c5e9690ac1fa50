"""`imager rescue --unattended`: the job on the kernel line, said on all consoles."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from imager.cli.text import say
from imager.errors import RefusedError

_KERNEL_LINE = Path("/proc/cmdline")


def run_job() -> int:
    """Carry out the job, and restart or power off where it says so; returns the exit status."""
    from imager.rescue.consoles import Consoles, console_paths
    from imager.rescue.kernel_line import extra_console
    from imager.rescue.session import Machine
    from imager.rescue.unattended import run_unattended

    if os.geteuid() != 0:
        raise RefusedError("only root may read and write disks: run as root")
    text = _KERNEL_LINE.read_text("utf-8", "replace")
    machine = Machine()
    more = extra_console(text)
    with Consoles(console_paths(more), more) as consoles:

        def tell(*lines: str) -> None:
            for line in lines:
                say(line)
            sys.stdout.flush()
            consoles.say(*lines)

        outcome = run_unattended(text, machine, tell)
    if outcome.after != "stay":
        machine.run("systemctl", "systemd", "--no-block", outcome.after)
    return outcome.status
