"""A disk that an image was restored onto, and that is larger: its GPT was fitted to its size.

It holds what the image holds but for the table's own bytes, which stand elsewhere and say another
size. So it is compared through a view that shows these as the image has them, once it is known that
the fitted table is what a restore writes.
"""

from __future__ import annotations

from imager.disk.source import SourceDevice
from imager.errors import NotUnderstoodError, RefusedError
from imager.extents import Extents
from imager.image.head import Head
from imager.layout.model import DiskLayout
from imager.layout.pieces import Pieces
from imager.layout.relocate import relocate


class FittedDisk:
    """Reads a disk as the imaged one was, apart from the size of its GPT."""

    def __init__(self, device: SourceDevice, original: Pieces, table: Extents) -> None:
        """`original` knows the bytes of the imaged disk in `table`."""
        self._device = device
        self._original = original
        self._table = table

    def readinto(self, offset: int, view: memoryview) -> None:
        """As `SourceDevice.readinto`."""
        self._device.readinto(offset, view)
        for start, end in self._table.clip(offset, offset + len(view)):
            view[start - offset : end - offset] = self._original.read(start, end - start)


def fitted_disk(device: SourceDevice, head: Head, layout: DiskLayout) -> FittedDisk | None:
    """The view of `device` if it holds the GPT of the image fitted to its own, larger size.

    None where the device is not larger, or holds any other table. Raises ReadFailedError.
    """
    if layout.table.kind != "gpt" or device.size <= head.disk_size:
        return None
    try:
        original = Pieces(head.disk_size, head.sector_size, _table_sectors(head))
        fitted = relocate(original, device.size)
    except (ValueError, NotUnderstoodError, RefusedError):
        return None
    if any(device.read(offset, len(data)) != data for offset, data in fitted):
        return None
    return FittedDisk(device, original, layout.table.extents)


def _table_sectors(head: Head) -> list[tuple[int, bytes]]:
    """The table's sectors that are not zero, from the image's head; ValueError if they make no sense."""
    sectors = head.facts.get("table")
    if not isinstance(sectors, list):
        raise ValueError("not a list")
    found = []
    for item in sectors:
        match item:
            case [int(offset), str(text)]:
                found.append((offset, bytes.fromhex(text)))
            case _:
                raise ValueError("not a sector")
    return found
