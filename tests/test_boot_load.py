"""The load of the boot tests must see a state that no instant ever had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.load import BLOCKS, RECORD, Wrong, check


def size(place: Path) -> int:
    return place.stat().st_size if place.exists() else 0


def cut(place: Path, records: int) -> None:
    place.write_bytes(place.read_bytes()[: -records * RECORD])


def change(place: Path, offset: int, data: bytes) -> None:
    with place.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_what_is_not_of_one_instant_is_seen(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("root", "home", "esp")]
    folders[2].mkdir()
    program = Path(__file__).parent / "boot/load.py"
    writer = subprocess.Popen([sys.executable, program, "write", *folders, "0.001", "0.002"])
    try:
        end = time.monotonic() + 60
        blocks = folders[0] / "blocks"
        log = folders[0] / "log"
        while not (size(blocks) >= BLOCKS << 20 and size(log) >= 120 * RECORD):
            assert time.monotonic() < end
            time.sleep(0.1)
        # A stop waits for what it is writing, which a kill might tear.
        writer.send_signal(signal.SIGSTOP)
        os.waitpid(writer.pid, os.WUNTRACED)
        require_seen(folders)
    finally:
        writer.kill()
        writer.wait()


def require_seen(folders: list[Path]) -> None:
    """AssertionError unless the state is taken for one of an instant, and no damaged one is."""
    root, home, esp = folders
    blocks = root / "blocks"
    steps, last = check(*folders)
    assert steps >= 119 and last >= BLOCKS - 1
    damages: list[tuple[Path, Callable[[Path], None]]] = [
        (root / "log", lambda place: cut(place, 2)),
        (home / "log", lambda place: cut(place, 1)),
        (home / "log", lambda place: change(place, 5 * RECORD, b"000000000009")),
        (root / str((steps - 7) % 50), lambda place: change(place, 0, b"older")),
        (esp / "load", lambda place: change(place, 0, b"000000000001")),
        (blocks, lambda place: change(place, 3 << 20, bytes(4096))),
        (blocks, lambda place: change(place, 9 << 20, place.read_bytes()[2 << 20 : 3 << 20])),
    ]
    for place, damage in damages:
        whole = place.read_bytes()
        damage(place)
        if place == home / "log" and steps * RECORD < len(whole):
            cut(place, 1)  # one step had begun
        with pytest.raises(Wrong):
            check(*folders)
        place.write_bytes(whole)
    assert check(*folders) == (steps, last)
