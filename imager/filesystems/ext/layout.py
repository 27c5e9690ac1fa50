"""Where the fixed structures of an ext2/3/4 file system lie, computed from its superblock.

    group 0                              group 1, 3, 5, 7, 9, 25, ... (sparse_super)
    | boot | super | GDT | reserved GDT | ...    | super | GDT | reserved GDT | ...

With meta_bg, descriptor blocks from s_first_meta_bg on lie in the first group that they describe,
with copies in the second and the last. Linux documentation, "ext4 Data Structures and Algorithms":
Layout, Meta Block Groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from imager.errors import NotUnderstoodError

_SUPERBLOCK_BYTE = 1024
_MIN_INODE_SIZE = 128
_MIN_BLOCKS_PER_GROUP = 256  # as mke2fs
_MAX_GROUPS = 1 << 20  # 128 TiB in groups of 128 MiB; bounds what descriptors cost


class DescriptorChecksum(Enum):
    """How group descriptors, and with CRC32C all metadata, are checksummed."""

    NONE = "none"
    CRC16 = "gdt_csum"
    CRC32C = "metadata_csum"


@dataclass(frozen=True)
class Layout:
    """The geometry of a file system; blocks are counted from the volume's start."""

    block_size: int
    """Bytes of a block."""
    blocks_count: int
    first_data_block: int
    """The first block of group 0: 1 where block 0 holds only the boot block."""
    blocks_per_group: int
    cluster_blocks: int
    """Blocks that one bit of a block bitmap stands for: 1 without bigalloc."""
    inodes_count: int
    inodes_per_group: int
    inode_size: int
    """Bytes of an inode."""
    desc_size: int
    """Bytes of a group descriptor."""
    reserved_gdt_blocks: int
    first_meta_bg: int | None
    """The first descriptor block that is placed by meta_bg; None without that feature."""
    sparse_super: bool
    backup_groups: tuple[int, ...] | None
    """The groups with backups by sparse_super2 (0 for none); None without that feature."""
    flex_bg: bool
    descriptor_checksum: DescriptorChecksum
    uuid: bytes
    checksum_seed: int
    journal_inum: int | None
    external_journal: bool
    """Whether the journal is on another device; there is nothing in it then."""
    mmp_block: int | None

    def check(self, volume_size: int) -> None:
        """Raise NotUnderstoodError unless all numbers are in range for `volume_size` bytes."""
        bits = self.block_size * 8
        whole_boot_block = self.block_size == _SUPERBLOCK_BYTE and self.cluster_blocks == 1
        inode_size = self.inode_size
        checks = (
            (self.size <= volume_size, "file system is larger than its volume"),
            (self.first_data_block == whole_boot_block, "first data block is out of place"),
            (
                _MIN_BLOCKS_PER_GROUP <= self.blocks_per_group <= bits * self.cluster_blocks
                and self.blocks_per_group % (8 * self.cluster_blocks) == 0,
                "blocks per group are out of range",
            ),
            (self.blocks_count > self.first_data_block + 1, "file system has no blocks"),
            (0 < self.inodes_per_group <= bits, "inodes per group are out of range"),
            (
                _MIN_INODE_SIZE <= inode_size <= self.block_size
                and inode_size & (inode_size - 1) == 0,
                "inode size is out of range",
            ),
        )
        for good, reason in checks:
            if not good:
                raise NotUnderstoodError(reason)
        if self.group_count > _MAX_GROUPS:
            raise NotUnderstoodError("file system has too many block groups")
        if self.inodes_count != self.inodes_per_group * self.group_count:
            raise NotUnderstoodError("inode count and block groups disagree")
        if self.mmp_block is not None and not self.holds(self.mmp_block):
            raise NotUnderstoodError("mmp block is out of range")

    @property
    def size(self) -> int:
        """Bytes that the file system spans."""
        return self.blocks_count * self.block_size

    @property
    def cluster_size(self) -> int:
        """Bytes that one bit of a block bitmap stands for."""
        return self.cluster_blocks * self.block_size

    @property
    def group_count(self) -> int:
        """The number of block groups."""
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of a block bitmap that stand for clusters of a (whole) group."""
        return self.blocks_per_group // self.cluster_blocks // 8

    @property
    def inode_table_blocks(self) -> int:
        """Blocks of one group's inode table."""
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    @property
    def descriptors_per_block(self) -> int:
        """Group descriptors in one block."""
        return self.block_size // self.desc_size

    @property
    def descriptor_blocks(self) -> int:
        """Blocks of all group descriptors."""
        return -(-self.group_count // self.descriptors_per_block)

    @property
    def superblock_block(self) -> int:
        """The block that holds the primary superblock."""
        return _SUPERBLOCK_BYTE // self.block_size

    def holds(self, first: int, count: int = 1) -> bool:
        """Whether `count` blocks from block `first` on belong to the file system's groups."""
        return self.first_data_block <= first and first + count <= self.blocks_count

    def group_start(self, group: int) -> int:
        """The first block of `group`."""
        return self.first_data_block + group * self.blocks_per_group

    def group_end(self, group: int) -> int:
        """One past the last block of `group`."""
        return min(self.group_start(group + 1), self.blocks_count)

    def group_clusters(self, group: int) -> int:
        """Clusters of `group`, a last one that is cut off included."""
        return -(-(self.group_end(group) - self.group_start(group)) // self.cluster_blocks)

    def descriptor_runs(self) -> Iterator[tuple[int, int]]:
        """(first block, blocks) of the primary group descriptors, in order of groups."""
        together = self._descriptor_blocks_together
        if together:
            yield self.superblock_block + 1, together
        supers = frozenset(self._groups_with_super())
        for index in range(together, self.descriptor_blocks):
            group = index * self.descriptors_per_block
            yield self._group_base(group) + (group in supers), 1

    def fixed_ranges(self) -> Iterator[tuple[int, int]]:
        """[start, end) in blocks of superblocks, descriptors, their copies and reserves.

        In ascending order of group. Raises NotUnderstoodError where they outgrow their group.
        """
        counts: dict[int, int] = {}
        classic = self._descriptor_blocks_together
        if self.first_meta_bg is None:
            classic_groups = self.group_count
        else:
            classic_groups = self.first_meta_bg * self.descriptors_per_block
        for group in self._groups_with_super():
            counts[group] = 1
            if group < classic_groups:
                counts[group] += classic + self.reserved_gdt_blocks
        for index in range(classic, self.descriptor_blocks):
            first = index * self.descriptors_per_block
            for group in {first, first + 1, first + self.descriptors_per_block - 1}:
                if group < self.group_count:
                    counts[group] = counts.get(group, 0) + 1
        for group in sorted(counts):
            end = self._group_base(group) + counts[group]
            if end > self.group_end(group):
                raise NotUnderstoodError("group descriptors outgrow their group")
            yield self.group_start(group), end

    @property
    def _descriptor_blocks_together(self) -> int:
        """Descriptor blocks that follow each superblock: all, or those before meta_bg's."""
        if self.first_meta_bg is None:
            return self.descriptor_blocks
        return min(self.first_meta_bg, self.descriptor_blocks)

    def _group_base(self, group: int) -> int:
        """The block of `group` that a superblock would be in.

        Bigalloc with 1 KiB blocks counts the boot block to group 0.
        """
        return self.group_start(group) if group else self.superblock_block

    def _groups_with_super(self) -> Sequence[int]:
        if self.backup_groups is not None:
            return sorted({0, *(group for group in self.backup_groups if group < self.group_count)})
        if not self.sparse_super:
            return range(self.group_count)
        groups = {0, 1}
        for base in (3, 5, 7):
            power = base
            while power < self.group_count:
                groups.add(power)
                power *= base
        return sorted(group for group in groups if group < self.group_count)
