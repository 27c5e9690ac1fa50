"""Changes a small btrfs in memory, with checksums made good again."""

from __future__ import annotations

from pathlib import Path
from struct import Struct, pack, pack_into, unpack_from

import crc32c

from imager.filesystems import Allocation, read_allocation
from tests.volumes import BytesVolume

SUPERBLOCK = 64 << 10
HEADER = 101
ITEM = Struct("<QBQII")
POINTER = Struct("<QBQQQ")

Key = tuple[int, int, int]
Items = list[tuple[Key, bytes]]


class _Recording(BytesVolume):
    """Remembers where it was read."""

    def __init__(self, data: bytearray) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        return super().read(offset, size)


class Editor:
    """A volume with checksums of crc32c in memory; all offsets are those of the volume."""

    def __init__(self, image: Path) -> None:
        self.data = bytearray(image.read_bytes())
        (self.nodesize,) = unpack_from("<I", self.data, SUPERBLOCK + 0x94)
        volume = _Recording(self.data)
        self.before = read_allocation("btrfs", volume)
        self.places: dict[tuple[int, int], list[int]] = {}
        """Where the reader finds tree blocks: by owner and level, in the order of the disk."""
        for start, size in volume.reads[1:]:
            for place in range(start, start + size, self.nodesize):
                owner, _, level = unpack_from("<QIB", self.data, place + 0x58)
                self.places.setdefault((owner, level), []).append(place)

    def read(self) -> Allocation:
        """What the reader says now."""
        return read_allocation("btrfs", BytesVolume(self.data))

    def patch(self, place: int, form: str, *values: int | bytes) -> None:
        """Overwrite values; a checksum has to be made good with `seal`."""
        pack_into("<" + form, self.data, place, *values)

    def seal(self, place: int) -> None:
        """The checksum of the superblock or tree block at `place`."""
        end = place + (4096 if place == SUPERBLOCK else self.nodesize)
        self.patch(place, "I", crc32c.crc32c(bytes(self.data[place + 32 : end])))

    def set(self, place: int, offset: int, form: str, *values: int | bytes) -> None:
        """`patch` and `seal` the block at `place`."""
        self.patch(place + offset, form, *values)
        self.seal(place)

    def count(self, place: int) -> int:
        """Entries of a tree block."""
        (count,) = unpack_from("<I", self.data, place + 0x60)
        assert isinstance(count, int)
        return count

    def items(self, place: int) -> Items:
        """A leaf's keys and data."""
        found = []
        for index in range(self.count(place)):
            *key, start, size = ITEM.unpack_from(self.data, place + HEADER + index * ITEM.size)
            start += place + HEADER
            found.append(((key[0], key[1], key[2]), bytes(self.data[start : start + size])))
        return found

    def put_items(self, place: int, items: Items) -> None:
        """A leaf's new content."""
        end = self.nodesize - HEADER
        self.data[place + HEADER : place + self.nodesize] = bytes(end)
        for index, (key, data) in enumerate(items):
            end -= len(data)
            ITEM.pack_into(self.data, place + HEADER + index * ITEM.size, *key, end, len(data))
            self.data[place + HEADER + end : place + HEADER + end + len(data)] = data
        self.set(place, 0x60, "I", len(items))

    def change(self, place: int, kind: int, offset: int, form: str, *values: int | bytes) -> None:
        """Overwrite part of the data of the first item of a type."""
        items = self.items(place)
        for index, (key, data) in enumerate(items):
            if key[1] == kind:
                form = "<" + form
                size = Struct(form).size
                data = data[:offset] + pack(form, *values) + data[offset + size :]
                items[index] = (key, data)
                return self.put_items(place, items)
        raise AssertionError(f"no item of type {kind}")


def add_block_group_tree(editor: Editor) -> None:
    """Move the block groups to a tree of their own, as mkfs of today makes it.

    All trees have to be leaves, and metadata in one chunk, there once.
    """
    extents, roots = editor.places[2, 0][0], editor.places[1, 0][0]
    root_items = dict(editor.items(roots))
    (address,) = unpack_from("<Q", editor.data, extents + 0x30)
    offset = extents - address
    (free_tree,) = unpack_from("<Q", root_items[10, 132, 0], 176)
    free = dict(editor.items(free_tree + offset))
    new, kind, length = min(key for key in free if key[1] == 199 and key[0] > address)
    del free[new, kind, length]
    free[new + editor.nodesize, kind, length - editor.nodesize] = b""
    editor.put_items(free_tree + offset, sorted(free.items()))

    items = dict(editor.items(extents))
    groups = {key: items.pop(key) for key in list(items) if key[1] == 192}
    for (start, kind, length), data in groups.items():
        if start <= new < start + length:
            used = int.from_bytes(data[:8], "little") + editor.nodesize
            groups[start, kind, length] = pack("<Q", used) + data[8:]
    generation, owner = unpack_from("<QQ", editor.data, extents + 0x50)
    items[new, 169, 0] = pack("<QQQBQ", 1, generation, 2, 176, 11)
    editor.put_items(extents, sorted(items.items()))

    place = new + offset
    editor.data[place : place + HEADER] = editor.data[extents : extents + HEADER]
    editor.patch(place + 0x30, "Q", new)
    editor.patch(place + 0x58, "Q", 11)
    editor.put_items(place, sorted(groups.items()))
    data = root_items[owner, 132, 0]
    root_items[11, 132, 0] = data[:176] + pack("<Q", new) + data[184:]
    editor.put_items(roots, sorted(root_items.items()))
    (used,) = unpack_from("<Q", editor.data, SUPERBLOCK + 0x78)
    editor.patch(SUPERBLOCK + 0x78, "Q", used + editor.nodesize)
    (compat_ro,) = unpack_from("<Q", editor.data, SUPERBLOCK + 0xB4)
    editor.set(SUPERBLOCK, 0xB4, "Q", compat_ro | 1 << 3)
