"""Volumes in volumes: what is in use on a disk under LVM, LUKS and RAID, to any sane depth.

    partition 3: LUKS ──► LVM2_member ┐
    partition 4: LVM2_member ─────────┴► group "vg" ──► vg/root: ext4
                                                   └──► vg/home: part of it on another disk

Each volume is a node, read through its `View`. A node's own bytes (headers, metadata, what nothing
describes) and those of the nodes in it are all that is stored; whatever raises a doubt is stored
whole, and only that. Groups of LVM are put together when all their members on this disk are known.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from imager.disk.sysfs import BlockTree
from imager.errors import NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout.blkid import Identity, identify_volume
from imager.layout.containers import Inside, open_luks, open_raid
from imager.layout.groups import Members, assemble
from imager.layout.luks.keys import Keys
from imager.layout.model import NestedVolume, Partition
from imager.layout.view import View
from imager.layout.volumes import Piece, require_kind, store_raw, used_extents

_MAX_DEPTH = 8
"""How many containers may lie in each other: encrypted LVM on a RAID has three."""
_MAX_NODES = 1000
"""Volumes in volumes on one disk: each is looked at, and described in the image."""

CONTAINERS = frozenset({"LVM2_member", "crypto_LUKS", "linux_raid_member"})
"""blkid's names of what other volumes lie in."""

IdentifyAt = Callable[[int, int], Identity | None]
"""What lies at an offset of the disk, of a size; as `blkid.identify`."""


@dataclass
class Node:
    """A volume, and what was found out about it."""

    view: View
    identity: Identity | None
    at: Partition | None
    """The partition that it is or lies in; None: the disk."""
    name: str | None = None
    depth: int = 0
    stored: Literal["used", "raw"] = "used"
    reason: str | None = None
    kept: Extents = field(default_factory=Extents)
    """Bytes of the disk that are stored of it, beside those of its children."""
    fs_size: int | None = None
    notes: tuple[str, ...] = ()
    children: list[Node] = field(default_factory=list)

    def store_whole(self, reason: str) -> None:
        """Take all of it, for `reason`."""
        self.stored, self.reason, self.kept, self.children = "raw", reason, self.view.whole, []

    def used(self) -> Extents:
        """All bytes of the disk that are stored of it and what is in it."""
        return Extents.union([self.kept, *(child.used() for child in self.children)])

    def describe(self) -> NestedVolume:
        """It and what is in it, for the image."""
        identity = self.identity
        return NestedVolume(
            name=self.name,
            size=self.view.volume.size,
            kind=identity.kind if identity else None,
            label=identity.label if identity else None,
            uuid=identity.uuid if identity else None,
            usage=identity.usage if identity else None,
            version=identity.version if identity else None,
            stored=self.stored,
            reason=self.reason,
            used=self.used().total,
            fs_size=self.fs_size,
            notes=self.notes,
            children=tuple(child.describe() for child in self.children),
        )


class Nest:
    """Finds out what is in use in a disk's volumes; a context manager, as it opens devices."""

    def __init__(self, disk: Volume, identify: IdentifyAt, tree: BlockTree, keys: Keys) -> None:
        """For the volumes of `disk`; `keys` open what is encrypted."""
        self._disk = disk
        self._identify = identify
        self._tree = tree
        self._keys = keys
        self._stack = ExitStack()
        self._roots: list[Node] = []
        self._todo: list[Node] = []
        self._members: Members[Node] = Members()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, at: Partition | None, identity: Identity | None, device: str | None) -> None:
        """A partition, or the disk itself, of which the kernel has `device`."""
        start, size = (at.start, at.size) if at else (0, self._disk.size)
        disk = View(self._disk, lambda extents: extents, 0)
        node = Node(disk.part(start, size, device), identity, at)
        self._roots.append(node)
        self._todo.append(node)

    def solve(self) -> list[Piece]:
        """All that was added, in that order, with what is stored of each."""
        self.explore()
        found = [root.used() for root in self._roots]
        # A logical volume hangs below one of its members, but lies in all of them.
        everything = Extents.union(found)
        return [self._piece(root, everything) for root in self._roots]

    def explore(self) -> list[Node]:
        """All that was added, in that order, with what was found in it."""
        while self._todo:
            while self._todo:
                self._read(self._todo.pop())
            for found in self._members.take():
                if self._count + len(found.group.volumes) > _MAX_NODES:
                    for node in found.members.values():
                        node.store_whole("too many volumes in volumes")
                else:
                    assemble(found, self._tree, self._add_child)
        return self._roots

    def _piece(self, root: Node, everything: Extents) -> Piece:
        layout, whole = store_raw(self._disk, root.at, root.identity, "")
        used = everything.clip(whole.start, whole.end) if whole else whole
        unit = self._disk.sector_size
        if any((start | end) % unit for start, end in used):
            used = used.align(unit).clip(whole.start, whole.end)
        return (
            replace(
                layout,
                stored=root.stored,
                reason=root.reason,
                used=used.total,
                fs_size=root.fs_size,
                notes=root.notes,
                children=tuple(child.describe() for child in root.children),
            ),
            used,
        )

    def _add_child(self, parent: Node, view: View, name: str | None, reason: str | None) -> Node:
        """A volume in another one: to be read, or for `reason` to be stored whole."""
        child = Node(view, None, parent.at, name, parent.depth + 1)
        parent.children.append(child)
        self._count += 1
        try:
            if child.depth > _MAX_DEPTH:
                raise NotUnderstoodError("too many volumes in volumes")
            child.identity = self._identity(view)
        except NotUnderstoodError as doubt:
            reason = reason or str(doubt)
        except ReadFailedError:
            reason = reason or "it cannot be read"
        if reason is None:
            self._todo.append(child)
        else:
            child.store_whole(reason)
        return child

    def _identity(self, view: View) -> Identity | None:
        if view.start is not None:
            found = self._identify(view.start, view.volume.size)
        else:
            found = identify_volume(view.volume)
        return found if found and found.kind else None

    def _read(self, node: Node) -> None:
        """Find out what of a node is in use, and what is in it."""
        try:
            nested = node.at is not None or node.depth > 0
            kind = require_kind(node.view.volume, node.identity, nested)
            if kind == "LVM2_member":
                self._members.add(node)
            elif kind == "crypto_LUKS":
                number = node.at.number if node.at else None
                self._enter(
                    node,
                    open_luks(node.view, self._tree, self._keys, number, self._stack, self._disk),
                )
            elif kind == "linux_raid_member":
                self._enter(node, open_raid(node.view, self._tree))
            else:
                still = node.identity is not None and node.identity.still
                allocation, used = used_extents(kind, node.view.volume, still)
                node.kept = node.view.place(used)
                node.fs_size, node.notes = allocation.size, allocation.notes
        except NotUnderstoodError as doubt:
            node.store_whole(str(doubt))
        except ReadFailedError:
            node.store_whole("its metadata cannot be read")

    def _enter(self, node: Node, inside: Inside) -> None:
        """Keep what is around the volume inside, and go on with that."""
        node.kept = node.view.place(inside.around.complement(0, node.view.volume.size))
        node.notes = inside.notes
        self._add_child(node, inside.view, inside.name, None)
