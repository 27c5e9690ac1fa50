"""What transactions logged, put together from the operations in the log's records.

    record      | operation | operation | ...          each a header and a region of bytes
    transaction | start | transaction header | item's first region | its others ... | commit |

Operations of several transactions may be mixed, a region may go on in the next record, and a
transaction counts from its commit on. The first region of each item says how many regions it has.
XFS Filesystem Structure, "Log Operations", "Log Items"; names are those of the kernel's
fs/xfs/libxfs/xfs_log_format.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from imager.errors import NotUnderstoodError

_CLIENTS = (0x69, 0xAA)  # XFS_TRANSACTION, XFS_LOG
_START = 0x01
_COMMIT = 0x02
_CONTINUE = 0x04
_WAS_CONTINUED = 0x08
_END = 0x10
_UNMOUNT = 0x20

_TRANSACTION_MAGIC = b"NART"  # XFS_TRANS_HEADER_MAGIC, in the machine's byte order
_TRANSACTION_HEADER = 16
_BUFFER = 0x123C
_KINDS = frozenset((*range(0x1236, 0x1239), *range(0x123B, 0x124A)))
"""Items whose meaning is known: of all but buffers, that they change no free-space tree."""
_MAX_REGIONS = 257

_CHUNK = 128
_CANCEL = 0x2
_TYPE_SHIFT = 11
_TYPES = frozenset((0, 4, 5, 6, 18))
"""Buffers that may matter: unknown (old kernels), B+tree, AGF, AGFL, superblock."""
_MAX_PENDING = 1 << 26
_MAX_OPEN = 4096
_OVERHEAD = 256
"""Bytes that an item takes in memory beside what was logged."""


class BufferFormat(NamedTuple):
    """struct xfs_buf_log_format up to its bitmap."""

    blf_type: int
    blf_size: int
    blf_flags: int
    blf_len: int
    blf_blkno: int
    blf_map_size: int


_OPERATION = struct.Struct(">IIBB2x")
"""struct xlog_op_header: oh_tid, oh_len, oh_clientid, oh_flags."""
_ITEM = struct.Struct("<HH")
"""What all items begin with: their type, and of how many regions they are."""
_BUFFER_FORMAT = struct.Struct("<HHHHqI")


class LoggedBuffer(NamedTuple):
    """A piece of the volume, and which of its bytes a transaction changed."""

    start: int
    """Byte of the volume."""
    size: int
    changes: tuple[tuple[int, bytes], ...]
    """Offsets in the piece, ascending, and what is there now."""
    cancelled: bool
    """The piece was given up: what was logged of it so far does not count."""


@dataclass
class Transaction:
    """A transaction as far as it has been read."""

    lsn: int
    """That of the record in which it starts."""
    buffers: list[LoggedBuffer] = field(default_factory=list)
    """The buffers that may matter to what is in use."""
    size: int = 0
    """Bytes that it holds in memory."""
    _header: bytes = b""
    _kind: int = 0
    _left: int = 0
    _regions: list[bytearray] = field(default_factory=list)

    def add(self, data: bytes) -> None:
        """Take over a region, or the first part of one."""
        if not data:
            return
        if len(self._header) < _TRANSACTION_HEADER:
            self._add_header(data)
            return
        if not self._left:
            self._finish_item()
            if len(data) < _ITEM.size:
                raise _damaged()
            self._kind, self._left = _ITEM.unpack_from(data)
            if self._kind not in _KINDS:
                raise NotUnderstoodError(f"its log has items of the unknown kind {self._kind:#x}")
            if not 0 < self._left <= _MAX_REGIONS:
                raise _damaged()
        self._left -= 1
        if self._kind == _BUFFER:
            self._regions.append(bytearray(data))
            self.size += len(data)

    def extend(self, data: bytes) -> None:
        """Take over a further part of the last region."""
        if len(self._header) < _TRANSACTION_HEADER:
            self._add_header(data)
        elif self._regions:
            self._regions[-1] += data
            self.size += len(data)

    def finish(self) -> None:
        """To be called once it is committed."""
        if self._left:
            raise _damaged()
        self._finish_item()

    def _add_header(self, data: bytes) -> None:
        self._header += data
        if len(self._header) > _TRANSACTION_HEADER or not self._header.startswith(
            _TRANSACTION_MAGIC[: len(self._header)]
        ):
            raise _damaged()

    def _finish_item(self) -> None:
        regions, self._regions = self._regions, []
        if not regions:
            return
        buffer = _buffer(regions)
        if buffer is None:
            self.size -= sum(map(len, regions))
        else:
            self.buffers.append(buffer)
            self.size += _OVERHEAD


class Transactions:
    """All transactions that have begun and not been committed yet."""

    def __init__(self) -> None:
        self._open: dict[int, Transaction] = {}

    def read(self, lsn: int, count: int, body: bytes) -> Iterator[Transaction]:
        """Take over a record's `count` operations; give the transactions that they commit."""
        at, end = 0, len(body)
        opened = self._open
        while at < end and count:
            count -= 1
            if at + _OPERATION.size > end:
                raise _damaged()
            tid, length, client, flags = _OPERATION.unpack_from(body, at)
            at += _OPERATION.size
            data = body[at : at + length]
            at += length
            if client not in _CLIENTS or at > end:
                raise _damaged()
            transaction = opened.get(tid)
            if transaction is None:
                # One that began before the log's tail, and is in its place, is passed over.
                if flags & _START:
                    opened[tid] = Transaction(lsn)
                continue
            flags &= ~_END
            if flags in (0, _CONTINUE):
                transaction.add(data)
            elif flags in (_WAS_CONTINUED, _WAS_CONTINUED | _CONTINUE):
                transaction.extend(data)
            elif flags == _COMMIT:
                del opened[tid]
                transaction.finish()
                yield transaction
            elif flags == _UNMOUNT:
                del opened[tid]
            else:
                raise _damaged()
        pending = sum(transaction.size for transaction in opened.values())
        if pending > _MAX_PENDING or len(opened) > _MAX_OPEN:
            raise NotUnderstoodError("its log has too large transactions, or too many")


def _buffer(regions: list[bytearray]) -> LoggedBuffer | None:
    """Interpret a buffer item; None for one that cannot matter."""
    first = regions[0]
    if len(first) < _BUFFER_FORMAT.size:
        raise _damaged()
    form = BufferFormat._make(_BUFFER_FORMAT.unpack_from(first))
    cancelled = bool(form.blf_flags & _CANCEL)
    if not cancelled and form.blf_flags >> _TYPE_SHIFT not in _TYPES:
        return None
    start, size = form.blf_blkno * 512, form.blf_len * 512
    if start < 0 or not size:
        raise _damaged()
    if cancelled:
        return LoggedBuffer(start, size, (), True)
    words = first[_BUFFER_FORMAT.size : _BUFFER_FORMAT.size + form.blf_map_size * 4]
    if len(words) != form.blf_map_size * 4:
        raise _damaged()
    bitmap = int.from_bytes(words, "little")
    changes = []
    bit = 0
    for region in regions[1:]:
        # Chunks that follow each other may come as several regions.
        while bitmap and not bitmap & 1:
            skipped = (bitmap & -bitmap).bit_length() - 1
            bitmap >>= skipped
            bit += skipped
        chunks, rest = divmod(len(region), _CHUNK)
        mask = (1 << chunks) - 1
        if rest or not chunks or bitmap & mask != mask or (bit + chunks) * _CHUNK > size:
            raise _damaged()
        changes.append((bit * _CHUNK, bytes(region)))
        bitmap >>= chunks
        bit += chunks
    if bitmap:
        raise _damaged()
    return LoggedBuffer(start, size, tuple(changes), False)


def _damaged() -> NotUnderstoodError:
    return NotUnderstoodError("its log is damaged")
