"""LVM snapshots of the mounted volumes of a disk, for what is written faster than it is read.

    inside the freeze    what lies outside of these volumes is read, as ever; then take(): a snapshot of
                         each. All are of one instant, for which nothing had to be read from them.
    after the thaw       read(): what was written to the volumes last, from the snapshots.
    at the end           close(): they are removed. What a killed process left, the next one removes.

The disk that the image shows is that of the instant *before* they were made: the volume group's
metadata, like all else outside of the volumes, were read inside the freeze by then. A machine that is
restored has no snapshots, and in its free extents, where their store was, something or other.

LVM's tools do it, as the system runs and they know best; where a volume lies the kernel says
(`disk.mapper`). They are never killed: a volume could stay suspended, and the machine hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from imager.disk import mapper, programs
from imager.disk.source import SourceDevice
from imager.disk.system import System
from imager.errors import MissingToolError, NotCaughtError, ReadFailedError, RefusedError
from imager.extents import Extents
from imager.live.patches import Patches, ReadInto
from imager.live.superblocks import Superblock
from imager.live.tracefs import start_time

_DEVICES = Path("/dev")
_PACKAGE = "lvm2"
_TAG = "imager_snapshot"
_NAME = re.compile(r"imager-(?P<process>\d+)-(?P<start>\d+)-\d+")
_KERNEL = (6, 8)
"""Before it device-mapper could not suspend a file system that was frozen already."""
_COLUMNS = "vg_name,vg_free_count,lv_name,lv_size,lv_kernel_major,lv_kernel_minor,lv_tags,origin"
_QUIET = (
    # While the root stands still nothing may be written to /etc/lvm, and nobody be asked to watch.
    *("--config", "backup { backup=0 archive=0 } activation { monitoring=0 }"),
)


class SnapshotError(NotCaughtError):
    """A snapshot could not be made, or ran over."""


class _Volume(NamedTuple):
    group: str
    name: str
    size: int
    """Bytes."""
    free: int
    """Extents of the group."""
    device: str
    """The kernel's name."""
    places: tuple[mapper.Piece, ...] = ()


class Snapshots:
    """Of all that can have one; nothing is made before `take`. Use it in a `with` statement."""

    def __init__(self, held: Iterable[Superblock], disk: str, start: int, size: int) -> None:
        """For the file systems `held` on [start, start + size) of the disk that is called `disk`.

        Raises RefusedError or MissingToolError where not one is possible, with the reason.
        """
        _require_kernel(os.uname().release)
        self._disk, self._start = disk, start
        held = tuple(held)
        devices = {name for one in held for name in one.devices}
        self._volumes = _volumes(devices, disk) if uses_lvm(held) else []
        if not self._volumes:
            raise RefusedError(
                "none of its file systems lies on a plain LVM volume of this disk (what is "
                "encrypted below LVM can only be frozen)"
            )
        self._extents = [_share(volume, self._volumes) for volume in self._volumes]
        whole = Extents.of(
            (place.disk_start, place.disk_start + place.size)
            for volume in self._volumes
            for place in volume.places
        )
        self.ranges = whole.clip(start, start + size).shift(-start)
        """What will be read from the snapshots, in bytes of the source."""
        self._made: list[str] = []
        with contextlib.suppress(MissingToolError):  # else it is loaded while all stands still
            programs.run("modprobe", "kmod", "--quiet", "dm-snapshot")

    def __len__(self) -> int:
        return len(self._volumes)

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def take(self) -> None:
        """Make them, while all that is mounted stands still; SnapshotError where one fails."""
        own, system = os.getpid(), System()
        for volume in self._volumes:
            if mapper.pieces(system, volume.device, self._disk) != volume.places:
                raise SnapshotError(
                    f"the volume {volume.group}/{volume.name} was moved or resized meanwhile: "
                    "nothing of this capture is kept; try again"
                )
        for number, (volume, extents) in enumerate(zip(self._volumes, self._extents, strict=True)):
            name = f"imager-{own}-{start_time(own)}-{number}"
            # Noted before: what fails half-way is removed as well.
            self._made.append(f"{volume.group}/{name}")
            _lvm(
                *("lvcreate", "--yes", *_QUIET, "--snapshot", "--permission", "r"),
                *("--addtag", _TAG, "--name", name, "--extents", str(extents)),
                f"{volume.group}/{volume.name}",
            )

    def read(self, patches: Patches, ranges: Extents) -> None:
        """Read these, which lie within `self.ranges`, as they were at the instant.

        SnapshotError where a snapshot did not last until the end.
        """
        with ExitStack() as stack:
            try:
                devices = [
                    stack.enter_context(SourceDevice(_DEVICES / name)) for name in self._made
                ]
                for device in devices:
                    device.read_past_cache()
                patches.read(ranges, readinto=self._reader(devices))
            except ReadFailedError:
                self._verify()
                raise
            self._verify()

    def close(self) -> str:
        """Remove them; what a person should know of it, or nothing. Harmless when done twice."""
        made, self._made = self._made, []
        problem = ""
        for name in made:
            try:
                _lvm("lvremove", "--yes", *_QUIET, name)
            except SnapshotError as error:
                if (_DEVICES / name).exists():
                    problem = str(error)
        return problem

    def _reader(self, devices: Sequence[SourceDevice]) -> ReadInto:
        """Reads the source's bytes from the snapshots, through which they are scattered."""
        places = sorted(
            (place.disk_start - self._start, place.size, place.start, number)
            for number, volume in enumerate(self._volumes)
            for place in volume.places
        )
        begins = [place[0] for place in places]

        def readinto(offset: int, view: memoryview) -> None:
            while view:
                begin, size, start, number = places[bisect_right(begins, offset) - 1]
                length = min(begin + size - offset, len(view))
                devices[number].readinto(start + offset - begin, view[:length])
                offset, view = offset + length, view[length:]

        return readinto

    def _verify(self) -> None:
        for name in self._made:
            states: list[tuple[bytes, bytes]] = []
            with contextlib.suppress(OSError):
                states = mapper.status((_DEVICES / name).stat().st_rdev)
            # "Invalid", "Overflow" and the like stand where numbers should be.
            if [kind for kind, text in states if kind == b"snapshot" and text[:1].isdigit()] == []:
                raise SnapshotError(
                    f"the snapshot {name} ran over while it was read: more was written than the "
                    "volume group has free; nothing of this capture is kept; leave more space "
                    "free, or capture at a quieter time"
                )


def uses_lvm(held: Iterable[Superblock]) -> bool:
    """Whether any of these file systems lies on a logical volume."""
    tree = System().tree
    devices = {name for one in held for name in one.devices}
    return any((tree.attribute(name, "dm/uuid") or "").startswith("LVM-") for name in devices)


def remove_abandoned() -> None:
    """Remove snapshots of ours whose process is gone; without LVM there are none."""
    with contextlib.suppress(SnapshotError, MissingToolError):
        for row in _report():
            match = _NAME.fullmatch(row["lv_name"])
            if (
                match
                and _TAG in row["lv_tags"].split(",")
                and row["origin"]
                and start_time(int(match["process"])) != int(match["start"])
            ):
                with contextlib.suppress(SnapshotError):
                    _lvm("lvremove", "--yes", *_QUIET, f"{row['vg_name']}/{row['lv_name']}")


def _require_kernel(release: str) -> None:
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if version < _KERNEL:
        raise RefusedError("snapshots of what is frozen need Linux 6.8 or later")


def _volumes(devices: set[str], disk: str) -> list[_Volume]:
    """The logical volumes among `devices` that lie on the disk as they are."""
    system = System()
    found = []
    for row in _report():
        numbers = row["lv_kernel_major"], row["lv_kernel_minor"]
        if not all(number.isdecimal() for number in numbers):
            continue  # not in use
        device = system.tree.name_of_number(os.makedev(int(numbers[0]), int(numbers[1])))
        if device not in devices:
            continue
        places = mapper.pieces(system, device, disk)
        if places and not any(place.encrypted for place in places):
            size, free = int(row["lv_size"]), int(row["vg_free_count"])
            found.append(_Volume(row["vg_name"], row["lv_name"], size, free, device, places))
    return found


def _share(volume: _Volume, all_of_them: Sequence[_Volume]) -> int:
    """How many of its group's free extents a volume's snapshot gets."""
    group = [other for other in all_of_them if other.group == volume.group]
    total = sum(other.size for other in group)
    # At least one each; what a volume could never need lvcreate gives back.
    share = 1 + (volume.free - len(group)) * volume.size // total
    if volume.free < len(group):
        raise RefusedError(
            f"the volume group {volume.group} has no free space for snapshots of "
            f"{', '.join(other.name for other in group)}"
        )
    return share


def _report() -> list[dict[str, str]]:
    """A row for each logical volume of the machine."""
    words = ("--reportformat", "json", "--units", "b", "--nosuffix", "--options", _COLUMNS)
    rows: list[dict[str, str]] = json.loads(_lvm("lvs", *words))["report"][0]["lv"]
    return rows


def _lvm(program: str, *arguments: str) -> str:
    """What one of LVM's programs says; SnapshotError where it fails. It ends before this does."""
    process = subprocess.Popen(
        (programs.find(program, _PACKAGE), *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"},
        # Ctrl-C is not meant for it.
        start_new_session=True,
    )
    try:
        output, said = process.communicate()
    except BaseException:
        process.communicate()
        raise
    if process.returncode:
        lines = [line.strip() for line in said.splitlines() if "WARNING" not in line]
        raise SnapshotError(
            f"{program} failed ({(lines or ['it said nothing'])[-1].rstrip('.')}): nothing of this "
            "capture is kept"
        )
    return output
