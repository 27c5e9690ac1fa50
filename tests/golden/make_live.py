"""Makes the golden image of a disk in use: version 1.1 of the format, with free space.

    python -m tests.golden.make_live

As the others it is never made anew. The disk is that of `make.py`, with its ext4 mounted; a file is
written when the first pass is over, so that the image was patched.

    live    the whole disk, at one instant
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

from imager.capture import CaptureOptions, capture
from tests.golden.make import make_source
from tests.loop import LoopDevice, mounted

HERE = Path(__file__).resolve().parent / "1.1-live"
CHUNK = 1 << 16


def main() -> None:
    """Make it, and write down what it must give."""
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.chdir(name),
        mock.patch("platform.node", return_value="golden"),
        LoopDevice(make_source(Path(name))) as device,
    ):
        device.scan()
        with mounted(device.partition(2), Path(name) / "mounted") as place:
            options = CaptureOptions(
                chunk_size=CHUNK,
                note="golden",
                before_freeze=f"seq 20000 > {place}/late",
                max_pause=50,
            )
            capture(device.path, HERE / "live", options)
        size = device.file.stat().st_size
    content = subprocess.run(["zstd", "-dc", HERE / "live"], check=True, capture_output=True).stdout
    facts = {
        "disk_size": size,
        "content": {"live": hashlib.sha256(content).hexdigest()},
        "unreadable": {},
    }
    (HERE / "expected.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
