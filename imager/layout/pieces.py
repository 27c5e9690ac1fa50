"""A disk of which only some pieces are known."""

from __future__ import annotations

from collections.abc import Sequence


class Pieces:
    """A disk that is zeros but for some pieces; a `Volume`."""

    def __init__(
        self, size: int, sector_size: int, pieces: Sequence[tuple[int, bytes | bytearray]]
    ) -> None:
        """A disk of `size` bytes; `pieces` are (offset, bytes)."""
        self.size = size
        self.sector_size = sector_size
        self._pieces = pieces

    def read(self, offset: int, size: int) -> bytes:
        """As `Volume.read`."""
        data = bytearray(size)
        for start, piece in self._pieces:
            low, high = max(start, offset), min(start + len(piece), offset + size)
            if low < high:
                data[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(data)
