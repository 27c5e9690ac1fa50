"""Replaying the log in memory, from its tail to its head.

Only whole transactions count, in the order of their commits. Nothing is written anywhere. Items of
inodes, quotas and new inode chunks change no free-space metadata, and intents that are not done have
changed nothing yet: what they name is still in use. XFS Filesystem Structure, "Journaling Log";
mounting's way is in the kernel's fs/xfs/xfs_log_recover.c and xfs_buf_item_recover.c.
"""

from __future__ import annotations

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.xfs.layout import Layout
from imager.filesystems.xfs.log import Log
from imager.filesystems.xfs.pieces import Pieces, Replayed
from imager.filesystems.xfs.record import (
    RecordHeader,
    is_unmount,
    read_header,
    read_record,
    was_cut_off,
)
from imager.filesystems.xfs.transactions import Transactions


def replay(volume: Volume, layout: Layout) -> Replayed | None:
    """The volume after its log has been replayed; None where all is in its place already.

    Raises NotUnderstoodError where that cannot be told.
    """
    log = Log(volume, *layout.log_range())
    at, last = _last_record(log, layout)
    if is_unmount(log, last, at):
        if last.h_crc and last.describes_all:
            read_record(log, layout, at, last)
        return None
    # Positions that count on when the log goes round.
    head = _position(log, last.h_lsn) + last.sectors
    tail = _position(log, last.h_tail_lsn)
    if not tail < head <= tail + log.size or last.h_tail_lsn & 0xFFFFFFFF >= log.size:
        raise NotUnderstoodError("its log is damaged")
    pieces = Pieces(volume, layout)
    transactions = Transactions()
    at = tail
    while at < head:
        header = read_header(log, layout, at)
        if header.h_cycle != at // log.size or at + header.sectors > head:
            raise NotUnderstoodError("its log is damaged")
        body = read_record(log, layout, at, header)
        for transaction in transactions.read(header.h_lsn, header.h_num_logops, body):
            # What is given up in a transaction is given up after what it changes.
            for buffer in sorted(transaction.buffers, key=lambda buffer: buffer.cancelled):
                pieces.take(buffer, transaction.lsn)
        at += header.sectors
    return pieces.replayed()


def _last_record(log: Log, layout: Layout) -> tuple[int, RecordHeader]:
    """Sector and header of the last whole record."""
    head = log.find_head()
    at = log.last_record(head)
    header = read_header(log, layout, at)
    if head - at < header.sectors and was_cut_off(log, layout, at, header, head):
        head = at
        at = log.last_record(head)
        header = read_header(log, layout, at)
    if head - at != header.sectors:
        raise NotUnderstoodError("its log is damaged")
    return at, header


def _position(log: Log, lsn: int) -> int:
    """A log sequence number, cycle and sector, as the number of sectors since cycle 0."""
    return (lsn >> 32) * log.size + (lsn & 0xFFFFFFFF)
