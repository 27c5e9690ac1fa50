"""The file allocation table: from entries to one bit per cluster, without a loop over entries.

Source: fatgen103, section "FAT Data Structure".

A piece of a table is cut into planes, plane k holding byte k of each entry. `bytes.translate` and
`bitarray.pack` turn a plane into bits at about 1 ns per entry, and bit operations combine them: 67
million entries (2 TiB in clusters of 32 KiB) take a second or two, however fragmented.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bitarray import bitarray

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.fat.layout import FAT12, FAT32, Layout

_AT_ONCE = 1 << 19
"""Entries decoded in one go: up to 2 MiB of each table."""

_MOST_UNUSED = 1 << 20
"""Formatting tools round a table up, at most to a multiple of the largest cluster: 512 KiB."""


def check_first_entries(volume: Volume, layout: Layout) -> int:
    """Check FAT[0] and FAT[1] of each table; return FAT[1] of the first, with its flags.

    FAT[0] is BPB_Media with all other bits set, FAT[1] an end-of-chain mark but for the flags. What
    follows the last table may not begin like this: the root directory and the clusters would lie
    elsewhere than the boot sector says.
    """
    flags = []
    for fat in layout.fats:
        media, second = _first_entries(volume, layout, fat)
        if not media:
            raise NotUnderstoodError("file allocation table does not begin with the media type")
        if second is None:
            raise NotUnderstoodError("second entry of the file allocation table makes no sense")
        flags.append(second)
    behind = layout.data if layout.kind is FAT32 else layout.root
    media, second = _first_entries(volume, layout, behind)
    if media and second is not None:
        raise NotUnderstoodError("more file allocation tables than the boot sector says")
    return flags[0]


def _first_entries(volume: Volume, layout: Layout, offset: int) -> tuple[bool, int | None]:
    """Whether the first two entries at an offset are a table's; the second, None if it is not."""
    kind = layout.kind
    pair = int.from_bytes(volume.read(offset, kind.bits // 4), "little")
    second = pair >> kind.bits & kind.mask
    makes_sense = second | kind.clean | kind.no_error | 7 == kind.mask
    media = pair & kind.mask == kind.mask & ~0xFF | layout.media
    return media, second if makes_sense else None


def check_length(volume: Volume, layout: Layout) -> None:
    """Refuse a single table whose unused sectors are many, or not zero.

    A second table proves by its place how long the first is. Without one, too large a BPB_FATSz
    would shift the clusters unnoticed; the root directory or a cluster is then in the excess.
    """
    if len(layout.fats) > 1:
        return
    used = -(-(layout.clusters + 2) * layout.kind.bits // (8 * layout.sector)) * layout.sector
    unused = layout.fat_size - used
    if unused > _MOST_UNUSED:
        raise NotUnderstoodError("file allocation table is too long for the volume")
    if volume.read(layout.fats[0] + used, unused).count(0) != unused:
        raise NotUnderstoodError("file allocation table has more entries than the volume clusters")


def used_clusters(volume: Volume, layout: Layout) -> Iterator[tuple[int, bitarray, bool]]:
    """Pieces of the tables: the first cluster's number, a bit for each in use, do the tables agree.

    In use is what any table has an entry for that is not 0. Raises NotUnderstoodError where one is
    neither 0, nor a cluster of the volume, nor one of the reserved values (bad cluster and end of
    chain among them), which are the sixteen highest. Value 1 is reserved as well, and keeps its
    cluster.
    """
    for number, tables in _pieces(volume, layout):
        agree = all(table == tables[0] for table in tables)
        first, *others = tables[:1] if agree else tables
        used = _used(first, layout)
        for table in others:
            used |= _used(table, layout)
        yield number, used, agree


def _used(entries: bytes, layout: Layout) -> bitarray:
    """A bit for each entry of a piece of one table: whether it is not 0."""
    mask = layout.kind.mask
    last = layout.clusters + 1
    width = 4 if layout.kind is FAT32 else 2
    planes = [entries[byte::width] for byte in range(width)]
    no_cluster = _above(planes, mask, last).count()
    if no_cluster and no_cluster != _above(planes, mask, max(last, mask - 16)).count():
        raise NotUnderstoodError("file allocation table points outside of the volume")
    return _above(planes, mask, 0)


def _pieces(volume: Volume, layout: Layout) -> Iterator[tuple[int, list[bytes]]]:
    """The entries of all clusters, as bytes, of each table, with the number of the first."""
    bits = layout.kind.bits
    end = layout.clusters + 2
    # FAT[0] and FAT[1] stand for no cluster.
    for first in range(2, end, _AT_ONCE):
        stop = min(first + _AT_ONCE, end)
        begin, length = first * bits // 8, -(-stop * bits // 8) - first * bits // 8
        tables = [volume.read(fat + begin, length) for fat in layout.fats]
        if layout.kind is FAT12:
            tables = [_widened(table, stop - first) for table in tables]
        yield first, tables


def _widened(table: bytes, count: int) -> bytes:
    """The first `count` 12-bit entries of a table as 16-bit ones; they number 4084 at most."""
    entries: list[int] = []
    for at in range(0, len(table), 3):
        pair = int.from_bytes(table[at : at + 3], "little")
        entries += (pair & 0xFFF, pair >> 12)
    return struct.pack(f"<{count}H", *entries[:count])


def _above(planes: list[bytes], mask: int, limit: int) -> bitarray:
    """A bit for each entry: whether it is, as far as `mask` lets it count, greater than `limit`.

    Entries are compared like numbers of several digits, the highest plane first.
    """
    above = bitarray(len(planes[0]), endian="little")
    above.setall(0)
    tied = ~above
    for place in reversed(range(len(planes))):
        most, digit = mask >> 8 * place & 0xFF, limit >> 8 * place & 0xFF
        repeat = 256 // (most + 1)  # where a mask hides upper bits, they may be anything
        if digit < most:
            greater = (bytes(digit + 1) + b"\x01" * (most - digit)) * repeat
            above |= tied & _bits(planes[place], greater)
        equal = (bytes(digit) + b"\x01" + bytes(most - digit)) * repeat
        tied &= _bits(planes[place], equal)
        if not tied.any():
            break
    return above


def _bits(plane: bytes, chosen: bytes) -> bitarray:
    """A bit for each byte of `plane`: whether `chosen` maps its value to something but 0."""
    bits = bitarray(endian="little")
    bits.pack(plane.translate(chosen))
    return bits
