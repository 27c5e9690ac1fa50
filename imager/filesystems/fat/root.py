"""The root directory, read only to prove that clusters are where the layout says.

Source: fatgen103, section "FAT Directory Structure".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.filesystems.fat.layout import FAT32, Layout


class DirectoryEntry(NamedTuple):
    """The fields of a directory entry that say what it is and where it begins."""

    DIR_Name: bytes
    DIR_Attr: int
    DIR_FstClusHI: int
    DIR_FstClusLO: int


_DIRECTORY_ENTRY = struct.Struct("<11sB8xH4xH4x")

_ATTR_VOLUME_ID, _ATTR_DIRECTORY = 0x08, 0x10
_END, _DELETED = 0x00, 0xE5
_DOT, _DOT_DOT = b".".ljust(11), b"..".ljust(11)

_DIRECTORIES_TO_LOOK_INTO = 32
"""Enough to expose a wrong layout, few enough for a slow disk."""


def check_root_directory(volume: Volume, layout: Layout, allocated: Extents) -> None:
    """NotUnderstoodError unless the root directory's entries fit the layout and the table.

    On FAT32 this looks at the root directory's first cluster only.
    """
    if layout.root not in allocated:
        raise NotUnderstoodError("root directory is in a free cluster")
    entries = _entries(volume.read(layout.root, layout.root_size))
    files_end = layout.offset(layout.clusters + 2)
    own = layout.cluster if layout.root >= layout.data else 0
    if entries[0].DIR_Name[0] == _END and allocated.clip(layout.data, files_end).total > own:
        raise NotUnderstoodError("root directory is empty, yet clusters are in use")
    directories = 0
    for entry in entries:
        if entry.DIR_Name[0] == _END:
            break
        # ATTR_LONG_NAME includes ATTR_VOLUME_ID; neither has clusters.
        if entry.DIR_Name[0] == _DELETED or entry.DIR_Attr & _ATTR_VOLUME_ID:
            continue
        number = _first_cluster(entry, layout)
        is_directory = bool(entry.DIR_Attr & _ATTR_DIRECTORY)
        if number == 0 and not is_directory:
            continue  # an empty file
        if not 2 <= number < layout.clusters + 2 or layout.offset(number) not in allocated:
            raise NotUnderstoodError("root directory points to a free cluster")
        if is_directory and directories < _DIRECTORIES_TO_LOOK_INTO:
            directories += 1
            _check_directory(volume, layout, number)


def _check_directory(volume: Volume, layout: Layout, number: int) -> None:
    """NotUnderstoodError unless a directory other than the root begins at this cluster."""
    dot, dot_dot = _entries(volume.read(layout.offset(number), 2 * _DIRECTORY_ENTRY.size))
    names_fit = dot.DIR_Name == _DOT and dot_dot.DIR_Name == _DOT_DOT
    if not names_fit or _first_cluster(dot, layout) != number:
        raise NotUnderstoodError("a directory is not where the root directory says")


def _entries(data: bytes) -> list[DirectoryEntry]:
    return [DirectoryEntry._make(fields) for fields in _DIRECTORY_ENTRY.iter_unpack(data)]


def _first_cluster(entry: DirectoryEntry, layout: Layout) -> int:
    """The number in the entry; before FAT32 its upper half had other uses."""
    if layout.kind is FAT32:
        return entry.DIR_FstClusHI << 16 | entry.DIR_FstClusLO
    return entry.DIR_FstClusLO
