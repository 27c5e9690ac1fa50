"""Puts groups of LVM together from those of their members that are on one disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from imager.disk.stacked import active_volume, linear_target
from imager.disk.sysfs import BlockTree
from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.layout.lvm.group import Group, LogicalVolume, read_group
from imager.layout.lvm.label import PhysicalVolume, read_label
from imager.layout.view import Segment, Stripe, View, mapped


class MemberNode(Protocol):
    """What is known of a volume that is a member."""

    view: View
    kept: Extents
    notes: tuple[str, ...]

    def store_whole(self, reason: str) -> None:
        """Take all of it, for `reason`."""


_SHOWN = 5
"""Volumes that a note names."""

N = TypeVar("N", bound=MemberNode)
AddChild = Callable[[N, View, str | None, str | None], N]
"""Called with a member, a volume in it, its name, and the reason why it is stored whole, if so."""


@dataclass(frozen=True)
class _Member(Generic[N]):
    node: N
    label: PhysicalVolume
    text: str | None
    group: Group | None


@dataclass(frozen=True)
class Assembly(Generic[N]):
    """A group, and its members that are here, by their names in its metadata."""

    group: Group
    members: dict[str, N]


class Members(Generic[N]):
    """Physical volumes, as they are found."""

    def __init__(self) -> None:
        self._waiting: list[_Member[N]] = []
        self._done: set[str] = set()

    def add(self, node: N) -> None:
        """One more; NotUnderstoodError where its label or metadata are not understood."""
        label = read_label(node.view.volume)
        if len({*label.metadata}) > 1:
            raise NotUnderstoodError("the two copies of its LVM metadata differ")
        text = label.metadata[0] if label.metadata else None
        self._waiting.append(_Member(node, label, text, read_group(text) if text else None))

    def take(self) -> list[Assembly[N]]:
        """The groups of all that was added since the last call; what fits in none is stored whole."""
        members, self._waiting = self._waiting, []
        groups: dict[str, Group] = {}
        texts: dict[str, set[str]] = {}
        for member in members:
            if member.group and member.text:
                groups[member.group.uuid] = member.group
                texts.setdefault(member.group.uuid, set()).add(member.text)
        found = []
        for uuid, group in groups.items():
            mine = [member for member in members if _belongs(member, group)]
            if len(texts[uuid]) > 1:
                _store_whole(mine, "the LVM metadata on its disk differ")
            elif uuid in self._done:
                _store_whole(mine, "its LVM group also lies in volumes of another one")
            else:
                found.append(Assembly(group, _present(group, mine)))
        for member in members:
            if not any(_belongs(member, group) for group in groups.values()):
                member.node.store_whole("it belongs to no LVM group that is described on this disk")
        self._done |= groups.keys()
        return found


def _belongs(member: _Member[N], group: Group) -> bool:
    """Whether it has metadata of the group, or none and the group knows it."""
    if member.group:
        return member.group.uuid == group.uuid
    return any(known.uuid == member.label.uuid for known in group.members.values())


def _store_whole(members: Sequence[_Member[N]], reason: str) -> None:
    for member in members:
        member.node.store_whole(reason)


def _present(group: Group, members: Sequence[_Member[N]]) -> dict[str, N]:
    """The members of a group that are what it says; all others are stored whole."""
    found: dict[str, N] = {}
    for name, known in group.members.items():
        mine = [member for member in members if member.label.uuid == known.uuid]
        end = known.start + known.extents * group.extent_size
        reason = known.reason
        if len(mine) > 1:
            reason = "there is a copy of it on the disk"
        elif mine and (end > mine[0].label.device_size or mine[0].label.data.offset != known.start):
            reason = "its label and its LVM group contradict each other"
        if reason:
            _store_whole(mine, reason)
        elif mine:
            found[name] = mine[0].node
    uuids = {known.uuid for known in group.members.values()}
    strangers = [member for member in members if member.label.uuid not in uuids]
    _store_whole(strangers, "its LVM group does not know it")
    return found


def assemble(assembly: Assembly[N], tree: BlockTree, add_child: AddChild[N]) -> None:
    """Add each volume of a group to the first member that holds some of it."""
    group, members = assembly.group, assembly.members
    unread: list[str] = []
    for volume in group.volumes:
        areas = [area for run in volume.runs for area in run.areas]
        parents = [members[area.member] for area in areas if area.member in members]
        if parents:
            view, reason = _view(volume, group, members, tree)
            add_child(parents[0], view, f"{group.name}/{volume.name}", volume.reason or reason)
        elif not areas:
            unread.append(volume.name)
    note = f"member of the LVM group {group.name}"
    if unread:
        more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
        note += f"; stored with what they are built upon: {', '.join(unread[:_SHOWN])}{more}"
    for name, node in members.items():
        known = group.members[name]
        extents = Extents.span(known.start, known.start + known.extents * group.extent_size)
        node.kept = node.view.place(extents.complement(0, node.view.volume.size))
        node.notes = (note,)


def _view(
    volume: LogicalVolume, group: Group, members: dict[str, N], tree: BlockTree
) -> tuple[View, str | None]:
    """A logical volume as far as it is here, and why it is not all there."""
    size, position = group.extent_size, 0
    segments = []
    for run in volume.runs:
        stripes = [
            Stripe(
                members[area.member].view if area.member in members else None,
                group.members[area.member].start + area.extent * size,
            )
            for area in run.areas
        ]
        segments.append(Segment(position, run.extents * size, run.chunk, tuple(stripes)))
        position += run.extents * size
    sector_size = max(member.view.volume.sector_size for member in members.values())
    complete = position == volume.extents * size and all(
        stripe.view for segment in segments for stripe in segment.stripes
    )
    device = _device(volume, group, segments, tree) if complete else None
    reason = None if complete else "part of it lies on another disk"
    return mapped(segments, sector_size, device), reason


def _device(
    volume: LogicalVolume, group: Group, segments: Sequence[Segment], tree: BlockTree
) -> str | None:
    """The device of a logical volume that is active, and mapped just as the metadata say."""
    targets = []
    devices: list[str] = []
    for segment in segments:
        stripes = [
            (stripe.view.device, stripe.offset)
            for stripe in segment.stripes
            if stripe.view is not None and stripe.view.device is not None
        ]
        if len(stripes) != len(segment.stripes):
            return None
        devices += [device for device, _ in stripes]
        targets.append(linear_target(tree, segment.start, segment.size, segment.chunk, stripes))
    uuid = group.uuid.replace("-", "") + volume.uuid
    return active_volume(tree, devices, uuid, targets)
