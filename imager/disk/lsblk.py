"""What util-linux knows of block devices, beyond sysfs: udev's findings, or its own probing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from imager.disk import programs
from imager.disk.sysfs import BlockTree
from imager.errors import ImagerError
from imager.wording import printable

Facts = Mapping[str, str]
"""The columns of one device that have a value, in lower case."""

_COLUMNS = (
    "KNAME,TYPE,MODEL,SERIAL,WWN,TRAN,PTTYPE,FSTYPE,LABEL,UUID,"
    "PARTTYPE,PARTTYPENAME,PARTLABEL,PARTUUID"
)
# blkid's names (libblkid, low-level probing) for lsblk's columns
_BLKID_KEYS = {
    "PTTYPE": "pttype",
    "TYPE": "fstype",
    "LABEL": "label",
    "UUID": "uuid",
    "PART_ENTRY_TYPE": "parttype",
    "PART_ENTRY_NAME": "partlabel",
    "PART_ENTRY_UUID": "partuuid",
}


def lsblk(nodes: Iterable[Path] = ()) -> dict[str, Facts]:
    """By the kernel's name, what lsblk says of `nodes`, or of all block devices.

    Raises MissingToolError without lsblk, ImagerError where it fails.
    """
    only = [str(node) for node in nodes]
    done = programs.run(
        *("lsblk", "util-linux"),
        *("--json", "--bytes", "--list", "--all", "--output", _COLUMNS),
        *(("--nodeps", *only) if only else ()),
    )
    try:
        devices = json.loads(done.stdout)["blockdevices"]
        return {device["kname"]: _facts(device) for device in devices}
    except (ValueError, KeyError, TypeError) as error:
        reason = done.stderr.strip() or f"its answer is not understood ({error})"
        raise ImagerError(f"lsblk failed: {reason}") from error


def probe(names: Iterable[str], tree: BlockTree) -> dict[str, Facts]:
    """What blkid reads from those devices that may be read and that udev has not looked at."""
    found: dict[str, Facts] = {}
    for name in names:
        node = tree.node(name)
        if _udev_knows(tree.attribute(name, "dev")) or not os.access(node, os.R_OK):
            continue
        # One call for each: blkid gives up all of them at the first that fails or vanishes.
        done = programs.run("blkid", "util-linux", "--probe", "--output", "export", str(node))
        pairs = dict(_unescape(line).partition("=")[::2] for line in done.stdout.splitlines())
        found[name] = _facts({_BLKID_KEYS.get(key, ""): pairs[key] for key in pairs})
    return found


def _facts(values: Mapping[str, object]) -> Facts:
    return {
        key: text
        for key, value in values.items()
        if key and isinstance(value, str) and (text := printable(value.strip()))
    }


def _udev_knows(number: str | None) -> bool:
    return Path(f"/run/udev/data/b{number}").exists()


def _unescape(text: str) -> str:
    """Undo the backslashes with which blkid quotes values for a shell."""
    return re.sub(r"\\(.)", r"\1", text)
