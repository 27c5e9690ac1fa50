"""Orders on a medium's kernel line, put into its ISO as nobody's typing would be checked."""

from __future__ import annotations

import re
from pathlib import Path

from tests.loop import run

_MENU = "/boot/grub/grub.cfg"


def with_orders(iso: Path, words: str, place: Path) -> Path:
    """A copy of `iso` at `place` whose first boot entry starts at once, with `words` added."""
    menu = place.with_suffix(".cfg")
    xorriso = ("xorriso", "-osirrox", "on", "-indev", iso)
    run(*xorriso, "-extract", _MENU, menu)
    menu.chmod(0o644)
    text = re.sub(r"set timeout=\d+", "set timeout=0", menu.read_text())
    menu.write_text(text.replace("/live/vmlinuz", f"/live/vmlinuz {words}", 1))
    run(
        *("xorriso", "-indev", iso, "-outdev", place, "-boot_image", "any", "replay"),
        *("-map", menu, _MENU, "-commit"),
    )
    return place
