"""Chains of large disks: memory does not grow with the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from imager.image.chain import Chain
from imager.pipeline import no_progress
from imager.survey import survey
from tests.command import ROOT
from tests.huge_disk import CHUNK, forge, unchanged_night

_CHILD = """
import json, random, re, sys
from pathlib import Path
from unittest import mock
from imager import CaptureOptions, capture, check, diff, export, ExportFormat
from imager.extents import Extents
from imager.layout.analyse import Analysis
from imager.layout.model import DiskLayout, PartitionTable

folder, size, nights = Path(sys.argv[1]), int(sys.argv[2]), 6
disk = folder / "disk"
# In use is as much of any disk, spread all over it.
step = size // 512
used = Extents.of((start, start + 8192) for start in range(0, size, step))
layout = DiskLayout(size, 512, PartitionTable("none", None, (), Extents()), (), ())
with disk.open("wb") as file:
    file.truncate(size)
sizes = []
for night in range(nights):
    noise = random.Random(night)
    with disk.open("r+b") as file:
        for start in range(0, size, step * (16 if night else 1)):
            file.seek(start)
            file.write(noise.randbytes(4096))
    parent = folder / f"{night - 1}" if night else None
    with mock.patch("imager.capture_job.analyse", return_value=Analysis(layout, used, Extents())):
        options = CaptureOptions(parent=parent, threads=4)
        result = capture(disk, folder / f"{night}", options)
    sizes.append(result.image.size)
last = folder / f"{nights - 1}"
assert check(last, threads=4).verdict == "ok"
export(last, folder / "raw", ExportFormat.RAW, threads=4)
assert diff(folder / "0", last).changed.total == 32 * 4096
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([peak, sizes]))
"""


def peak(folder: Path, size: int) -> tuple[int, list[int]]:
    """Peak memory in KiB, and the images' sizes, of some nights of a disk of `size` bytes."""
    folder.mkdir()
    words = [sys.executable, "-c", _CHILD, str(folder), str(size)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found: tuple[int, list[int]] = tuple(json.loads(done.stdout))
    return found


def test_two_tebibytes_take_no_more_than_two_gibibytes(tmp_path: Path) -> None:
    small, small_sizes = peak(tmp_path / "small", 2 << 30)
    large, large_sizes = peak(tmp_path / "large", 2 << 40)
    assert small < 128 << 10 and large < small + (24 << 10)
    # The images differ by the frames of zeros between what is in use; an increment has none.
    assert max(large_sizes[1:]) < 1.1 * max(small_sizes[1:]) < 400_000


def problem_of(image: Path) -> str:
    """What is wrong with the structure of an image and its ancestors."""
    with Chain(image) as chain:
        return survey(chain, no_progress).problem


def test_an_unchanged_night_costs_less_than_a_mebibyte_for_a_tebibyte(tmp_path: Path) -> None:
    """What a chunk more costs, times the million of them that a tebibyte has."""
    few, many = 1 << 12, 1 << 15
    sizes = []
    for chunks in (few, many):
        folder = tmp_path / str(chunks)
        folder.mkdir()
        first = forge(folder / "0", chunks)
        night = unchanged_night(first, folder / "1", chunks)
        assert night.inherited == night.used == chunks * CHUNK
        assert night.verdict == "ok" and not problem_of(folder / "1")
        sizes.append(night.image.size)
    a_chunk = (sizes[1] - sizes[0]) / (many - few)
    assert sizes[1] + a_chunk * (1 << 20) < 1 << 18
