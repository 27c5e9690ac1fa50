"""Which disk this is: what stays true of it when the kernel hands out its names anew."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from imager.disk.lsblk import Facts, lsblk
from imager.disk.system import System
from imager.errors import RefusedError, UsageError
from imager.wording import format_size, printable

FILE_SECTOR_SIZE = 512
"""What a plain disk-image file is taken to have, because nothing in it says so."""

_KINDS = {"part": "partition"}
_TRANSPORTS = {
    "ata": "ATA",
    "fc": "FC",
    "iscsi": "iSCSI",
    "mmc": "MMC",
    "nvme": "NVMe",
    "sas": "SAS",
    "sata": "SATA",
    "usb": "USB",
}
_MAX_SECTOR_SIZE = 65536
_MAX_TEXT = 4096


@dataclass(frozen=True)
class Identity:
    """A disk, partition or disk-image file. Sizes are in bytes; unknown texts are None."""

    path: str
    name: str
    """The kernel's name ("sdb"), or a file's."""
    kind: str
    """"disk", "partition", "loop", "file", or what lsblk calls it: "lvm", "crypt", "raid1", ..."""
    model: str | None
    serial: str | None
    wwn: str | None
    transport: str | None
    """As lsblk calls it: "sata", "nvme", "usb", ..."""
    size: int
    logical_sector: int
    physical_sector: int
    rotational: bool
    removable: bool
    read_only: bool
    backing_file: str | None
    """What a loop device is attached to."""

    def describe(self) -> str:
        """One line for a person: "sdb: Samsung SSD 870 (S6P1NX0R), 1.0 TB, SATA"."""
        what = self.model or ("disk-image file" if self.kind == "file" else self.kind)
        if self.serial:
            what += f" ({self.serial})"
        elif self.backing_file:
            what += f" on {printable(self.backing_file)}"
        parts = [what, format_size(self.size)]
        if self.transport:
            parts.append(transport_name(self.transport))
        return f"{self.name}: {', '.join(parts)}"

    def to_json(self) -> dict[str, str | int | bool | None]:
        """A mapping of the fields, fit for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Identity:
        """The inverse of `to_json`; fields that a later version has added are ignored.

        Raises ValueError where a field is missing, of another type or out of range.
        """
        if not isinstance(value, Mapping):
            raise ValueError("identity is not a mapping")
        return cls(
            path=_path(value, "path"),
            name=_text(value, "name"),
            kind=_text(value, "kind"),
            model=_optional(_text, value, "model"),
            serial=_optional(_text, value, "serial"),
            wwn=_optional(_text, value, "wwn"),
            transport=_optional(_text, value, "transport"),
            size=_size(value, "size"),
            logical_sector=_sector(value, "logical_sector"),
            physical_sector=_sector(value, "physical_sector"),
            rotational=_flag(value, "rotational"),
            removable=_flag(value, "removable"),
            read_only=_flag(value, "read_only"),
            backing_file=_optional(_path, value, "backing_file"),
        )


def transport_name(transport: str) -> str:
    """A transport as people write it: "SATA"."""
    return _TRANSPORTS.get(transport, transport)


def identify(path: Path, system: System | None = None) -> Identity:
    """The identity of a block device or plain file.

    Raises UsageError where `path` is neither, MissingToolError without lsblk.
    """
    system = system or System()
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if stat.S_ISREG(status.st_mode):
        return _identify_file(path, status.st_size)
    name = system.name_of_path(path)
    if name is None:
        raise UsageError(f"{path} is neither a block device nor a plain file")
    parent = system.tree.parent(name)
    nodes = [system.tree.node(one) for one in (name, parent) if one]
    return identity_of(name, path, lsblk(nodes), system)


def identity_of(name: str, path: Path, listing: Mapping[str, Facts], system: System) -> Identity:
    """The identity of the device that the kernel calls `name`, from sysfs and lsblk's answer."""
    tree = system.tree
    parent = tree.parent(name)
    base = parent or name
    own, disk = listing.get(name, {}), listing.get(base, {})
    loop = next((loop for loop in tree.loops if loop.name == base), None)
    logical = tree.number(base, "queue/logical_block_size") or FILE_SECTOR_SIZE
    kind = own.get("type") or ("part" if parent else "disk")
    return Identity(
        path=str(path),
        name=printable(name),
        kind=_KINDS.get(kind, kind),
        model=disk.get("model"),
        serial=disk.get("serial") or _clean(tree.attribute(base, "serial")),
        wwn=disk.get("wwn"),
        transport=disk.get("tran") or _transport_of_driver(base, system),
        size=tree.size(name),
        logical_sector=logical,
        physical_sector=tree.number(base, "queue/physical_block_size") or logical,
        rotational=tree.attribute(base, "queue/rotational") == "1",
        removable=tree.attribute(base, "removable") == "1",
        read_only=tree.attribute(name, "ro") == "1",
        backing_file=loop.file if loop else None,
    )


def resolve(name: str, system: System | None = None) -> Path:
    """The path of a disk named as "serial:...", "wwn:..." or by a path, which need not exist.

    Raises RefusedError unless exactly one disk has that serial number or WWN.
    """
    key, separator, wanted = name.partition(":")
    if not separator or key not in ("serial", "wwn"):
        return Path(name)
    if not wanted.strip():
        raise UsageError(f"{name} names no disk: put the {key} behind the colon")
    system = system or System()
    listing = lsblk()
    disks = [
        identity_of(disk, system.tree.node(disk), listing, system) for disk in system.tree.disks()
    ]
    disks = [disk for disk in disks if disk.size]
    found = [disk for disk in disks if is_named(disk, key, wanted)]
    if len(found) == 1:
        return Path(found[0].path)
    if found:
        listed = "; ".join(disk.describe() for disk in found)
        raise RefusedError(f"{name} is more than one disk, name it by its path: {listed}")
    candidates = [disk for disk in disks if (disk.serial if key == "serial" else disk.wwn)]
    listed = "; ".join(f"{disk.describe()}, WWN {disk.wwn or 'unknown'}" for disk in candidates)
    raise RefusedError(f"no disk is {name}: there is {listed or f'none that tells its {key}'}")


def _identify_file(path: Path, size: int) -> Identity:
    return Identity(
        path=str(path),
        name=printable(path.name),
        kind="file",
        model=None,
        serial=None,
        wwn=None,
        transport=None,
        size=size,
        logical_sector=FILE_SECTOR_SIZE,
        physical_sector=FILE_SECTOR_SIZE,
        rotational=False,
        removable=False,
        read_only=not os.access(path, os.W_OK),
        backing_file=None,
    )


def _transport_of_driver(name: str, system: System) -> str | None:
    """The bus by its place in sysfs, for those that older versions of lsblk do not name."""
    place = os.path.realpath(system.tree.directory(name))
    return next((bus for bus in ("virtio", "mmc") if f"/{bus}" in place), None)


def is_named(disk: Identity, key: str, wanted: str) -> bool:
    """Whether a disk's "serial" or "wwn" is `wanted`, however either is written."""
    text = disk.serial if key == "serial" else disk.wwn
    return _bare(text) == _bare(wanted) if text else False


def _bare(text: str) -> str:
    """A serial number or WWN without case, blanks and the prefix that only some tools print."""
    text = text.strip().lower()
    for prefix in ("0x", "naa.", "eui.", "nvme."):
        text = text.removeprefix(prefix)
    return text


def _clean(text: str | None) -> str | None:
    return printable(text) or None if text else None


def _field(value: Mapping[object, object], name: str) -> object:
    if name not in value:
        raise ValueError(f"identity lacks {name}")
    return value[name]


def _optional(
    check: Callable[[Mapping[object, object], str], str],
    value: Mapping[object, object],
    name: str,
) -> str | None:
    return None if _field(value, name) is None else check(value, name)


def _text(value: Mapping[object, object], name: str) -> str:
    text = _path(value, name)
    if not text.isprintable():
        raise ValueError(f"identity has a {name} that cannot be shown")
    return text


def _path(value: Mapping[object, object], name: str) -> str:
    text = _field(value, name)
    if not isinstance(text, str) or len(text) > _MAX_TEXT or "\0" in text:
        raise ValueError(f"identity has a {name} that is no text")
    return text


def _size(value: Mapping[object, object], name: str) -> int:
    number = _field(value, name)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 63:
        raise ValueError(f"identity has a {name} that is no size")
    return number


def _sector(value: Mapping[object, object], name: str) -> int:
    sector = _size(value, name)
    if not FILE_SECTOR_SIZE <= sector <= _MAX_SECTOR_SIZE or sector & (sector - 1):
        raise ValueError(f"identity has a {name} of {sector} bytes")
    return sector


def _flag(value: Mapping[object, object], name: str) -> bool:
    flag = _field(value, name)
    if not isinstance(flag, bool):
        raise ValueError(f"identity has a {name} that is neither true nor false")
    return flag
