"""Which disk an image is of: by what stays true of it, never by the kernel's name for it."""

from __future__ import annotations

import re
from pathlib import Path

from imager.disk.identity import Identity
from imager.disk.source import SourceDevice
from imager.errors import ImageError, NotUnderstoodError, ReadFailedError, RefusedError
from imager.image.head import Head
from imager.layout import blkid
from imager.layout.table import read_table

_TRAILING_NUMBER = re.compile(r"\d+$")


def key_of_device(device: SourceDevice) -> str:
    """What tells the disk from all others, as a short text; RefusedError where nothing does."""
    try:
        table = read_table(device)
        kind, table_id = table.kind, table.uuid
    except (NotUnderstoodError, ReadFailedError):
        kind, table_id = "none", None
    volume_id = None
    if kind == "none":
        try:
            found = blkid.identify(device.path, 0, device.size)
            volume_id = found.uuid if found else None
        except NotUnderstoodError:
            pass
    key = _key(device.identity, kind, table_id, volume_id)
    if key is None:
        raise RefusedError(
            f"{device.path} cannot be told from other disks: it has no serial number, no WWN, no "
            "partition table with an identifier and no known file system; capture it to an image "
            "with a name instead"
        )
    return key


def key_of_head(head: Head) -> str:
    """The same text, from what an image says of its disk; ImageError where it says nothing."""
    layout = head.facts.get("layout")
    layout = layout if isinstance(layout, dict) else {}
    table = layout.get("table")
    table = table if isinstance(table, dict) else {}
    volumes = layout.get("volumes")
    whole = volumes[0] if isinstance(volumes, list) and len(volumes) == 1 else None
    volume_id = whole.get("uuid") if isinstance(whole, dict) else None
    try:
        identity = Identity.from_json(head.facts.get("source"))
    except ValueError as error:
        raise ImageError(f"the image does not say which disk it is of: {error}") from None
    key = _key(identity, _text(table.get("kind")), _text(table.get("uuid")), _text(volume_id))
    if key is None:
        raise ImageError("the image does not say which disk it is of")
    return key


def is_of(identity: Identity, key: str) -> bool:
    """Whether a device with this identity may have this key; what is on it may be needed to tell."""
    return _key(identity, "none", None, None) in (None, key)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _key(
    identity: Identity, table: str | None, table_id: str | None, volume_id: str | None
) -> str | None:
    """A disk's own marks first; what is written on it can be copied to another."""
    if identity.serial:
        key = f"{identity.model or 'disk'} {identity.serial}"
    elif identity.wwn:
        key = f"wwn {identity.wwn}"
    elif table in ("gpt", "mbr") and table_id and table_id.strip("0-"):
        return f"{table} {table_id}"
    elif table == "none" and volume_id and volume_id.strip("0-"):
        return f"volume {volume_id}"
    elif identity.kind == "file":
        return f"file {Path(identity.path).absolute()}"
    else:
        return None
    if identity.kind == "partition":
        number = _TRAILING_NUMBER.search(identity.name)
        return f"{key} partition {number[0] if number else '?'}"
    return key
