"""What is on a disk that will be overwritten, in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from imager.disk.identity import Identity
from imager.disk.inventory import Disk, list_disks
from imager.wording import format_size, printable


def current_lines(target: Identity) -> Iterator[str]:
    """What is on `target` now, as far as can be told."""
    if target.kind == "file":
        yield "a disk-image file" if Path(target.path).exists() else "nothing: a new file"
        return
    for disk in list_disks():
        if disk.identity.name == target.name:
            yield from _disk_lines(disk)
            return
        for partition in disk.partitions:
            if partition.name == target.name:
                found = partition.contents
                yield f"{found.kind or 'nothing known'} {printable(found.label or '')}".strip()
                return
    yield "nothing known"


def _disk_lines(disk: Disk) -> Iterator[str]:
    if not disk.partitions:
        label = printable(disk.contents.label or "")
        yield f"{disk.contents.kind or 'nothing known'} {label}".strip()
    for partition in disk.partitions:
        found = partition.contents
        yield (
            f"{partition.number}  {found.kind or '-'}  {printable(found.label or '-')}  "
            f"{format_size(partition.size)}"
        )
