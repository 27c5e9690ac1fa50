"""All disks of the machine, and what is on each, for a person to choose from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from imager.disk.identity import Identity, identity_of
from imager.disk.lsblk import Facts, lsblk, probe
from imager.disk.safety import device_uses
from imager.disk.system import System

_NOT_DISKS = ("ram", "zram", "sr", "fd", "dm-", "md", "bcache")
"""Devices of the kernel's that are no disks, or that are shown as what the disks below hold."""


@dataclass(frozen=True)
class Contents:
    """What a signature says is in a partition, or on a disk without a partition table."""

    kind: str | None
    """blkid's name: "ext4", "ntfs", "swap", "LVM2_member", ..."""
    label: str | None
    uuid: str | None
    mount_points: tuple[str, ...]
    """"[SWAP]" among them where it is swapped on."""
    used: int | None
    """Bytes in use, where it is mounted; None where that is not known."""
    inside: tuple[Inside, ...] = ()
    """What lies in it, where it is LVM, LUKS or RAID, as far as somebody has looked."""


@dataclass(frozen=True)
class Inside:
    """A volume in another one."""

    name: str | None
    """Its own name there: "group/volume", or that of the device."""
    size: int
    """Bytes."""
    contents: Contents


@dataclass(frozen=True)
class Partition:
    """One partition as the kernel has it; `start` (on its disk) and `size` are in bytes."""

    path: str
    name: str
    number: int
    start: int
    size: int
    type: str | None
    """The table's type: a GUID (GPT) or a hexadecimal number (MBR)."""
    type_name: str | None
    label: str | None
    """The partition's own name, in a GPT."""
    uuid: str | None
    contents: Contents


@dataclass(frozen=True)
class Disk:
    """One disk, or loop device that is attached to something."""

    identity: Identity
    table: str | None
    """The kind of partition table as blkid calls it: "gpt", "dos", ..."""
    contents: Contents
    """What is on the disk as a whole, outside of any partition."""
    partitions: tuple[Partition, ...]
    is_system: bool
    """The running system needs it: /, /usr, /boot or the live medium is on it."""
    in_use: tuple[str, ...]
    """Why it is in use, as clauses."""

    def to_json(self) -> dict[str, object]:
        """A mapping fit for `json.dumps`."""
        return asdict(self)


def list_disks(system: System | None = None) -> tuple[Disk, ...]:
    """The disks with a medium in them; without CD drives, RAM disks, unattached loop devices and those
    that a live system consists of.

    An ordinary user gets what the kernel and udev tell him; the rest is None. Raises
    MissingToolError without lsblk.
    """
    system = system or System()
    tree = system.tree
    names = [name for name in tree.disks() if _is_shown(name, system)]
    every = [part for name in names for part in (name, *tree.partitions(name))]
    facts = lsblk()
    facts |= {name: {**facts.get(name, {}), **found} for name, found in probe(every, tree).items()}
    return tuple(_disk(name, facts, system) for name in names)


def contents_of(device: str, system: System) -> Contents:
    """What is on one device, as the kernel and blkid see it."""
    return _contents(device, probe([device], system.tree), system)


def _is_shown(name: str, system: System) -> bool:
    tree = system.tree
    hidden = tree.attribute(name, "hidden") == "1" or _is_layer(name, system)
    return not name.startswith(_NOT_DISKS) and not hidden and tree.size(name) > 0


def _is_layer(name: str, system: System) -> bool:
    """Whether a live system runs from it: a file of its medium, which is no disk to a person."""
    read_only = system.tree.attribute(name, "ro") == "1"
    return name.startswith("loop") and read_only and system.system_use(name) is not None


def _disk(name: str, facts: dict[str, Facts], system: System) -> Disk:
    tree = system.tree
    return Disk(
        identity=identity_of(name, tree.node(name), facts, system),
        table=facts.get(name, {}).get("pttype"),
        contents=_contents(name, facts, system),
        partitions=tuple(_partition(part, facts, system) for part in tree.partitions(name)),
        is_system=system.system_use(name) is not None,
        in_use=device_uses(name, system),
    )


def _partition(name: str, facts: dict[str, Facts], system: System) -> Partition:
    tree = system.tree
    known = facts.get(name, {})
    return Partition(
        path=str(tree.node(name)),
        name=name,
        number=tree.number(name, "partition") or 0,
        start=tree.start(name),
        size=tree.size(name),
        type=known.get("parttype"),
        type_name=known.get("parttypename"),
        label=known.get("partlabel"),
        uuid=known.get("partuuid"),
        contents=_contents(name, facts, system),
    )


def _contents(name: str, facts: dict[str, Facts], system: System) -> Contents:
    """The contents of one device; mounts of what is stacked on it (LVM, RAID) count as its own."""
    known = facts.get(name, {})
    own = [mount for mount, claims in system.claims if name in claims and mount.process is None]
    direct = [mount for mount in own if name in system.mount_devices(mount)]
    return Contents(
        kind=known.get("fstype") or next((mount.fs_type for mount in direct), None),
        label=known.get("label"),
        uuid=known.get("uuid"),
        mount_points=(
            *dict.fromkeys(mount.mount_point for mount in own),
            *("[SWAP]" for area in system.swaps if system.name_of_path(area) == name),
        ),
        used=_used(Path(direct[0].mount_point)) if direct else None,
    )


def _used(mount_point: Path) -> int | None:
    try:
        status = os.statvfs(mount_point)
    except OSError:
        return None
    return (status.f_blocks - status.f_bfree) * status.f_frsize
