"""Containers of one volume: LUKS and members of a RAID. The volume inside, and how to read it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from imager.disk.source import SourceDevice
from imager.disk.stacked import is_in_sync, opened_luks, running_array
from imager.disk.sysfs import BlockTree
from imager.errors import ImagerError, NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout.luks.header import Header, read_header
from imager.layout.luks.keys import Keys
from imager.layout.md import read_member
from imager.layout.view import Remembering, View


@dataclass(frozen=True)
class Inside:
    """The volume in a container."""

    view: View
    around: Extents
    """The bytes of the container that hold it; all others are the container's own."""
    name: str | None
    notes: tuple[str, ...] = ()


def open_raid(outer: View, tree: BlockTree) -> Inside:
    """What a member of a RAID holds; NotUnderstoodError unless that is all of the array."""
    member = read_member(outer.volume)
    array = running_array(tree, outer.device) if outer.device else None
    if not member.clean and not (array and outer.device and is_in_sync(tree, array, outer.device)):
        raise NotUnderstoodError(f"its RAID ({member.level}) was not in sync")
    view = outer.part(member.start, member.size, array)
    around = Extents.span(member.start, member.start + member.size)
    return Inside(view, around, member.name or None, (f"{member.level}, md {member.version}",))


def open_luks(
    outer: View,
    tree: BlockTree,
    keys: Keys,
    number: int | None,
    stack: ExitStack,
    disk: Volume,
) -> Inside:
    """What a LUKS volume in partition `number` holds, if it is open or `keys` open it.

    NotUnderstoodError where neither is so, or the header is not understood. What is opened for
    reading is closed with `stack`; `disk` may remember what is read there.
    """
    keys.met(number)
    header = read_header(outer.volume)
    device = None
    if outer.device:
        device = opened_luks(
            tree, outer.device, header.version, header.uuid, header.offset, header.size
        )
    if device:
        volume: Volume = _open(tree, device, header, stack)
    else:
        volume = keys.open(outer.volume, header, number)
    unit = max(header.sector_size, outer.volume.sector_size)

    def place(extents: Extents) -> Extents:
        if any((start | end) % unit for start, end in extents):
            extents = extents.align(unit).clip(0, header.size)
        return outer.place(extents.shift(header.offset))

    if device and isinstance(disk, Remembering):
        volume = disk.remember(volume, place)
    name = tree.attribute(device, "dm/name") if device else None
    around = Extents.span(header.offset, header.offset + header.size)
    how = "read while it was open" if device else "read with its passphrase"
    return Inside(
        View(volume, place, None, device),
        around,
        name,
        (f"LUKS{header.version}, stored encrypted; {how}",),
    )


def _open(tree: BlockTree, device: str, header: Header, stack: ExitStack) -> Volume:
    """The device that the kernel has for it, past the cache: that knows nothing of what is mounted."""
    try:
        source = stack.enter_context(SourceDevice(tree.node(device)))
        source.read_past_cache()
    except ImagerError:
        raise NotUnderstoodError("it is open, but cannot be read there") from None
    if source.size != header.size:
        raise NotUnderstoodError("it is open, but with another size")
    return source
