"""A disk in use, from the first look at it until it was caught at one instant."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Self

from imager.disk.source import SourceDevice
from imager.disk.system import System
from imager.errors import ImagerError, NotCaughtError, RefusedError
from imager.extents import Extents
from imager.filesystems import Volume, is_known
from imager.layout.analyse import Analysis, Identify
from imager.layout.model import Gap, all_volumes
from imager.layout.table import table_sectors
from imager.live import abi
from imager.live.dirty import DirtyMap
from imager.live.freezer import FreezeError, Freezer, Pause
from imager.live.metadata import RememberedVolume
from imager.live.patches import Patches, Rereading
from imager.live.precopy import Limits, Precopy, Speed, TooBusyError
from imager.live.snapshot import SnapshotError, Snapshots, remove_abandoned, uses_lvm
from imager.live.superblocks import Superblock, Superblocks
from imager.live.swap import swap_in_use
from imager.live.tracing import Recorder, recorded_disk

_LOOKS = 3
"""A map that changes while it is read may make no sense; soon after it does."""
_FREEZE_SECONDS = 0.02
"""What freezing and thawing one file system takes, beside what it still has to write."""
_SNAPSHOT_SECONDS = 0.15
"""What making a snapshot takes."""
_SLOWEST = 1e6
"""Bytes a second, where the first pass was too short to tell."""

_STDERR = 2

Analyse = Callable[[Volume, Identify, tuple[Gap, ...]], Analysis]
"""Finds out what is in use on a volume, given how blkid is asked and which gaps are known."""


class HookError(NotCaughtError):
    """A command that was to run before the freeze failed."""


@dataclass(frozen=True)
class LiveSettings:
    """How a disk in use is caught."""

    limits: Limits
    before_freeze: str = ""
    """A shell command; if it fails nothing is frozen."""
    after_thaw: str = ""
    """A shell command that runs once the other one has, whatever became of the freeze."""
    snapshots: Literal["never", "if needed", "always"] = "if needed"
    """Whether what LVM's volumes hold may be read after the freeze, from snapshots."""
    inside: Callable[[], None] = lambda: None
    """Called while everything still stands still, when all is read."""


@dataclass(frozen=True)
class Instant:
    """The disk as it was caught."""

    analysis: Analysis
    """By the maps as they were then."""
    table: list[list[object]]
    pause: Pause
    rounds: tuple[int, ...]
    """Bytes read again, round by round; the last one inside the freeze."""
    written: int
    """Bytes that were written to the disk while it was captured."""
    warning: str
    """What went wrong without harm to the image; empty in most cases."""
    consistency: Literal["frozen", "snapshot"] = "frozen"
    """Whether snapshots were needed for it."""


class LiveDisk:
    """Follows the writes to a disk from entering on; use it in a `with` statement."""

    def __init__(self, device: SourceDevice, analyse: Analyse, settings: LiveSettings) -> None:
        """For an open source whose file systems are mounted."""
        self._device = device
        self._analyse = analyse
        self._settings = settings
        self._stack = ExitStack()
        self._first: Analysis | None = None
        self._snapshots: Snapshots | None = None

    def __enter__(self) -> Self:
        """Begin to follow; RefusedError or TracingError, with what to do, where that cannot be."""
        abi.keep_little_memory()
        system = System()
        name = system.name_of_path(self._device.path)
        if name is None:
            raise RefusedError(
                f"{self._device.path} is a file that is in use: capture the device that it is "
                "attached to, or unmount it"
            )
        disk = self._disk = system.tree.parent(name) or name
        recorded_disk(disk)
        self._start = system.tree.start(name) if disk != name else 0
        with ExitStack() as stack:
            self._device.read_past_cache()
            self._superblocks = stack.enter_context(Superblocks(self._device.path))
            self._swap = swap_in_use(self._device.path, self._start)
            self._dirty = DirtyMap(self._start, self._device.size, self._swap)
            self._recorder = stack.enter_context(Recorder(system.tree.node(disk), self._dirty))

            def offsets(devices: frozenset[str]) -> set[int]:
                return {
                    system.tree.start(device) - self._start
                    for device in devices
                    if (system.tree.parent(device) or device) == disk
                }

            every = self._superblocks.all
            mounted = set().union(*(offsets(superblock.devices) for superblock in every))
            self._own = [offsets(superblock.own) for superblock in every]
            self._view = RememberedVolume(self._device, mounted)
            # Until they are frozen this is a guess, which decides what is read and not what counts.
            self._view.still = set().union(*self._own)
            if uses_lvm(self._superblocks.all):
                remove_abandoned()
            if self._settings.snapshots == "always":
                self._snapshots = stack.enter_context(self._plan_snapshots())
            self._stack = stack.pop_all()
            self._stack.callback(_unlock_memory)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def first_look(self) -> None:
        """Find out what is in use now, for a first pass; it may be outdated when it is there."""
        for _ in range(_LOOKS):
            self._sync()
            found = self._analyse(self._view, self._view.identify, ())
            self._view.forget()
            if not any(v.stored == "raw" and is_known(v.kind) for v in all_volumes(found.layout)):
                break
        self._first = self._without_swap(found)
        self._dirty.ignore(self._swap | found.excluded)

    def catch(self, patches: Rereading, rate: float) -> Instant:
        """Read again what was written since the first look, and the last of it in a freeze.

        `rate` is how fast the first pass read, in bytes a second. Raises TooBusyError, FreezeError,
        LostWritesError or RefusedError where the disk could not be caught.
        """
        first = self.first
        precopy = Precopy(
            self,
            patches,
            self._settings.limits,
            Speed(max(rate, _SLOWEST)),
            _FREEZE_SECONDS * len(self._superblocks.all),
        )
        if self._snapshots is not None:
            self._defer(precopy, self._snapshots)
        precopy.run()
        with contextlib.suppress(OSError):  # not everybody may; it only guards against slow paging
            abi.lock_memory()
        with Freezer(self._superblocks.all, self._settings.limits.most) as freezer:
            _run_hook(self._settings.before_freeze, "--before-freeze")
            warning = ""
            try:
                pause = self._catch_now(freezer, precopy, first)
            finally:
                try:
                    _run_hook(self._settings.after_thaw, "--after-thaw")
                except HookError as error:
                    warning = str(error)
            written = self._recorder.written
            if self._snapshots is not None:
                if not isinstance(patches, Patches):
                    raise ValueError("what snapshots hold is kept as patches")
                self._snapshots.read(patches, precopy.later)
                warning = self._snapshots.close() or warning
        self._view.forget()
        return Instant(
            self._last,
            self._table,
            pause,
            tuple(precopy.rounds),
            written,
            warning,
            "frozen" if self._snapshots is None else "snapshot",
        )

    @property
    def first(self) -> Analysis:
        """What the first look has shown."""
        if self._first is None:
            raise ValueError("the first look comes first")
        return self._first

    def forget_first(self) -> None:
        """Let go of the first look: the maps of a large disk take much memory."""
        self._first = None

    def take(self) -> Extents:
        """As of `precopy.Writes`."""
        ranges = self._recorder.take()
        self._view.written(ranges)
        return ranges

    def waiting(self) -> Extents:
        """As of `precopy.Writes`."""
        return self._recorder.waiting()

    def idle(self) -> bool:
        """As of `precopy.Writes`."""
        return self._recorder.idle()

    def verify(self) -> None:
        """As of `precopy.Writes`."""
        self._recorder.verify()

    def _catch_now(self, freezer: Freezer, precopy: Precopy, first: Analysis) -> Pause:
        """By a freeze alone if that can be short enough, else, where it may be, with snapshots."""
        try:
            self._come_close(precopy, first)
            return self._freeze(freezer, precopy, first)
        except TooBusyError as busy:
            possible = uses_lvm(self._superblocks.all) and self._snapshots is None
            if self._settings.snapshots != "if needed" or not possible:
                raise
            try:
                self._snapshots = self._plan_snapshots()
            except ImagerError as reason:
                raise TooBusyError(f"{busy}; snapshots are of no help: {reason}") from None
        self._stack.enter_context(self._snapshots)
        self._defer(precopy, self._snapshots)
        self._come_close(precopy, first)
        return self._freeze(freezer, precopy, first)

    def _plan_snapshots(self) -> Snapshots:
        return Snapshots(self._superblocks.all, self._disk, self._start, self._device.size)

    @staticmethod
    def _defer(precopy: Precopy, snapshots: Snapshots) -> None:
        precopy.deferred = snapshots.ranges
        precopy.overhead += _SNAPSHOT_SECONDS * len(snapshots)

    def _come_close(self, precopy: Precopy, first: Analysis) -> None:
        """Leave as little as possible to the freeze: also of the maps, and what they show."""
        self._sync()
        precopy.round()
        self._view.forget()
        begun = time.process_time()
        analysis = self._analyse(self._view, self._view.identify, first.layout.gaps)
        unread = _unread(self._without_swap(analysis), first, precopy.patches)
        precopy.overhead += time.process_time() - begun
        del analysis
        precopy.patches.read(unread)
        self._sync()
        precopy.round()
        precopy.require_short()
        # What is left to be written now is not left to the freeze, which would have to wait for it.
        self._sync()

    def _freeze(self, freezer: Freezer, precopy: Precopy, first: Analysis) -> Pause:
        def unread() -> Extents:
            found = self._analyse(self._view, self._view.identify, first.layout.gaps)
            self._last = self._without_swap(found)
            self._table = table_sectors(self._view, found.layout.table.extents)
            return _unread(self._last, first, precopy.patches)

        writes_bytecode = sys.dont_write_bytecode
        # Nothing here may be written to what is frozen: no message, no log, no page of memory.
        sys.dont_write_bytecode = True
        try:
            with freezer.frozen():
                for position in freezer.unable:
                    _sync(self._superblocks.all[position])
                    self._view.still = set(self._view.still) - self._own[position]
                precopy.instant(unread)
                if self._snapshots is not None:
                    self._take_snapshots(self._snapshots)
                self._require_same_users()
                self._settings.inside()
        finally:
            sys.dont_write_bytecode = writes_bytecode
        return freezer.pause

    def _take_snapshots(self, snapshots: Snapshots) -> None:
        snapshots.take()
        self._recorder.verify()
        if self._recorder.waiting() & snapshots.ranges:
            raise SnapshotError(
                "something wrote past the file systems to a volume while its snapshot was made: "
                "nothing of this capture is kept; try again"
            )

    def _require_same_users(self) -> None:
        """What is frozen must be all that can change the disk."""
        place = self._superblocks.changed()
        if place is not None:
            raise FreezeError(
                f"{place} was mounted while the disk was captured: nothing of this capture is "
                "kept; try again"
            )
        if self._swap - swap_in_use(self._device.path, self._start):
            raise FreezeError(
                "swap space was given back while the disk was captured: nothing of this capture "
                "is kept; try again"
            )

    def _sync(self) -> None:
        for superblock in self._superblocks.all:
            _sync(superblock)

    def _without_swap(self, found: Analysis) -> Analysis:
        if not self._swap:
            return found
        return Analysis(found.layout, found.used - self._swap, found.excluded)


def _sync(superblock: Superblock) -> None:
    try:
        abi.syncfs(superblock.fd)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FreezeError(
            f"{superblock.place} cannot write out what it has in memory ({reason}): nothing of "
            "this capture is kept"
        ) from None


def _unlock_memory() -> None:
    with contextlib.suppress(OSError):
        abi.unlock_memory()


def _run_hook(command: str, option: str) -> None:
    """Run what the user has given, if anything; HookError where it fails."""
    if command:
        # Standard output is for the result, or the image.
        done = subprocess.run(
            ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=_STDERR, check=False
        )
        if done.returncode:
            raise HookError(f"the {option} command exited with status {done.returncode}")


def _unread(found: Analysis, first: Analysis, patches: Rereading) -> Extents:
    """What is in use by now of which nothing was ever read."""
    return found.used - first.used - patches.covered
