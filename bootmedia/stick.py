"""A stick: the ISO, and behind it a partition that takes the rest, for images and logs.

    0             first MiB: boot code and partition table, written last
    partition 1   the ISO 9660 file system
    partition 2   the EFI system partition
    partition 3   IMAGER_DATA, exFAT, from the next whole MiB on
    the end       the backup partition table

What a power cut leaves is a stick without a partition table: it does not look bootable.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bootmedia.recipe import DATA_LABEL, LIVE_LABEL
from imager.disk import programs
from imager.disk.identity import Identity, identify, resolve
from imager.disk.safety import check_target
from imager.disk.source import SourceDevice
from imager.disk.target import TargetDevice
from imager.errors import (
    ImageError,
    NotUnderstoodError,
    RefusedError,
    UsageError,
    VerifyError,
    WriteFailedError,
)
from imager.layout.edges import EDGE, ends, old_ends
from imager.layout.gpt import Entry, array_sectors, read_gpt
from imager.layout.relocate import relocate
from imager.pipeline import Progress, no_progress
from imager.wording import format_size

_MIB = 1 << 20
_SECTOR = 512
"""What the ISO's partition table counts in."""
_SMALLEST_DATA = 32 * _MIB
_BASIC_DATA = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
_PIECE = 4 * _MIB
_VOLUME_DESCRIPTOR = 32768
"""Where an ISO 9660 file system says what it is: type, "CD001", version, then names of 32 bytes."""
_VOLUME_NAME = slice(40, 72)


@dataclass(frozen=True)
class StickPlan:
    """What will be written; nothing has been touched yet."""

    iso: Path
    iso_size: int
    target: Identity
    data_start: int
    data_size: int
    """Where IMAGER_DATA will be, bytes."""
    warnings: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """What will be on the stick, for a person."""
        yield f"  1  iso9660  {LIVE_LABEL}  {format_size(self.iso_size)}, the rescue system"
        yield f"  3  exfat    {DATA_LABEL}  {format_size(self.data_size)}, for images and logs"


@dataclass(frozen=True)
class StickResult:
    """A finished stick."""

    written: int
    """Bytes; all were read back and compared."""
    notes: tuple[str, ...]
    seconds: float


def find_iso(folders: tuple[Path, ...] = (Path("dist"), Path())) -> Path:
    """The newest medium in these folders; UsageError, which says what to run, if there is none."""
    found = [path for folder in folders for path in folder.glob("imager-rescue-*.iso")]
    if not found:
        raise UsageError(
            "no medium is here: make one with imager bootmedia build, or name the ISO file"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def plan_stick(iso: Path, target: str) -> StickPlan:
    """Decide what goes where, and refuse what must not be; touches nothing.

    `target` is a path, `serial:...` or `wwn:...`. Raises UsageError where `iso` is no rescue medium,
    ImageError where it is not what its checksum file says, RefusedError where the target is in use,
    too small, or no whole disk.
    """
    _check_iso(iso)
    path = resolve(target)
    if not path.exists():
        raise RefusedError(f"there is no {path}: imager devices lists the disks")
    identity = identify(path)
    check_target(path, (iso,))
    if identity.kind in ("partition", "lvm", "crypt"):
        raise RefusedError(
            f"{path} is not a whole disk: a stick needs a partition table of its own"
        )
    if identity.logical_sector != _SECTOR:
        raise RefusedError(
            f"{path} has sectors of {identity.logical_sector} bytes: firmware starts the medium "
            f"only from a disk with sectors of {_SECTOR}"
        )
    iso_size = iso.stat().st_size
    start = -(-iso_size // _MIB) * _MIB
    # The backup table takes less than the last MiB.
    size = identity.size // _MIB * _MIB - _MIB - start
    if size < _SMALLEST_DATA:
        needed = format_size(start + _SMALLEST_DATA + 2 * _MIB)
        raise RefusedError(f"{path} is too small: the medium needs at least {needed}")
    warnings = []
    if identity.kind == "disk" and not identity.removable and identity.transport != "usb":
        warnings.append("this is not a USB stick but a disk of this machine")
    return StickPlan(iso, iso_size, identity, start, size, tuple(warnings))


def write_stick(plan: StickPlan, progress: Progress = no_progress) -> StickResult:
    """Carry out `plan`: wipe, write, read back, compare.

    Raises WriteFailedError where the stick fails, VerifyError where it reads back something else.
    After an error once writing has begun, the stick has no partition table.
    """
    begun = time.monotonic()
    notes = []
    with (
        tempfile.TemporaryDirectory(prefix="imager-") as made,
        SourceDevice(plan.iso, sector_size=_SECTOR) as iso,
        _make_data(plan, Path(made)) as data,
        TargetDevice(Path(plan.target.path)) as target,
    ):
        content = _Content(plan, iso, data, target.size)
        for start, end in ends([(0, target.size)]) | old_ends(target):
            target.zero(start, end - start)
        target.sync()
        done = 0
        for offset, piece in content.early():
            target.write(offset, piece)
            done += len(piece)
            progress("write", done, content.size)
        target.sync()
        for offset, piece in content.late():
            target.write(offset, piece)
        target.sync()
        _read_back(target, content, progress)
        if not target.reread_partition_table():
            notes.append("the kernel still uses the old partition table: pull the stick out once")
    return StickResult(content.size, tuple(notes), time.monotonic() - begun)


class _Content:
    """What the stick will hold, piece by piece; a `Volume` of the ISO with the new table in it."""

    def __init__(
        self, plan: StickPlan, iso: SourceDevice, data: SourceDevice, target_size: int
    ) -> None:
        self._iso = iso
        self._data = data
        self._data_start = plan.data_start
        self._iso_size = plan.iso_size
        self._table = relocate(iso, target_size, [_data_entry(plan)])
        self._patches = [*_old_backup(iso), *self._table]
        self._data_ranges = list(_data_ranges(Path(data.path)))
        self.size = self._iso_size + sum(end - start for start, end in self._data_ranges)

    def early(self) -> Iterator[tuple[int, bytes]]:
        """All but the first MiB and the backup table, as (offset, bytes)."""
        for offset in range(EDGE, self._iso_size, _PIECE):
            yield offset, self._patched(offset, min(_PIECE, self._iso_size - offset))
        for start, end in self._data_ranges:
            for offset in range(start, end, _PIECE):
                size = min(_PIECE, end - offset)
                yield self._data_start + offset, self._data.read(offset, size)

    def late(self) -> Iterator[tuple[int, bytes]]:
        """The rest, what makes the table visible last."""
        yield 0, bytes(2 * _SECTOR) + self._patched(2 * _SECTOR, EDGE - 2 * _SECTOR)
        yield from self._table

    def final(self) -> Iterator[tuple[int, bytes]]:
        """All that stands on the stick in the end."""
        yield 0, self._patched(0, EDGE)
        yield from self.early()
        yield from (piece for piece in self._table if piece[0] >= self._iso_size)

    def _patched(self, offset: int, size: int) -> bytes:
        """A piece of the ISO with the new table in place of the old."""
        piece = bytearray(self._iso.read(offset, size))
        for start, patch in self._patches:
            low, high = max(start, offset), min(start + len(patch), offset + size)
            if low < high:
                piece[low - offset : high - offset] = patch[low - start : high - start]
        return bytes(piece)


def _read_back(target: TargetDevice, content: _Content, progress: Progress) -> None:
    """Read all that was written from the stick itself; VerifyError at a difference."""
    done = 0
    for offset, piece in content.final():
        # In pieces that read_direct takes at once.
        for start in range(0, len(piece), _MIB):
            wanted = memoryview(piece)[start : start + _MIB]
            read = bytearray(len(wanted))
            target.read_direct(offset + start, memoryview(read))
            if read != wanted:
                raise VerifyError(
                    f"{target.path} reads back something else than was written, between bytes "
                    f"{offset + start} and {offset + start + len(wanted)}: do not trust this stick"
                )
        done += len(piece)
        progress("read back", min(done, content.size), content.size)


def _check_iso(iso: Path) -> None:
    """UsageError unless `iso` is a rescue medium, ImageError unless it is whole."""
    with SourceDevice(iso, sector_size=_SECTOR) as device:
        if device.size < _VOLUME_DESCRIPTOR + _MIB:
            raise UsageError(f"{iso} is not a rescue medium: it is too small")
        descriptor = device.read(_VOLUME_DESCRIPTOR, 2048)
        if descriptor[1:6] != b"CD001" or descriptor[_VOLUME_NAME].strip() != LIVE_LABEL.encode():
            raise UsageError(f"{iso} is not a rescue medium made by imager bootmedia build")
        try:
            read_gpt(device)
        except NotUnderstoodError as error:
            raise ImageError(f"{iso} is damaged: {error}; build it again") from error
    beside = iso.with_name(f"{iso.name}.sha256")
    if beside.exists():
        wanted = beside.read_text().partition(" ")[0]
        with iso.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                raise ImageError(
                    f"{iso} is damaged: {beside.name} has another checksum; build it again"
                )


def _make_data(plan: StickPlan, folder: Path) -> SourceDevice:
    """An empty exFAT file system of the partition's size, in a sparse file."""
    path = folder / "data"
    with path.open("wb") as file:
        file.truncate(plan.data_size)
    done = programs.run("mkfs.exfat", "exfatprogs", "-L", DATA_LABEL, str(path))
    if done.returncode:
        raise WriteFailedError(
            f"the exFAT file system cannot be made: {(done.stderr or done.stdout).strip()}"
        )
    return SourceDevice(path, sector_size=_SECTOR)


def _data_ranges(path: Path) -> Iterator[tuple[int, int]]:
    """The parts of a sparse file that have been written."""
    with path.open("rb") as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start, position


def _data_entry(plan: StickPlan) -> Entry:
    """The data partition in the table."""
    return Entry(
        partition_type_guid=_BASIC_DATA.bytes_le,
        unique_partition_guid=uuid.uuid4().bytes_le,
        starting_lba=plan.data_start // _SECTOR,
        ending_lba=(plan.data_start + plan.data_size) // _SECTOR - 1,
        attributes=0,
        partition_name=DATA_LABEL.encode("utf-16-le").ljust(72, b"\0"),
    )


def _old_backup(iso: SourceDevice) -> Iterator[tuple[int, bytes]]:
    """Zeros for the ISO's own backup table, which would stand amid the stick."""
    backup = read_gpt(iso).backup
    if backup is not None:
        header = backup.header
        length = array_sectors(header, _SECTOR)
        yield header.partition_entry_lba * _SECTOR, bytes(length * _SECTOR)
        yield header.my_lba * _SECTOR, bytes(_SECTOR)
