"""Where the allocation groups and the log of an XFS file system lie, as its superblock has it.

    group 0                                              group 1
    | super | AGF | AGI | AGFL | blocks ... [the log] ... | super | AGF | AGI | AGFL | blocks ...
      each of the four takes a sector of the file system's

All groups have `group_blocks` blocks, the last one may be cut off. XFS Filesystem Structure,
"Allocation Groups".
"""

from __future__ import annotations

from dataclasses import dataclass

from imager.errors import NotUnderstoodError

HEADERS = 4
"""Sectors at the start of each group: superblock, AGF, AGI, AGFL."""

_MIN_GROUP_BYTES = 1 << 24  # as mkfs.xfs; bounds what groups cost
_MAX_GROUP_BYTES = 1 << 40
_MIN_LAST_GROUP = 64  # blocks; as growing makes it at least
_MIN_LOG_BYTES = 1 << 18
_MAX_LOG_BYTES = 1 << 31


@dataclass(frozen=True)
class Layout:
    """The geometry of a file system."""

    block_size: int
    """Bytes of a block."""
    sector_size: int
    """Bytes of each of a group's headers."""
    blocks: int
    """Blocks of the whole file system (sb_dblocks)."""
    group_blocks: int
    """Blocks of each group but the last (sb_agblocks)."""
    group_count: int
    group_bits: int
    """By how many bits the number of a group is shifted in a block number (sb_agblklog)."""
    log_start: int
    """The block number of the log's first block: group and block in the group."""
    log_blocks: int
    checksums: bool
    """Whether metadata describes itself and has checksums (version 5)."""
    uuid: bytes
    """What the log's records name."""
    meta_uuid: bytes
    """What metadata blocks name; it stays when the other one is changed."""

    def check(self, volume_size: int) -> None:
        """Raise NotUnderstoodError unless all numbers are in range for `volume_size` bytes."""
        log_group, log_block = self.split(self.log_start)
        checks = (
            (self.size <= volume_size, "file system is larger than its volume"),
            (
                _MIN_GROUP_BYTES <= self.group_bytes <= _MAX_GROUP_BYTES,
                "size of allocation groups is out of range",
            ),
            (
                self.group_bits == (self.group_blocks - 1).bit_length()
                and self.group_count == -(-self.blocks // self.group_blocks)
                and self.group_length(self.group_count - 1) >= _MIN_LAST_GROUP,
                "allocation groups and size disagree",
            ),
            (
                _MIN_LOG_BYTES <= self.log_blocks * self.block_size <= _MAX_LOG_BYTES,
                "size of the log is out of range",
            ),
            (
                log_group < self.group_count
                and self.header_blocks <= log_block
                and log_block + self.log_blocks <= self.group_length(log_group),
                "log is out of range",
            ),
        )
        for good, reason in checks:
            if not good:
                raise NotUnderstoodError(reason)

    @property
    def size(self) -> int:
        """Bytes that the file system spans."""
        return self.blocks * self.block_size

    @property
    def group_bytes(self) -> int:
        """Bytes of each group but the last."""
        return self.group_blocks * self.block_size

    @property
    def header_blocks(self) -> int:
        """Blocks at the start of each group that its headers take."""
        return -(-HEADERS * self.sector_size // self.block_size)

    def group_length(self, group: int) -> int:
        """Blocks of `group`."""
        return min(self.group_blocks, self.blocks - group * self.group_blocks)

    def group_start(self, group: int) -> int:
        """Bytes before `group`."""
        return group * self.group_bytes

    def split(self, block: int) -> tuple[int, int]:
        """Group, and block within the group, of a block number of the whole file system."""
        return block >> self.group_bits, block & (1 << self.group_bits) - 1

    def log_range(self) -> tuple[int, int]:
        """The bytes [start, end) of the log."""
        group, block = self.split(self.log_start)
        start = self.group_start(group) + block * self.block_size
        return start, start + self.log_blocks * self.block_size
