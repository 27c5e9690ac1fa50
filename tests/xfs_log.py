"""XFS logs written by hand: transactions that put blocks of one group to use, in any shape."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from imager.extents import Extents
from imager.filesystems.xfs.checksum import seal
from imager.filesystems.xfs.superblock import read_layout
from tests.volumes import FileVolume
from tests.xfs_images import allocated, allocated_by_xfs_db, make_small

GROUP = 1
"""The group whose blocks the transactions take: the one without the log."""
BTREE, AGF = 4 << 11, 5 << 11
CANCEL = 0x2
SECTOR = 512
START, COMMIT, CONTINUE, CONTINUED, END = 0x01, 0x02, 0x04, 0x08, 0x10
_CHUNK = 128
_CYCLE = 5


class Buffer(NamedTuple):
    """What to log of a buffer: all chunks in which `new` differs from `old`, or all of them."""

    start: int
    new: bytes
    flags: int
    old: bytes | None = None


class Operation(NamedTuple):
    """An operation before it is put into records."""

    tid: int
    flags: int
    data: bytes = b""


def buffer_item(buffer: Buffer) -> list[bytes]:
    """The regions of a buffer item."""
    chunks = [buffer.new[at : at + _CHUNK] for at in range(0, len(buffer.new), _CHUNK)]
    old = buffer.old
    changed = [
        old is None or old[at * _CHUNK : (at + 1) * _CHUNK] != chunk
        for at, chunk in enumerate(chunks)
    ]
    runs: list[bytearray] = []
    bitmap = 0
    if not buffer.flags & CANCEL:
        for at, chunk in enumerate(chunks):
            if changed[at]:
                if not at or not changed[at - 1]:
                    runs.append(bytearray())
                runs[-1] += chunk
                bitmap |= 1 << at
    words = -(-len(chunks) // 32)
    form = struct.pack(
        "<HHHHqI",
        0x123C,
        1 + len(runs),
        buffer.flags,
        len(buffer.new) // SECTOR,
        buffer.start // SECTOR,
        words,
    )
    return [form + bitmap.to_bytes(words * 4 + 4, "little"), *map(bytes, runs)]


def operations(tid: int, items: Sequence[list[bytes]], commit: bool = True) -> list[Operation]:
    """A whole transaction."""
    header = struct.pack("<4sIiI", b"NART", 40, tid, len(items))
    regions = [region for item in items for region in item]
    middle = [Operation(tid, 0, data) for data in (header, *regions)]
    last = [Operation(tid, COMMIT)] if commit else []
    return [Operation(tid, START), *middle, *last]


@dataclass
class LogShape:
    """How a log is put into sectors."""

    at: int = 100
    """The first record's sector."""
    room: int = 60 * SECTOR
    """Bytes of operations in a record."""
    size: int = 32 << 10
    """h_size: what the header has room for."""
    version: int = 2
    checksum: bool = True
    format: int = 1
    """h_fmt: 1 is Linux on a little-endian machine."""


class HandMade:
    """A small volume whose log has transactions of our choosing."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.image = make_small(folder / "image", *options)
        volume = FileVolume(self.image)
        self.layout = read_layout(volume.read(0, 32768), volume.size)
        self.before = allocated_by_xfs_db(self.image)
        self._group = self.layout.group_start(GROUP)
        self._read = volume.read
        agf = volume.read(self._group + self.layout.sector_size, self.layout.sector_size)
        self._roots = struct.unpack_from(">II", agf, 16)
        self._taken: set[int] = set()
        self._now = {place: volume.read(place, size) for place, size in self.places()}
        self._operations: list[Operation] = []
        self._tids = iter(range(0x1000, 0x2000))

    def places(self) -> list[tuple[int, int]]:
        """Where AGF and both roots are, and their size."""
        block = self.layout.block_size
        roots = [(self._group + root * block, block) for root in self._roots]
        return [(self._group + self.layout.sector_size, self.layout.sector_size), *roots]

    def take(self, *blocks: int) -> list[Buffer]:
        """What changes when a transaction takes these blocks, as well as those taken before."""
        self._taken.update(blocks)
        length = self.layout.group_length(GROUP)
        used = {at // self.layout.block_size for at in self._used_before()} | self._taken
        free: list[list[int]] = []
        for block in range(length):
            if block in used:
                continue
            if free and free[-1][0] + free[-1][1] == block:
                free[-1][1] += 1
            else:
                free.append([block, 1])
        by_size = sorted(free, key=lambda pair: (pair[1], pair[0]))
        (agf_at, _), (bno_at, _), (cnt_at, _) = self.places()
        agf = bytearray(self._now[agf_at])
        struct.pack_into(">I", agf, 52, sum(size for _, size in free))
        struct.pack_into(">I", agf, 56, max(size for _, size in free))
        new = {
            agf_at: bytes(agf),
            bno_at: self._leaf(bno_at, free),
            cnt_at: self._leaf(cnt_at, by_size),
        }
        buffers = [
            Buffer(at, content, AGF if at == agf_at else BTREE, self._now[at])
            for at, content in new.items()
        ]
        self._now |= new
        return buffers

    def log(self, *blocks: int, commit: bool = True) -> None:
        """A transaction that takes these blocks."""
        self.add(*self.take(*blocks), commit=commit)

    def add(self, *buffers: Buffer, commit: bool = True) -> list[Operation]:
        """A transaction that logs these buffers."""
        return self.add_items(*map(buffer_item, buffers), commit=commit)

    def add_items(self, *items: list[bytes], commit: bool = True) -> list[Operation]:
        """A transaction of these items, as lists of regions."""
        made = operations(next(self._tids), items, commit)
        self._operations += made
        return made

    def begin(self, count: int) -> None:
        """Transactions that begin and do nothing else."""
        self._operations += [Operation(0x10000 + number, START) for number in range(count)]

    def mix(self, first: list[Operation], second: list[Operation]) -> None:
        """Log only these two transactions, by turns; the second is committed first."""
        mixed = [operation for pair in zip(first, second, strict=True) for operation in pair]
        self._operations = [*mixed[:-2], mixed[-1], mixed[-2]]

    def now(self, at: int) -> bytes:
        """The piece at `at` as the last transaction leaves it."""
        return self._now[at]

    def moved(self, buffer: Buffer, block: int) -> Buffer:
        """A tree's block as it is to be logged at another place."""
        start = self._group + block * self.layout.block_size
        content = bytearray(buffer.new)
        if self.layout.checksums:
            struct.pack_into(">Q", content, 16, start // SECTOR)
        return Buffer(start, bytes(content), BTREE)

    def set_lsn(self, index: int, lsn: int) -> None:
        """Change which transaction a piece says that it was changed by, numbered as `checkpoint` does."""
        at, _ = self.places()[index]
        content = bytearray(self._now[at])
        struct.pack_into(">Q", content, 24 if index else 208, lsn)
        self._now[at] = bytes(content)

    def checkpoint(self, *which: int) -> None:
        """Put what was logged to its place: 0 the AGF, 1 the tree by block, 2 by size."""
        for index in which:
            at, _ = self.places()[index]
            content = bytearray(self._now[at])
            if self.layout.checksums:
                seal(content, 216 if index == 0 else 52)
            self.patch(at, bytes(content))

    def patch(self, at: int, content: bytes) -> None:
        """Overwrite bytes of the volume."""
        with self.image.open("r+b") as file:
            file.seek(at)
            file.write(content)

    def write(self, shape: LogShape | None = None) -> int:
        """Write the log; gives the sector behind its last record."""
        shape = shape or LogShape()
        start, end = self.layout.log_range()
        sectors = (end - start) // SECTOR
        ring = bytearray()
        for sector in range(sectors):
            cycle = _CYCLE if sector < shape.at else _CYCLE - 1
            ring += struct.pack(">I", cycle).ljust(SECTOR, b"\0")
        position = _CYCLE * sectors + shape.at
        tail = previous = position
        for count, body in _bodies(self._operations, shape.room):
            record = self._record(shape, count, body, (position, tail, previous), sectors)
            for index in range(0, len(record), SECTOR):
                at = (position * SECTOR + index) % len(ring)
                ring[at : at + SECTOR] = record[index : index + SECTOR]
            previous = position
            position += len(record) // SECTOR
        self.patch(start, bytes(ring))
        return position % sectors

    def extra(self) -> Extents:
        """What the reader keeps beyond what was in use before the log was written."""
        return allocated(self.image).allocated - self.before

    def expected(self, *blocks: int) -> Extents:
        """These blocks of the group."""
        size = self.layout.block_size
        starts = [self._group + block * size for block in blocks]
        return Extents.of((start, start + size) for start in starts)

    def _used_before(self) -> list[int]:
        end = self._group + self.layout.group_length(GROUP) * self.layout.block_size
        return [
            at - self._group
            for first, last in self.before.clip(self._group, end)
            for at in range(first, last, self.layout.block_size)
        ]

    def _leaf(self, at: int, free: list[list[int]]) -> bytes:
        """The block at `at` with other records."""
        leaf = bytearray(self._now[at])
        struct.pack_into(">H", leaf, 6, len(free))
        header = 56 if self.layout.checksums else 16
        for index, pair in enumerate(free):
            struct.pack_into(">II", leaf, header + index * 8, *pair)
        return bytes(leaf)

    def _record(
        self, shape: LogShape, count: int, body: bytes, where: tuple[int, int, int], sectors: int
    ) -> bytes:
        """A record at a position, with the tail and the record before: header and stamped sectors."""
        position, tail, previous = where
        body = body.ljust(-(-len(body) // SECTOR) * SECTOR, b"\0")
        headers = max(-(-shape.size // (32 << 10)), 1) if shape.version == 2 else 1
        cycle = position // sectors

        def cycle_of(index: int) -> bytes:
            return struct.pack(">I", (position + index) // sectors)

        words = [body[at : at + 4] for at in range(0, len(body), SECTOR)]
        words += [bytes(4)] * (headers * 64 - len(words))
        stamped = b"".join(
            cycle_of(headers + index) + body[index * SECTOR + 4 : (index + 1) * SECTOR]
            for index in range(len(body) // SECTOR)
        )
        head = bytearray(
            struct.pack(
                ">IIIIQQIII",
                0xFEEDBABE,
                cycle,
                shape.version,
                len(body),
                _lsn(position, sectors),
                _lsn(tail, sectors),
                0,
                previous % sectors,
                count,
            )
            + b"".join(words[:64])
            + struct.pack(
                ">I16sI", shape.format, self.layout.uuid, shape.size if shape.version == 2 else 0
            )
        ).ljust(SECTOR, b"\0")
        more = [
            cycle_of(index) + b"".join(words[index * 64 : (index + 1) * 64])
            for index in range(1, headers)
        ]
        if shape.checksum:
            crc = crc32c(head[:328])
            for index in range(1, -(-len(body) // (32 << 10))):
                crc = crc32c(more[index - 1], crc)
            head[32:36] = struct.pack("<I", crc32c(stamped, crc))
        return bytes(head) + b"".join(part.ljust(SECTOR, b"\0") for part in more) + stamped


def _lsn(position: int, sectors: int) -> int:
    return position // sectors << 32 | position % sectors


def _bodies(todo: Sequence[Operation], room: int) -> list[tuple[int, bytes]]:
    """Operations put into records of at most `room` bytes: (how many, bytes)."""
    records: list[tuple[int, bytearray]] = [(0, bytearray())]

    def put(tid: int, flags: int, data: bytes) -> None:
        count, body = records[-1]
        body += struct.pack(">IIBBH", tid, len(data), 0x69, flags, 0) + data
        records[-1] = (count + 1, body)

    for operation in todo:
        data, flags = operation.data, operation.flags
        while True:
            left = room - len(records[-1][1]) - 12
            if left < 0 or (data and left < 8):
                records.append((0, bytearray()))
                continue
            if len(data) <= left:
                put(operation.tid, flags | END if flags & CONTINUED else flags, data)
                break
            part = left // 4 * 4
            put(operation.tid, flags | CONTINUE, data[:part])
            data, flags = data[part:], CONTINUED
            records.append((0, bytearray()))
    return [(count, bytes(body)) for count, body in records]
