"""What was fsynced since the checkpoint, and would be brought back by the next mount.

Source: f2fs.rst, "Roll-forward recovery"; include/linux/f2fs_fs.h, `struct f2fs_node`; fs/f2fs/recovery.c on
where it begins and ends. fsync writes data and the nodes that point to it, but no checkpoint. Each node
names the block in which the next one of its log will be; it belongs to the chain if it has the
checkpoint's version.
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.filesystems.f2fs.checkpoint import Checkpoint
from imager.filesystems.f2fs.superblock import BLOCK, Layout


class Footer(NamedTuple):
    """`struct node_footer`, at the end of each node."""

    nid: int
    ino: int
    flag: int
    cp_ver: int
    next_blkaddr: int


_FOOTER = struct.Struct("<IIIQI")
_FOOTER_AT = BLOCK - _FOOTER.size
_VERSION_MASK = 0xFFFFFFFF
_INLINE_AT = 3
"""Offset of i_inline in an inode."""
_INLINE_DATA_OR_DENTRIES = 0x02 | 0x04
_INODE_ADDRESSES = slice(360, 360 + 4 * 923)
"""i_addr; with extra attributes its first words are none, and at most some blocks too many are kept."""
_NODE_ADDRESSES = slice(0, 4 * 1018)
_MOST_NODES = 1 << 18
"""Nodes since the last checkpoint, 1 GiB: one is made long before they are so many."""
_FLUSH = 1 << 18
"""Addresses that are collected before they are merged: bounds the memory for them."""


def fsynced_blocks(volume: Volume, layout: Layout, checkpoint: Checkpoint) -> Extents:
    """The bytes of the main area that a recovery reads.

    Raises NotUnderstoodError for a chain without end.
    """
    found = Extents()
    pending: array[int] = array("I")
    visited: set[int] = set()
    at = checkpoint.next_node
    while layout.main <= at < layout.main_end and at not in visited:
        node = volume.read(at * BLOCK, BLOCK)
        footer = Footer._make(_FOOTER.unpack_from(node, _FOOTER_AT))
        if not _belongs(footer, checkpoint):
            break
        if len(visited) == _MOST_NODES:
            raise NotUnderstoodError("its log of nodes has no end")
        visited.add(at)
        pending.append(at)
        pending.extend(_addresses(node, footer))
        if len(pending) > _FLUSH:
            found |= _within_main_area(pending, layout)
            del pending[:]
        at = footer.next_blkaddr
    return found | _within_main_area(pending, layout)


def _belongs(footer: Footer, checkpoint: Checkpoint) -> bool:
    """Whether a node was written after the checkpoint, and before any other.

    Kernels since 4.8 put a checksum above the version, to tell a checkpoint from one of the same number
    that was lost. It is not compared here: at most, blocks are kept that no recovery would look at.
    """
    return footer.cp_ver & _VERSION_MASK == checkpoint.version & _VERSION_MASK


def _within_main_area(blocks: array[int], layout: Layout) -> Extents:
    """These blocks in bytes, without the addresses that stand for none."""
    inside = {block for block in blocks if layout.main <= block < layout.main_end}
    return Extents.of((block * BLOCK, (block + 1) * BLOCK) for block in inside)


def _addresses(node: bytes, footer: Footer) -> array[int]:
    """The block addresses in an inode or a direct node."""
    is_inode = footer.nid == footer.ino
    if is_inode and node[_INLINE_AT] & _INLINE_DATA_OR_DENTRIES:
        return array("I")
    addresses = array("I")
    addresses.frombytes(node[_INODE_ADDRESSES if is_inode else _NODE_ADDRESSES])
    if _BIG_ENDIAN:
        addresses.byteswap()
    return addresses


_BIG_ENDIAN = array("H", (1,)).tobytes()[0] == 0
