"""HFS+ and HFSX: what the allocation file says is in use.

Source: Apple Technical Note TN1150, "HFS Plus Volume Format", section "Allocation File": a bit for
each allocation block, most significant first; those of both volume headers and of all special files
are marked as well.

The bitmap is believed only on a volume that was let go of: marked as unmounted, without a mark of
inconsistency, and with a journal that is empty if it has one. There are no checksums. So the
header's alternate has to agree, the B-trees have to begin where the header says, and all structures
whose place is known have to be marked as in use.
"""

from __future__ import annotations

from collections.abc import Iterator

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems import Allocation, Volume
from imager.filesystems.hfsplus.header import (
    ALTERNATE_FROM_END,
    HEADER_OFFSET,
    HEADER_SIZE,
    Attributes,
    Header,
    read_header,
)
from imager.filesystems.hfsplus.journal import check_journal

_PIECE = 1 << 20
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def read_allocation(volume: Volume) -> Allocation:
    """The allocation of an HFS+ or HFSX volume.

    Raises NotUnderstoodError where the volume has to be stored whole, and ReadFailedError where
    metadata cannot be read.
    """
    header = read_header(volume)
    known = [
        (0, HEADER_OFFSET + HEADER_SIZE),
        (header.size - ALTERNATE_FROM_END, header.size - ALTERNATE_FROM_END + HEADER_SIZE),
    ]
    size = header.block_size
    for fork in header.forks:
        known += [(start * size, (start + count) * size) for start, count in fork.extents]
    if Attributes.JOURNALED in header.attributes:
        known += check_journal(volume, header)
    allocated = _read_bitmap(volume, header)
    if not all(allocated.covers(start, end) for start, end in known):
        raise NotUnderstoodError("the allocation file calls metadata free")
    return Allocation(allocated, header.size)


def _read_bitmap(volume: Volume, header: Header) -> Extents:
    blocks = header.volume.totalBlocks
    needed = -(-blocks // 8)
    fork = header.allocation
    if not fork.is_whole:
        raise NotUnderstoodError("the allocation file is too fragmented")
    if fork.logicalSize < needed or fork.totalBlocks * header.block_size < needed:
        raise NotUnderstoodError("the allocation file is too short for the file system")
    builder = ExtentsBuilder()
    first = 0
    for piece in _pieces(volume, header, needed):
        bits = min(8 * len(piece), blocks - first)
        bitmap = piece.translate(_REVERSED_BITS)
        builder.add_bitmap(bitmap, bits, header.block_size, first * header.block_size)
        first += bits
    return builder.build()


def _pieces(volume: Volume, header: Header, left: int) -> Iterator[bytes]:
    """The first `left` bytes of the allocation file."""
    for start, count in header.allocation.extents:
        offset, end = start * header.block_size, (start + count) * header.block_size
        while left and offset < end:
            size = min(_PIECE, end - offset, left)
            yield volume.read(offset, size)
            offset += size
            left -= size
