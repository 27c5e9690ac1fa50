"""Which disk an image can be put onto, and why not the others: the engine's own refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imager.disk.identity import Identity
from imager.disk.inventory import Disk
from imager.errors import ImagerError
from imager.image.origin import Origin
from imager.restore import RestoreOptions, RestorePlan, plan_restore
from imager.wording import format_size, printable


@dataclass(frozen=True)
class Target:
    """A disk, and the plan for it or the reason why there is none."""

    disk: Disk
    plan: RestorePlan | None
    reason: str
    """A sentence; empty where there is a plan."""


def targets(disks: Iterable[Disk], origin: Origin, options: RestoreOptions) -> tuple[Target, ...]:
    """A plan or a refusal for each of `disks`; nothing is touched.

    Raises what `plan_restore` does where the reason lies in the image itself.
    """
    if not options.salvage:
        origin.require_complete()
    found = []
    for disk in disks:
        try:
            plan = plan_restore(origin, disk.identity.path, options)
        except ImagerError as error:
            found.append(Target(disk, None, str(error)))
        else:
            found.append(Target(disk, plan, ""))
    return tuple(found)


def preselected(found: Sequence[Target], source: Identity | None) -> Target | None:
    """The disk that the image came from, else the first that can be used."""
    usable = [target for target in found if target.plan]
    same = [target for target in usable if is_same_disk(target.disk.identity, source)]
    return next(iter(same or usable), None)


def is_same_disk(one: Identity, other: Identity | None) -> bool:
    """Whether two identities tell the same disk: by WWN, else by serial number and model."""
    if other is None:
        return False
    if one.wwn or other.wwn:
        return one.wwn == other.wwn
    return bool(one.serial) and (one.serial, one.model) == (other.serial, other.model)


def describe_contents(disk: Disk) -> str:
    """What is on a disk, in one line: "ext4 root, swap, ntfs Windows"."""
    found = [
        (part.contents.kind, part.contents.label or part.label, part.size)
        for part in disk.partitions
    ] or [(disk.contents.kind, disk.contents.label, disk.identity.size)]
    words = [
        " ".join(filter(None, (kind or "unknown", printable(label or ""), format_size(size))))
        for kind, label, size in found
        if kind or disk.partitions
    ]
    return ", ".join(words) or "nothing that is known"
