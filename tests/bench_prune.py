"""The part of `make bench` about pruning: what nights take, and what holes give back of those given up."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

from imager.capture import CaptureOptions
from imager.store.capture import capture_into
from imager.store.catalog import State, read_store
from imager.store.folder import create_store
from imager.store.prune import prune
from imager.store.retention import DEFAULT_RULES

MIB = 1 << 20
_NIGHTS = 58
_FIRST = datetime.datetime(2026, 9, 1, 2, tzinfo=datetime.UTC)
_DAY = datetime.timedelta(days=1)


def pruned(folder: Path) -> None:
    """Two months by the default rules: of the nights given up, bytes before and after holes."""
    print(f"\n### {_NIGHTS} nights by the default rules, 60 random writes of 4 KiB each\n")
    print("| besides, a night | kept | given up | their MB | on disk after holes, MB |")
    print("|---|---|---|---|---|")
    for extra in (0, 2 * MIB):
        store = create_store(folder / f"prune-{extra}")
        disk = folder / "prune-disk"
        noise = random.Random(7)
        disk.write_bytes(noise.randbytes(128 * MIB))
        for night in range(_NIGHTS):
            with disk.open("r+b") as file:
                for _ in range(60):
                    file.seek(noise.randrange(128 * MIB // 4096) * 4096)
                    file.write(noise.randbytes(4096))
                if extra:
                    file.seek(noise.randrange(128 * MIB - extra))
                    file.write(noise.randbytes(extra))
            now = _FIRST + night * _DAY
            capture_into(store, disk, CaptureOptions(), now)
            prune(store, DEFAULT_RULES, now)
        (found,) = read_store(store)
        # The full image is as large as the disk whatever the nights were.
        given_up = [i.files for i in found.images if i.state is State.EXPIRED and i.parents]
        size = sum(files.size() for files in given_up)
        left = sum(files.allocated() for files in given_up)
        what = f"{extra // MIB} MiB of replaced data" if extra else "nothing"
        print(
            f"| {what} | {len(found.complete)} | {len(given_up)} | {size / 1e6:.1f} "
            f"| {left / 1e6:.1f} |",
            flush=True,
        )
