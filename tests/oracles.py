"""What other programs say of a volume."""

from __future__ import annotations

import re
from pathlib import Path

from imager.extents import Extents
from tests.loop import run


def allocated_by_partclone(program: str, image: Path, folder: Path) -> Extents:
    """What partclone would copy of `image`, by its program for a file system."""
    domain, log = folder / "domain", folder / "log"
    run(f"partclone.{program}", "-D", "-s", image, "-O", domain, "-L", log)
    lines = re.findall(r"^(0x\S+)\s+(0x\S+)\s+\+$", domain.read_text(), re.MULTILINE)
    return Extents.of((int(at, 16), int(at, 16) + int(size, 16)) for at, size in lines)
