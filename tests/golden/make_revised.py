"""Makes the golden images whose chunks replace others: version 1.2 of the format.

    python -m tests.golden.make_revised

As the others they are never made anew. The disk is that of `make.py`, with its ext4 mounted; a file is
written each time when the first pass is over.

    piped    the whole disk, as it came from a pipe
    parts    the whole disk, in parts
    night    what had changed since `parts`, in parts as well
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from imager.capture import CaptureOptions, capture
from imager.export import ExportFormat, export
from imager.image.reader import ImageReader
from tests.golden.make import make_source
from tests.image_files import join, small_parts
from tests.loop import LoopDevice, mounted
from tests.revised_images import read_naively

HERE = Path(__file__).resolve().parent / "1.2"
CHUNK = 1 << 16
PART = 60_000


def options(text: Path, lines: int, split: int | None, parent: Path | None) -> CaptureOptions:
    """Write so many lines to a file when the first pass is over."""
    return CaptureOptions(
        chunk_size=CHUNK,
        note="golden",
        before_freeze=f"seq {lines} > {text}",
        max_pause=50,
        split=split,
        parent=parent,
    )


def main() -> None:
    """Make them, and write down what they must give."""
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    content = {}
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.chdir(name),
        mock.patch("platform.node", return_value="golden"),
        LoopDevice(make_source(Path(name))) as device,
        small_parts(),
    ):
        device.scan()
        with mounted(device.partition(2), Path(name) / "mounted") as place:
            piped = os.open(HERE / "piped", os.O_WRONLY | os.O_CREAT, 0o644)
            capture(device.path, piped, options(place / "late", 20_000, None, None))
            os.close(piped)
            parent = HERE / "parts"
            capture(device.path, parent, options(place / "late", 21_000, PART, None))
            capture(device.path, HERE / "night", options(place / "later", 9_000, PART, parent))
        size = device.file.stat().st_size
        for image in ("piped", "parts", "night"):
            export(HERE / image, Path(image), ExportFormat.RAW)
            content[image] = Path(image).read_bytes()
            with ImageReader(HERE / image) as reader:
                if not reader.head.incremental:
                    assert read_naively(join(reader.file.paths)) == content[image]
    facts = {
        "disk_size": size,
        "content": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
        "unreadable": {},
    }
    (HERE / "expected.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
