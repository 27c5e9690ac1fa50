"""Logs of ext3/4 as debugfs writes them, with contents of a test's choosing."""

from __future__ import annotations

import struct
from pathlib import Path

from imager.extents import Extents
from imager.filesystems.ext.blocks import Blocks
from imager.filesystems.ext.checksum import CRC_START, crc32c
from imager.filesystems.ext.groups import read_groups
from imager.filesystems.ext.journal import Journal, read_journal
from imager.filesystems.ext.layout import DescriptorChecksum
from imager.filesystems.ext.superblock import read_layout
from tests.ext_images import MIB, allocated, allocated_by_dumpe2fs, copy, debugfs, make, run
from tests.volumes import FileVolume


def journal_of(image: Path) -> Journal:
    volume = FileVolume(image)
    layout = read_layout(volume.read(1024, 1024), volume.size)
    blocks = Blocks(volume, layout.block_size)
    assert layout.journal_inum is not None
    return read_journal(blocks, layout, read_groups(blocks, layout), layout.journal_inum)


class HandMade:
    """A small volume with a log written by debugfs: bitmaps of group 6 of our choosing."""

    def __init__(self, folder: Path, options: str) -> None:
        self.image = make(folder / "image", 64 * MIB, "-b", "1024", *options.split())
        self.before = allocated_by_dumpe2fs(self.image)
        volume = FileVolume(self.image)
        self._layout = read_layout(volume.read(1024, 1024), volume.size)
        self._blocks = Blocks(volume, self._layout.block_size)
        self._place = read_groups(self._blocks, self._layout).block_bitmap[6]
        self._journal = journal_of(self.image).file
        self._transactions: list[str] = []
        self._contents: list[tuple[int, bytes]] = []

    def patch_journal(self, offset: int, content: bytes) -> None:
        """Overwrite bytes of the journal; `offset` counts in the journal file."""
        with self.image.open("r+b") as file:
            file.seek(self._journal.place(offset // 1024) * 1024 + offset % 1024)
            file.write(content)

    def log(self, *clusters: int, begin: bytes = b"", flags: str = "") -> None:
        """A transaction that puts `clusters` of group 6 to use.

        `begin` replaces the first bytes of the bitmap. The descriptors go along, because of the
        checksums in them; group 6 has its descriptor in the first block of them.
        """
        bitmap = bytearray(self._blocks.read(self._place, 1))
        for cluster in clusters:
            bitmap[cluster // 8] |= 1 << cluster % 8
        bitmap[: len(begin)] = begin
        ((first, _),) = self._layout.descriptor_runs()
        table = bytearray(self._blocks.read(first, 1))
        at = 6 * self._layout.desc_size
        desc = table[at : at + self._layout.desc_size]
        desc[0x12] &= ~0x2  # BLOCK_UNINIT
        if self._layout.descriptor_checksum is DescriptorChecksum.CRC32C:
            seed = self._layout.checksum_seed
            csum = crc32c(seed, bytes(bitmap))
            desc[0x18:0x1A] = (csum & 0xFFFF).to_bytes(2, "little")
            if self._layout.desc_size > 32:
                desc[0x38:0x3A] = (csum >> 16).to_bytes(2, "little")
            desc[0x1E:0x20] = b"\0\0"
            csum = crc32c(seed, (6).to_bytes(4, "little") + bytes(desc))
            desc[0x1E:0x20] = (csum & 0xFFFF).to_bytes(2, "little")
        table[at : at + len(desc)] = desc
        self._add(f"-b {self._place},{first} {flags}", bytes(bitmap + table))
        self._contents += [(self._place, bytes(bitmap)), (first, bytes(table))]

    def revoke(self) -> None:
        """A transaction that revokes the blocks that `log` writes."""
        ((first, _),) = self._layout.descriptor_runs()
        self._add(f"-r {self._place},{first}", b"")

    def write(self, version: str) -> None:
        """Write the log, with this option of debugfs to choose checksums."""
        debugfs(self.image, f"jo {version}", *self._transactions, "jc")

    def _add(self, options: str, content: bytes) -> None:
        file = self.image.with_name(f"transaction{len(self._transactions)}")
        file.write_bytes(content)
        self._transactions.append(f"jw {options} {file}")

    def rotate(self, blocks: int) -> None:
        """Move a log of up to 16 blocks so that it goes round after `blocks` of them."""
        journal = journal_of(self.image)
        content = journal.file.read(journal.start, 16)
        ring = [*range(journal.end - blocks, journal.end), *range(journal.first, journal.end)]
        for index in range(16):
            self.patch_journal((journal.start + index) * 1024, bytes(1024))
        for index in range(16):
            self.patch_journal(ring[index] * 1024, content[index * 1024 : (index + 1) * 1024])
        self.patch_journal(0x1C, struct.pack(">I", ring[0]))
        if journal.has_block_checksums:
            self.patch_journal(0xFC, bytes(4))
            checksum = crc32c(CRC_START, self._journal.read(0, 1))
            self.patch_journal(0xFC, struct.pack(">I", checksum))

    def checkpoint(self, *which: int) -> None:
        """Put logged blocks to their places: 0 the first bitmap, 1 its descriptors, 2 ..."""
        with self.image.open("r+b") as file:
            for index in which:
                place, content = self._contents[index]
                file.seek(place * 1024)
                file.write(content)

    def extra(self) -> Extents:
        """What the reader keeps beyond what was in use before the log was written."""
        return allocated(self.image).allocated - self.before

    def expected(self, *clusters: int) -> Extents:
        """The part of these clusters that was not in use before."""
        start = self._layout.group_start(6)
        blocks = [(start + cluster) * 1024 for cluster in clusters]
        return Extents.of((block, block + 1024) for block in blocks) - self.before

    def recovered(self) -> Extents:
        """What a replay by e2fsck and nothing else adds."""
        replayed = copy(self.image, "replayed")
        run("e2fsck", "-y", "-E", "journal_only", replayed)
        return allocated_by_dumpe2fs(replayed) - self.before
