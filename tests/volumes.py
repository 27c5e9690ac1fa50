"""Volumes for tests that live in a file or in memory."""

from __future__ import annotations

import os
from pathlib import Path

from imager.errors import ReadFailedError


class FileVolume:
    """A `Volume` over a range of a file, read-only."""

    def __init__(
        self, path: Path, start: int = 0, size: int | None = None, sector_size: int = 512
    ) -> None:
        self._file = path.open("rb")
        self._start = start
        self.size = path.stat().st_size - start if size is None else size
        self.sector_size = sector_size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ReadFailedError(f"read of {size} bytes at {offset} is outside the volume")
        data = os.pread(self._file.fileno(), size, self._start + offset)
        if len(data) != size:
            raise ReadFailedError("short read")
        return data


class BytesVolume:
    """A `Volume` over bytes."""

    def __init__(self, data: bytes | bytearray, sector_size: int = 512) -> None:
        self.data = data
        self.sector_size = sector_size

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise ReadFailedError(f"read of {size} bytes at {offset} is outside the volume")
        return bytes(self.data[offset : offset + size])
