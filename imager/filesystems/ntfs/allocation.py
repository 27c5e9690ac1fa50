"""From $Bitmap and the MFT to the clusters that have to be kept.

Format: "NTFS Documentation" of the Linux-NTFS project, files $Bitmap and $BadClus.
"""

from __future__ import annotations

from array import array

from imager.errors import NotUnderstoodError
from imager.extents import Extents, ExtentsBuilder
from imager.filesystems.ntfs import record as rec
from imager.filesystems.ntfs.boot import Geometry
from imager.filesystems.ntfs.mft import BADCLUS, BITMAP, BOOT, LOGFILE, MFT, MFTMIRR, Mft
from imager.filesystems.ntfs.runlist import SPARSE, Run, Stream

_FLUSH = 1 << 16
"""Unmarked ranges that are collected before they are merged: bounds the memory for them."""


def read_bitmap(stream: Stream, geometry: Geometry, size: int) -> Extents:
    """The clusters that $Bitmap marks, and all that lies behind the last cluster up to `size`.

    Bits behind the last cluster's are set on healthy volumes; they mean nothing.
    """
    stream.require_dense("$Bitmap")
    needed = -(-geometry.clusters // 8)
    if stream.size < needed:
        raise NotUnderstoodError("$Bitmap is too short for the volume")
    builder = ExtentsBuilder()
    for offset, piece in stream.pieces(needed):
        bits = min(len(piece) * 8, geometry.clusters - offset * 8)
        builder.add_bitmap(piece, bits, geometry.cluster_size, offset * 8 * geometry.cluster_size)
    builder.add(geometry.clusters * geometry.cluster_size, size)
    return builder.build()


def check_system_files(mft: Mft, geometry: Geometry, marked: Extents) -> int:
    """Raise NotUnderstoodError unless `marked` covers the system files; the bad clusters' number.

    A bitmap that leaves them out is damaged, or is not the bitmap.
    """
    bad_clusters = 0
    for number in (MFT, MFTMIRR, LOGFILE, BITMAP, BOOT, BADCLUS):
        attributes = mft.attributes(number)
        runs = [run for attribute in attributes for run in attribute.runs]
        if any(not marked.covers(*_span(run, geometry)) for run in runs if run.lcn != SPARSE):
            raise NotUnderstoodError(f"$Bitmap does not mark the clusters of mft record {number}")
        if number == BOOT and not any(run.vcn == run.lcn == 0 for run in runs):
            raise NotUnderstoodError("$Boot does not hold the boot sector")
        if number == BADCLUS:
            bad_clusters = sum(run.length for run in runs if run.lcn != SPARSE)
    return bad_clusters


def find_unmarked(mft: Mft, geometry: Geometry, marked: Extents) -> Extents:
    """The clusters that files have although `marked` leaves them out.

    Looks at every attribute of every record in use; a file whose attributes fill several records
    needs no special care, since each of these is looked at on its own.
    """
    clusters = geometry.clusters
    covers = marked.covers
    unmarked = Extents()
    pending: array[int] = array("Q")
    for record in mft.scan():
        for position, length, non_resident in rec.iter_attributes(record):
            if not non_resident:
                continue
            for run in rec.decode_runs(record, position, length, clusters)[1]:
                if run.lcn != SPARSE and not covers(*_span(run, geometry)):
                    pending.extend(_span(run, geometry))
        if len(pending) > 2 * _FLUSH:
            unmarked |= _ranges(pending)
            del pending[:]
    return (unmarked | _ranges(pending)) - marked if pending or unmarked else unmarked


def _span(run: Run, geometry: Geometry) -> tuple[int, int]:
    """The bytes of a run that is not sparse."""
    start = run.lcn * geometry.cluster_size
    return start, start + run.length * geometry.cluster_size


def _ranges(pending: array[int]) -> Extents:
    return Extents.of(zip(pending[0::2], pending[1::2], strict=True))
