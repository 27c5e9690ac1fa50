"""A part of a volume as a volume of its own."""

from __future__ import annotations

from imager.errors import ReadFailedError
from imager.filesystems import Volume


class Slice:
    """The `size` bytes at `start` of another volume, whose sector size it shares."""

    def __init__(self, volume: Volume, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > volume.size:
            raise ValueError("slice outside of its volume")
        self._volume = volume
        self._start = start
        self._size = size

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._size

    @property
    def sector_size(self) -> int:
        """Logical sector size in bytes."""
        return self._volume.sector_size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`; ReadFailedError if that is impossible."""
        if offset < 0 or size < 0 or offset + size > self._size:
            raise ReadFailedError(f"read of {size} bytes at {offset} is outside the volume")
        return self._volume.read(self._start + offset, size)
