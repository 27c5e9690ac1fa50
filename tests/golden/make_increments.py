"""Makes the golden images of version 1.1 of the format: incremental ones, and what they need.

    python -m tests.golden.make_increments

As those of 1.0 they are never made anew. The disk is that of `make.py`; each night some bytes of its
ext4 file system are other ones.

    parent            the whole disk: a full image, version 1.0 still
    night             of the next night: a delta, and chunks stored whole
    second            of the night after: a delta upon a delta, zeros
    unchanged         of the night after that: nothing but a run of the parent's chunks
    parts             as `night`, in parts
    partial           as `night`, with partition 1 left out: the parent's chunks, but not its maps
    degraded          as `night`, with sectors that could not be read
    sha256, sha256-night   the whole disk hashed with SHA-256, in chunks of 1 MiB; and the next night
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

from imager.capture import CaptureOptions, capture
from tests.disks import put
from tests.golden.make import EXT4, FAT, SECTOR, failing, make_source, unreadable_ranges, without
from tests.image_files import small_parts

HERE = Path(__file__).resolve().parent / "1.1"
CHUNK = 1 << 16


def first_night(disk: Path) -> None:
    """Other bytes in a file's block, and noise in what was unused."""
    place = disk.read_bytes().index(b"7\n" * SECTOR, EXT4[0])
    put(disk, place + 100, b"another night\n")
    for chunk in (60, 70):
        put(disk, chunk * CHUNK + SECTOR, random.Random(chunk).randbytes(3 * SECTOR))


def second_night(disk: Path) -> None:
    """Bytes beside those of the first night; zeros in place of noise."""
    place = disk.read_bytes().index(b"another night\n")
    put(disk, place + 20, b"and one more\n")
    put(disk, 60 * CHUNK, bytes(CHUNK))


def main() -> None:
    """Make all images, and write down what they must give."""
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    raw = CaptureOptions(chunk_size=CHUNK, note="golden", raw=True)
    expected: dict[str, bytes] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.chdir(name),
        mock.patch("platform.node", return_value="golden"),
    ):
        disk = make_source(Path())
        expected["parent"] = expected["sha256"] = disk.read_bytes()
        capture(disk, HERE / "parent", replace(raw, raw=False))
        sha256 = CaptureOptions(hash_name="sha256")
        capture(disk, HERE / "sha256", sha256)
        first_night(disk)
        content = disk.read_bytes()
        unreadable = unreadable_ranges(content)
        night = replace(raw, parent=HERE / "parent")
        capture(disk, HERE / "night", night)
        with small_parts():
            capture(disk, HERE / "parts", replace(night, split=20_000))
        capture(disk, HERE / "partial", replace(night, exclude=(1,)))
        with failing(unreadable):
            capture(disk, HERE / "degraded", replace(night, continue_on_read_error=True))
        capture(disk, HERE / "sha256-night", CaptureOptions(parent=HERE / "sha256"))
        expected["night"] = expected["parts"] = content
        expected["partial"] = without(content, [(FAT[0], FAT[0] + FAT[1])])
        expected["degraded"] = without(content, unreadable)
        expected["sha256-night"] = content
        second_night(disk)
        expected["second"] = expected["unchanged"] = disk.read_bytes()
        capture(disk, HERE / "second", replace(raw, parent=HERE / "night"))
        capture(disk, HERE / "unchanged", replace(raw, parent=HERE / "second"))
    facts = {
        "disk_size": len(content),
        "content": {name: hashlib.sha256(data).hexdigest() for name, data in expected.items()},
        "unreadable": {"degraded": unreadable},
    }
    (HERE / "expected.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
