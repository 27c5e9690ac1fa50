"""A volume as numbered blocks: as they lie on disk, and as a replay of the journal leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from imager.filesystems import Volume

BATCH_BYTES = 1 << 20
"""Contiguous metadata is read in pieces of at most this many bytes (one block at least)."""

JOURNAL_MAGIC = (0xC03B3998).to_bytes(4, "big")
"""The first four bytes of the log's own blocks; a logged block may not begin with them."""


class Blocks:
    """The blocks of a volume as they lie on disk."""

    def __init__(self, volume: Volume, block_size: int) -> None:
        self._volume = volume
        self.block_size = block_size
        self.per_batch = max(BATCH_BYTES // block_size, 1)

    def read(self, first: int, count: int) -> bytes:
        """`count` blocks from block `first` on; ReadFailedError where that is impossible."""
        return self._volume.read(first * self.block_size, count * self.block_size)


class LoggedBlock(NamedTuple):
    """Where the log keeps the newest committed copy of a block."""

    block: int
    """The volume's block that holds the copy."""
    escaped: bool
    """Its first four bytes, the journal's magic, are zeroed in the log."""


class ReplayedBlocks(Blocks):
    """The blocks of a volume as they will be once the journal has been replayed."""

    def __init__(self, volume: Volume, block_size: int, logged: Mapping[int, LoggedBlock]) -> None:
        super().__init__(volume, block_size)
        self._logged = logged

    def read(self, first: int, count: int) -> bytes:
        """`count` blocks from block `first` on, the logged ones from the log."""
        data = super().read(first, count)
        logged = [block for block in range(first, first + count) if block in self._logged]
        if not logged:
            return data
        patched = bytearray(data)
        for block in logged:
            copy = self._logged[block]
            content = super().read(copy.block, 1)
            if copy.escaped:
                content = JOURNAL_MAGIC + content[len(JOURNAL_MAGIC) :]
            at = (block - first) * self.block_size
            patched[at : at + self.block_size] = content
        return bytes(patched)
