"""Free-space metadata as the log leaves it, piece by piece.

A piece is a group's header sector or a block of a free-space tree. In version 5 each tells which
transaction changed it last (its LSN), so that it is not set back.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.xfs import group, superblock, tree
from imager.filesystems.xfs.checksum import is_intact, seal
from imager.filesystems.xfs.layout import Layout
from imager.filesystems.xfs.transactions import LoggedBuffer

_MAX_BYTES = 1 << 26
_BYTES_OF_NUMBER = 64  # in a set
_MAGIC_SIZE = 4


class Replayed:
    """A `Volume` as it will be once its log has been replayed, as far as free space goes."""

    def __init__(self, volume: Volume, changed: Mapping[int, bytes]) -> None:
        """`changed` has what is different, in pieces by their offset that do not overlap."""
        self._volume = volume
        self._changed = changed
        self.offsets = sorted(changed)
        """Where the pieces are."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self._volume.size

    @property
    def sector_size(self) -> int:
        """Bytes."""
        return self._volume.sector_size

    def read(self, offset: int, size: int) -> bytes:
        """As the volume below gives it, with what the log changes."""
        data = self._volume.read(offset, size)
        end = offset + size
        first = max(bisect.bisect_right(self.offsets, offset) - 1, 0)
        last = bisect.bisect_left(self.offsets, end)
        patched = None
        for start in self.offsets[first:last]:
            piece = self._changed[start][max(offset - start, 0) : end - start]
            if piece:
                patched = patched or bytearray(data)
                at = max(start - offset, 0)
                patched[at : at + len(piece)] = piece
        return bytes(patched) if patched else data


class Kind(NamedTuple):
    """A kind of piece: its size and where it describes itself in version 5 (bytes)."""

    size: int
    uuid_at: int
    lsn_at: int
    crc_at: int
    sector: int | None
    """Which of a group's headers it is; None for a block of a tree."""


class Pieces:
    """The pieces that the log changes, as they are after what was replayed so far."""

    def __init__(self, volume: Volume, layout: Layout) -> None:
        self._volume = volume
        self._layout = layout
        self._pieces: dict[int, bytearray] = {}
        self._others: set[int] = set()
        """Where the log has put something else."""
        self._bytes = 0
        self._kinds = _kinds(layout)

    def take(self, buffer: LoggedBuffer, lsn: int) -> None:
        """Replay what a transaction with this LSN logged of a buffer.

        Raises NotUnderstoodError where that cannot be right, or a block that it builds on is damaged.
        """
        if buffer.cancelled:
            # None of what was logged so far is replayed: the block was given up.
            self._forget(buffer.start)
            self._others.discard(buffer.start)
            return
        if not buffer.changes or buffer.start in self._others:
            return
        if self._bytes + len(self._others) * _BYTES_OF_NUMBER > _MAX_BYTES:
            raise NotUnderstoodError("its log changes too much")
        offset, first = buffer.changes[0]
        piece = self._pieces.get(buffer.start)
        if piece is None:
            if offset == 0 and first[:_MAGIC_SIZE] not in self._kinds:
                self._others.add(buffer.start)
                return
            piece = bytearray(self._volume.read(buffer.start, buffer.size))
            self._check(piece, buffer)
        if len(piece) != buffer.size:
            raise NotUnderstoodError("its log is damaged")
        if self._is_newer(piece, lsn):
            return
        for offset, data in buffer.changes:
            piece[offset : offset + len(data)] = data
        kind = self._kinds.get(bytes(piece[:_MAGIC_SIZE]))
        if kind is None:
            self._forget(buffer.start)
            self._others.add(buffer.start)
        elif not self._fits(kind, buffer):
            raise NotUnderstoodError("its log is damaged")
        elif buffer.start not in self._pieces:
            self._pieces[buffer.start] = piece
            self._bytes += len(piece)

    def replayed(self) -> Replayed:
        """The volume with all pieces in their places, with the checksums that they get there."""
        if self._layout.checksums:
            for piece in self._pieces.values():
                seal(piece, self._kinds[bytes(piece[:_MAGIC_SIZE])].crc_at)
        return Replayed(self._volume, {at: bytes(piece) for at, piece in self._pieces.items()})

    def _forget(self, start: int) -> None:
        self._bytes -= len(self._pieces.pop(start, b""))

    def _fits(self, kind: Kind, buffer: LoggedBuffer) -> bool:
        """Whether something of this kind can be there."""
        layout = self._layout
        place = buffer.start % layout.group_bytes
        if buffer.size != kind.size:
            return False
        if kind.sector is None:
            return place % kind.size == 0 and place >= layout.header_blocks * layout.block_size
        return place == kind.sector * kind.size

    def _is_ours(self, piece: bytearray) -> Kind | None:
        """What kind of this file system's pieces it is; None where it is none, or has no LSN."""
        kind = self._kinds.get(bytes(piece[:_MAGIC_SIZE]))
        if not self._layout.checksums or kind is None or len(piece) != kind.size:
            return None
        uuid = piece[kind.uuid_at : kind.uuid_at + 16]
        return kind if uuid == self._layout.meta_uuid else None

    def _is_newer(self, piece: bytearray, lsn: int) -> bool:
        """Whether a later transaction than that with this LSN has been written to the piece."""
        kind = self._is_ours(piece)
        if kind is None:
            return False
        there = int.from_bytes(piece[kind.lsn_at : kind.lsn_at + 8], "big")
        return there >= lsn and there != 0xFFFFFFFFFFFFFFFF

    def _check(self, piece: bytearray, buffer: LoggedBuffer) -> None:
        """Raise NotUnderstoodError where what is on disk is one of our pieces, but damaged."""
        kind = self._is_ours(piece)
        if kind is not None and self._fits(kind, buffer) and not is_intact(piece, kind.crc_at):
            raise NotUnderstoodError("its log changes a damaged block")


def _kinds(layout: Layout) -> dict[bytes, Kind]:
    """All kinds of pieces of a file system, by their magic."""
    sector, block = layout.sector_size, layout.block_size
    uuid_at = superblock.UUID_AT if layout.meta_uuid == layout.uuid else superblock.META_UUID_AT
    of_tree = Kind(block, tree.BLOCK_UUID_AT, tree.BLOCK_LSN_AT, tree.BLOCK_CRC_AT, None)
    return {
        superblock.MAGIC: Kind(sector, uuid_at, superblock.LSN_AT, superblock.CRC_AT, 0),
        group.AGF_MAGIC: Kind(
            sector, group.AGF_UUID_AT, group.AGF_LSN_AT, group.AGF_CRC_AT, group.AGF_SECTOR
        ),
        group.AGFL_MAGIC: Kind(
            sector, group.AGFL_UUID_AT, group.AGFL_LSN_AT, group.AGFL_CRC_AT, group.AGFL_SECTOR
        ),
        tree.BY_BLOCK_MAGICS[layout.checksums]: of_tree,
        tree.BY_SIZE_MAGICS[layout.checksums]: of_tree,
    }
