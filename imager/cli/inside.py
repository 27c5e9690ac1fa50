"""What lies in the LVM, LUKS and RAID volumes of a disk, for the list of devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from imager.disk.inventory import Contents, Disk, Inside, contents_of
from imager.disk.source import SourceDevice
from imager.disk.system import System
from imager.errors import ImagerError, NotUnderstoodError
from imager.layout.blkid import Identity, identify
from imager.layout.luks.keys import Keys
from imager.layout.model import Partition
from imager.layout.nest import CONTAINERS, Nest, Node


def with_inside(disk: Disk, system: System) -> Disk:
    """`disk` with what its containers hold, as far as they can be read and are not encrypted."""
    kinds = {disk.contents.kind, *(part.contents.kind for part in disk.partitions)}
    if not kinds & CONTAINERS:
        return disk
    path = Path(disk.identity.path)
    try:
        with SourceDevice(path) as device:
            return _look(disk, device, path, system)
    except ImagerError:
        return disk


def _look(disk: Disk, device: SourceDevice, path: Path, system: System) -> Disk:
    def identify_at(start: int, size: int) -> Identity | None:
        return identify(path, start, size)

    with Nest(device, identify_at, system.tree, Keys()) as nest:
        asked = [part for part in disk.partitions if part.contents.kind in CONTAINERS]
        if not asked:
            nest.add(None, _identity(path, 0, device.size), disk.identity.name)
        for part in asked:
            at = Partition(part.number, part.start, part.size, part.type or "", None, None, 0)
            nest.add(at, _identity(path, part.start, part.size), part.name)
        found = [_inside(node.children, system) for node in nest.explore()]
    if not asked:
        return replace(disk, contents=replace(disk.contents, inside=found[0]))
    inside = dict(zip((part.number for part in asked), found, strict=True))
    partitions = tuple(
        replace(part, contents=replace(part.contents, inside=inside.get(part.number, ())))
        for part in disk.partitions
    )
    return replace(disk, partitions=partitions)


def _identity(path: Path, start: int, size: int) -> Identity | None:
    try:
        return identify(path, start, size)
    except NotUnderstoodError:
        return None


def _inside(nodes: Iterable[Node], system: System) -> tuple[Inside, ...]:
    return tuple(
        Inside(node.name, node.view.volume.size, _contents(node, system)) for node in nodes
    )


def _contents(node: Node, system: System) -> Contents:
    """What is mounted is known by the kernel, all else by what was read."""
    identity = node.identity
    mounted = contents_of(node.view.device, system) if node.view.device else None
    is_understood = node.stored == "used" and not node.children
    used = node.used().total if is_understood else None
    return Contents(
        kind=identity.kind if identity else None,
        label=identity.label if identity else None,
        uuid=identity.uuid if identity else None,
        mount_points=mounted.mount_points if mounted else (),
        used=mounted.used if mounted and mounted.mount_points else used,
        inside=_inside(node.children, system),
    )
