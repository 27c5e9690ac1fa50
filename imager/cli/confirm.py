"""Asking before something is overwritten."""

from __future__ import annotations

import sys
from pathlib import Path

from imager.cli.text import printable
from imager.errors import RefusedError


def confirm(name: str) -> None:
    """Have the target's name typed at the terminal; RefusedError otherwise."""
    sys.stdout.flush()
    try:
        # Standard input may be the image.
        with Path("/dev/tty").open("r+b", buffering=0) as terminal:
            terminal.write(f"Type {printable(name)} to go on, anything else to stop: ".encode())
            answer = terminal.readline().decode(errors="replace").strip()
    except OSError:
        raise RefusedError(
            "there is no terminal to ask at: look at the plan with --dry-run, then add --yes"
        ) from None
    if answer != name:
        raise RefusedError("not confirmed: nothing was written")
