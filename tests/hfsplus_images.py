"""HFS+ volumes for tests: made and filled by xorriso, enlarged, so that there is free space."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from tests.disks import run

HEADER_OFFSET = 1024
SIGNATURE = b"H+\0\x04"
BLOCK_SIZE, TOTAL_BLOCKS, FREE_BLOCKS = 40, 44, 48
"""Where these stand in a volume header."""
FORKS = 112
ALLOCATION, EXTENTS, CATALOG = range(3)


class HfsPlus:
    """A volume in memory, both its headers changed alike."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def get(self, offset: int, layout: str) -> int:
        """A field of the volume header."""
        value: int = struct.unpack_from(f">{layout}", self.data, HEADER_OFFSET + offset)[0]
        return value

    def put(self, offset: int, layout: str, value: int) -> None:
        """Set a field of both headers."""
        for header in (HEADER_OFFSET, self.alternate):
            struct.pack_into(f">{layout}", self.data, header + offset, value)

    @property
    def block_size(self) -> int:
        return self.get(BLOCK_SIZE, "I")

    @property
    def blocks(self) -> int:
        return self.get(TOTAL_BLOCKS, "I")

    @property
    def alternate(self) -> int:
        """Where the alternate header is."""
        return self.blocks * self.block_size - 1024

    def fork(self, index: int) -> int:
        """Where a special file begins, by its first extent."""
        return self.get(FORKS + 80 * index + 16, "I") * self.block_size

    def mark(self, first: int, count: int, used: bool = True) -> None:
        """Mark blocks in the bitmap, most significant bit first."""
        for block in range(first, first + count):
            at, bit = self.fork(ALLOCATION) + block // 8, 0x80 >> block % 8
            self.data[at] = self.data[at] | bit if used else self.data[at] & ~bit

    def grow(self, blocks: int) -> None:
        """Put free blocks behind the last; the bitmap has room for them in its one block."""
        header = self.data[self.alternate : self.alternate + 512]
        self.mark(self.blocks - 1, 1, used=False)
        self.data[self.alternate : self.alternate + 1024] = bytes(1024)
        added = blocks - self.blocks
        self.data += bytes(added * self.block_size)
        struct.pack_into(">I", self.data, HEADER_OFFSET + TOTAL_BLOCKS, blocks)
        self.data[self.alternate : self.alternate + 512] = header
        self.put(TOTAL_BLOCKS, "I", blocks)
        self.put(FREE_BLOCKS, "I", added)
        self.put(FORKS, "Q", self.block_size)
        self.mark(blocks - 1, 1)


def populated(folder: Path, tree: Path, blocks: int = 10_000) -> HfsPlus:
    """A volume with the files of `tree`, of so many blocks of 2048 bytes."""
    iso = folder / "volume.iso"
    run("xorriso", "-as", "mkisofs", "-quiet", "-hfsplus", "-o", iso, tree)
    data = iso.read_bytes()
    start = data.index(SIGNATURE, HEADER_OFFSET) - HEADER_OFFSET
    size, total = struct.unpack_from(">II", data, start + HEADER_OFFSET + BLOCK_SIZE)
    volume = HfsPlus(data[start : start + size * total])
    volume.grow(blocks)
    return volume


def fragmented(path: Path, blocks: int, period: int) -> Path:
    """Make the sparse file `path` a volume of so many blocks, one of each 8 * `period` in use."""
    folder = path.with_suffix(".tree")
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    volume = populated(folder, folder, 2000)
    size = volume.block_size
    bitmap_blocks = -(-blocks // 8 // size)
    bitmap = bytearray(-(-bitmap_blocks * size // period) * (b"\x80" + bytes(period - 1)))
    del bitmap[bitmap_blocks * size :]
    first = 4096
    bitmap[:250] = volume.data[volume.fork(ALLOCATION) : volume.fork(ALLOCATION) + 250]
    used = bitmap_blocks // 8 + 1
    bitmap[first // 8 : first // 8 + used] = b"\xff" * used
    bitmap[(blocks - 1) // 8] |= 0x80 >> (blocks - 1) % 8
    volume.put(FORKS, "Q", len(bitmap))
    volume.put(FORKS + 12, "I", bitmap_blocks)
    volume.put(FORKS + 16, "I", first)
    volume.put(FORKS + 20, "I", bitmap_blocks)
    volume.put(TOTAL_BLOCKS, "I", blocks)
    header = volume.data[HEADER_OFFSET : HEADER_OFFSET + 512]
    with path.open("r+b") as file:
        for offset, data in (
            (0, volume.data),
            (first * size, bitmap),
            (blocks * size - 1024, header),
        ):
            file.seek(offset)
            file.write(data)
    shutil.rmtree(folder)
    return path


def add_journal(volume: HfsPlus, order: str = "<", start: int = 512, end: int = 512) -> None:
    """A journal of 16 blocks and its info block, in free space."""
    info, size = volume.blocks - 100, 16 * volume.block_size
    place = (info + 1) * volume.block_size
    volume.mark(info, 17)
    volume.put(4, "I", volume.get(4, "I") | 1 << 13)
    volume.put(12, "I", info)
    struct.pack_into(">I32sQQ", volume.data, info * volume.block_size, 1, bytes(32), place, size)
    fields = (0x4A4E4C78, 0x12345678, start, end, size)
    struct.pack_into(f"{order}IIQQQ", volume.data, place, *fields)
