"""What the kernel's device-mapper and md have made of block devices, as far as it proves something.

Only looked at: nothing is activated, assembled or opened here.
(linux/Documentation/admin-guide/device-mapper: dm-crypt, linear, striped; admin-guide/md)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from imager.disk import mapper
from imager.disk.sysfs import BlockTree

_SECTOR = 512


class Target(NamedTuple):
    """A line of a device's table."""

    start: int
    """Bytes."""
    size: int
    kind: str
    words: tuple[str, ...]
    """What follows; its meaning depends on the kind."""


def table(tree: BlockTree, name: str) -> tuple[Target, ...]:
    """The table of a device-mapper device; empty where it stands still, or cannot be asked for."""
    major, _, minor = (tree.attribute(name, "dev") or "").partition(":")
    if not minor or tree.attribute(name, "dm/suspended") != "0":
        return ()
    try:
        return tuple(
            Target(start, size, kind, tuple(text.split()))
            for start, size, kind, text in mapper.table(os.makedev(int(major), int(minor)))
        )
    except (OSError, ValueError):
        return ()


def opened_luks(
    tree: BlockTree, device: str, version: int, uuid: str, offset: int, size: int
) -> str | None:
    """The device that shows the inside of the LUKS volume on `device`, if it is open.

    Its ciphertext must be the `size` bytes at `offset` of `device`, all of them, and without tags.
    """
    prefix = f"CRYPT-LUKS{version}-{uuid.replace('-', '')}-"
    for name in tree.holders(device):
        if not (tree.attribute(name, "dm/uuid") or "").startswith(prefix):
            continue
        targets = table(tree, name)
        if len(targets) != 1:
            continue
        (target,) = targets
        # cipher, key, iv_offset, device, offset, number of options, options
        if target.kind != "crypt" or len(target.words) < 5 or "integrity" in " ".join(target.words):
            continue
        place = (target.words[3], target.words[4])
        wanted = (tree.attribute(device, "dev"), str(offset // _SECTOR))
        if place == wanted and (target.start, target.size) == (0, size):
            return name
    return None


def active_volume(
    tree: BlockTree, devices: Sequence[str], uuid: str, targets: Sequence[Target]
) -> str | None:
    """The device of the logical volume `uuid` (of the group and its own, no hyphens) if active.

    It must lie on one of `devices`, and its table must be `targets`.
    """
    for device in dict.fromkeys(devices):
        for name in tree.holders(device):
            if tree.attribute(name, "dm/uuid") == f"LVM-{uuid}" and table(tree, name) == tuple(
                targets
            ):
                return name
    return None


def linear_target(
    tree: BlockTree, start: int, size: int, chunk: int, stripes: Sequence[tuple[str, int]]
) -> Target:
    """The line that a segment makes; `stripes` are devices and offsets, all in bytes."""
    places = [
        word
        for device, offset in stripes
        for word in (tree.attribute(device, "dev") or "?", str(offset // _SECTOR))
    ]
    if len(stripes) == 1:
        return Target(start, size, "linear", tuple(places))
    words = (str(len(stripes)), str(chunk // _SECTOR), *places)
    return Target(start, size, "striped", words)


def running_array(tree: BlockTree, device: str) -> str | None:
    """The md array that `device` is a member of, if it runs."""
    return next((name for name in tree.holders(device) if name.startswith("md")), None)


def is_in_sync(tree: BlockTree, array: str, device: str) -> bool:
    """Whether a running mirror has all of its content on `device`: nothing is left to be copied."""
    state = (tree.attribute(array, f"md/dev-{device}/state") or "").split(",")
    return (
        "in_sync" in state
        and not {"faulty", "write_mostly", "want_replacement", "journal"} & {*state}
        and tree.attribute(array, "md/sync_action") == "idle"
        and tree.attribute(array, "md/resync_start") == "none"
    )
