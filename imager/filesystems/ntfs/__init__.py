"""NTFS: which clusters are in use.

    boot.py         boot sector            -> Geometry
    runlist.py      mapping pairs          -> Run, Stream (content of a non-resident attribute)
    record.py       one MFT record         -> Record, Attribute
    mft.py          $MFT as a whole        -> Mft: files by number, scan of all
    logfile.py      $LogFile               -> has it to be replayed?
    hibernation.py  hiberfil.sys           -> does Windows sleep on it?
    allocation.py   $Bitmap and all runs   -> Extents

**Why $Bitmap alone is no proof.** Windows leaves its mark on a volume that it did not let go of: a
log that is open and not clean. ntfs-3g leaves none: it neither sets the dirty flag nor touches a
clean log while it has a volume mounted for writing (seen with 2022.10.3), and after a crash or a
pulled plug the MFT may be on the disk and the bitmap not. An empty log is not a sign of order
either: ntfs-3g empties the log of a volume that Windows did not let go of, and carries on. So every
volume gets the same treatment: the map is the union of $Bitmap and all runs of all MFT records in
use. What is in neither cannot be reached by any driver, nor be found by a check of the volume:
there is no other place on NTFS that names clusters, except a log to be replayed and a hibernated
Windows' memory. Where one of these may exist, the volume is stored whole.

**What lies behind the last cluster** is kept: sectors too few for a cluster, and the backup boot
sector. The latter is the sector after the last that the boot sector counts, so `Allocation.size`
is one sector more than the boot sector says (if the volume has it), and all bytes from the end of
the last cluster to that size are in `Allocation.allocated`.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Allocation, Volume
from imager.filesystems.ntfs import record as rec
from imager.filesystems.ntfs.allocation import check_system_files, find_unmarked, read_bitmap
from imager.filesystems.ntfs.boot import read_geometry
from imager.filesystems.ntfs.hibernation import check_not_hibernated
from imager.filesystems.ntfs.logfile import check_log
from imager.filesystems.ntfs.mft import BITMAP, LOGFILE, VOLUME, Mft

_VOLUME_INFORMATION = Struct("<QBBH")
_VERSIONS = ((1, 2), (3, 0), (3, 1))
_DIRTY = 0x0001
_KNOWN_FLAGS = 0xC1FF
"""All that "NTFS today" (dfir.ru, 2019) and libntfs-3g's layout.h explain. None of them concerns
where clusters are named; those that ask for a check of the volume are covered by the union."""


class VolumeInformation(NamedTuple):
    """$VOLUME_INFORMATION of the file $Volume."""

    reserved: int
    major_ver: int
    minor_ver: int
    flags: int


def read_allocation(volume: Volume) -> Allocation:
    """The clusters in use of the NTFS on `volume`: see the module's description.

    Raises NotUnderstoodError where they are not certain, ReadFailedError where metadata cannot be
    read. Takes the time to read $Bitmap and $MFT once, and little memory beyond the result.
    """
    geometry = read_geometry(volume)
    mft = Mft(volume, geometry)
    mft.check_mirror()
    notes: list[str] = []
    if _read_volume_information(mft).flags & _DIRTY:
        notes.append("volume is marked as dirty: windows will check it")
    check_log(mft.stream(mft.attributes(LOGFILE), rec.DATA))
    check_not_hibernated(mft)
    size = min((geometry.number_of_sectors + 1) * geometry.sector_size, volume.size)
    bitmap = mft.stream(mft.attributes(BITMAP), rec.DATA)
    allocated = read_bitmap(bitmap, geometry, size)
    bad_clusters = check_system_files(mft, geometry, allocated)
    if bad_clusters:
        notes.append(f"{bad_clusters} bad clusters")
    unmarked = find_unmarked(mft, geometry, allocated)
    if unmarked:
        count = unmarked.total // geometry.cluster_size
        notes.append(f"{count} clusters of files are not marked as used; they are kept")
        allocated |= unmarked
    return Allocation(allocated, size, tuple(notes))


def _read_volume_information(mft: Mft) -> VolumeInformation:
    for attribute in mft.attributes(VOLUME):
        if attribute.header.type == rec.VOLUME_INFORMATION:
            if len(attribute.value) < _VOLUME_INFORMATION.size:
                break
            found = VolumeInformation._make(_VOLUME_INFORMATION.unpack_from(attribute.value))
            if (found.major_ver, found.minor_ver) not in _VERSIONS:
                raise NotUnderstoodError(
                    f"ntfs version {found.major_ver}.{found.minor_ver} is not known"
                )
            if found.flags & ~_KNOWN_FLAGS:
                raise NotUnderstoodError(f"unknown ntfs volume flags {found.flags:#06x}")
            return found
    raise NotUnderstoodError("$Volume has no version")
