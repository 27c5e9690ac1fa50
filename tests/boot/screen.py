"""A machine's own screen and keyboard, through QEMU's monitor: pictures of the one, keys for the other."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.boot.vm import Vm

SECONDS = 300
_REST = 1.5
"""So long nothing may change before a picture counts as complete."""
_CURSOR = 400
"""Pixels that differ between two pictures in which only the cursor blinks, at most."""


class Picture(NamedTuple):
    """What is on the screen."""

    width: int
    height: int
    pixels: bytes
    """Three bytes each, row by row."""

    def colours(self) -> list[bytes]:
        """The most frequent first, those of less than a fiftieth of the screen left out."""
        counted = Counter(self.pixels[at : at + 3] for at in range(0, len(self.pixels), 3))
        least = self.width * self.height // 50
        return [colour for colour, count in counted.most_common() if count > least]

    def differs(self, other: Picture) -> bool:
        """Whether more than a cursor has changed."""
        if (self.width, self.height) != (other.width, other.height):
            return True
        changed = int.from_bytes(self.pixels, "big") ^ int.from_bytes(other.pixels, "big")
        return len(self.pixels) - changed.to_bytes(len(self.pixels), "big").count(0) > 3 * _CURSOR


class Screen:
    """What a person sees and presses who sits before the machine."""

    def __init__(self, vm: Vm, folder: Path) -> None:
        """Pictures are kept in `folder`, the last as screen.ppm."""
        self._vm = vm
        self._file = folder / "screen.ppm"

    def picture(self) -> Picture:
        """What is on the screen now."""
        self._vm.qmp("screendump", filename=str(self._file))
        kind, size, depth, pixels = self._file.read_bytes().split(b"\n", 3)
        assert (kind, depth) == (b"P6", b"255")
        width, height = map(int, size.split())
        return Picture(width, height, pixels)

    def press(self, *keys: str) -> Picture:
        """Press keys by QEMU's names for them; the picture once it has changed and is at rest."""
        before = self.picture()
        for key in keys:
            self._vm.qmp("send-key", keys=[{"type": "qcode", "data": key}])
            time.sleep(0.3)
        end = time.monotonic() + SECONDS
        last, since, changed = before, time.monotonic(), False
        while not changed or time.monotonic() - since < _REST:
            assert time.monotonic() < end, f"{keys} changed nothing on the screen: {self._file}"
            self._vm.serial.poll()
            now = self.picture()
            changed = changed or now.differs(before)
            if now.differs(last):
                last, since = now, time.monotonic()
        return last
