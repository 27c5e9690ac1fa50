"""What an image's head says of the disk, the machine and the capture."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Protocol

from imager.disk.source import SourceDevice
from imager.extents import Extents
from imager.image.format import INCOMPATIBLE_INCREMENTAL, INCOMPATIBLE_PARTIAL
from imager.image.head import Head
from imager.layout.analyse import Analysis
from imager.parent_image import ParentImage
from imager.version import VERSION


class Description(Protocol):
    """The part of a capture's options that stands in the head."""

    @property
    def level(self) -> int:
        """zstd's compression level."""

    @property
    def chunk_size(self) -> int:
        """Bytes; of an image with a parent that one's counts."""

    @property
    def split(self) -> int | None:
        """Bytes of a part at most; None for one file."""

    @property
    def note(self) -> str:
        """A line from a person."""

    @property
    def created(self) -> datetime.datetime | None:
        """When the image says that it was captured, with its zone; None: now."""

    @property
    def host(self) -> str | None:
        """The machine's name, where another system than its own captures it."""


def describe(
    device: SourceDevice,
    analysis: Analysis,
    options: Description,
    busy: bool,
    parent: ParentImage | None,
) -> Head:
    """The head of the image that a capture is about to write; `busy`: the disk is in use."""
    partial = INCOMPATIBLE_PARTIAL if analysis.excluded else 0
    return Head(
        disk_size=device.size,
        chunk_size=parent.head.chunk_size if parent else options.chunk_size,
        sector_size=device.sector_size,
        split=options.split is not None,
        incompatible=partial | (INCOMPATIBLE_INCREMENTAL if parent else 0),
        facts={
            "created": now(options.created),
            "tool": f"imager {VERSION}",
            "host": _host(options.host),
            "source": device.identity.to_json(),
            "physical_sector_size": device.physical_sector_size,
            "level": options.level,
            "consistency": "crash" if busy else "offline",
            "note": options.note,
            "parents": [each.to_json() for each in parent.references] if parent else [],
            "layout": analysis.layout.to_json(),
            "table": _table_sectors(device, analysis.layout.table.extents),
        },
    )


def _table_sectors(device: SourceDevice, extents: Extents) -> list[list[object]]:
    """The partition table's sectors that are not zero, as [byte offset, hexadecimal]."""
    sectors: list[list[object]] = []
    for start, end in extents:
        for offset in range(start, end, device.sector_size):
            data = device.read(offset, min(device.sector_size, end - offset))
            if any(data):
                sectors.append([offset, data.hex()])
    return sectors


def _host(name: str | None) -> dict[str, object]:
    """The machine, and the system that captures it."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    return {
        "name": name or platform.node(),
        "system": system or platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "firmware": "uefi" if Path("/sys/firmware/efi").is_dir() else "bios",
    }


def now(instead: datetime.datetime | None = None) -> str:
    """The time, as images give it; or another one."""
    return (instead or datetime.datetime.now().astimezone()).isoformat(timespec="seconds")
