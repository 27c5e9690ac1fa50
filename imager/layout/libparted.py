"""A second opinion on a partition table that was just written: what libparted makes of it.

libparted opens a device read-write even to look, and keeps what it saw of it for the process's life;
so it only ever gets a target, in a child process that ends at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from imager.layout.model import PartitionTable

_SECONDS = 60


def second_opinion(path: Path, table: PartitionTable) -> str | None:
    """How libparted's view of the device differs from `table`; None where it agrees."""
    expected = sorted([part.number, part.start, part.size] for part in table.partitions)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "imager.layout.libparted", path],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "libparted gave no second opinion on the partition table"
    if child.returncode:
        reason = child.stderr.strip().splitlines()
        return f"libparted cannot read the partition table: {reason[-1] if reason else 'no reason'}"
    if json.loads(child.stdout) != expected:
        return "libparted sees other partitions than the image says"
    return None


def _main(path: str) -> None:
    """Print the partitions that libparted sees, as [number, start, size] in bytes."""
    import parted

    device = parted.getDevice(path)
    disk = parted.newDisk(device)
    unit = device.sectorSize
    found = [
        [part.number, part.geometry.start * unit, part.geometry.length * unit]
        for part in disk.partitions
    ]
    print(json.dumps(sorted(found)))


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except Exception as error:  # whatever libparted raises is its opinion
        sys.exit(str(error))
