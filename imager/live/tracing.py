"""Records which sectors of a disk are written, for as long as it is open.

A request counts when it *completes*: then the data is on the disk, or on its way into what a later
read gives. Who takes the set of written sectors and empties it *before* reading therefore misses
nothing: a write that the read did not see completes afterwards, and is in the next set. (At the time
when a request is queued or issued the same would be wrong.)
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Self

from imager.disk.sysfs import BlockTree
from imager.disk.system import System
from imager.errors import ImagerError, NotCaughtError, RefusedError
from imager.extents import Extents
from imager.live.dirty import DirtyMap
from imager.live.pages import TraceFormatError, parse_page
from imager.live.tracefs import Instance, buffer_size, tracefs

_INTERVAL = 0.05
"""Seconds between two looks into the kernel's buffers, which hold some 150,000 events each."""


class LostWritesError(NotCaughtError):
    """Some writes were not recorded: what was read cannot be trusted."""


def recorded_disk(name: str, sysfs: Path = Path("/sys")) -> None:
    """Refuse a disk whose writes do not pass through the kernel's request queue.

    `sysfs` also says which disks are below it.
    """
    directory = sysfs / "class/block" / name
    if not (directory / "mq").is_dir():
        raise RefusedError(
            f"{name} is made of other devices, or handles its writes itself: they cannot be "
            f"followed there; capture the disk below it{_disks_below(name, sysfs)}, or unmount it"
        )
    try:
        zoned = (directory / "queue/zoned").read_text().strip()
    except OSError:
        zoned = "none"
    if zoned not in ("none", ""):
        raise RefusedError(f"{name} is a zoned disk: unmount it to capture it")


def _disks_below(name: str, sysfs: Path) -> str:
    """The disks that a device of device-mapper or RAID is made of, for a message."""
    tree = BlockTree(sysfs)
    below = System(tree).layers((name,), False) - {name}
    disks = {tree.parent(each) or each for each in below if not tree.slaves(each)}
    return f" ({', '.join(sorted(disks))})" if disks else ""


class Recorder:
    """Follows the writes to one disk; use it in a `with` statement."""

    def __init__(self, disk: Path, dirty: DirtyMap, buffer: int | None = None) -> None:
        """Record writes to the whole disk `disk` into `dirty` from the moment of entering.

        `buffer` is the size of the kernel's buffer for each CPU in bytes.
        """
        self._device = os.stat(disk).st_rdev
        numbers = f"{os.major(self._device)}:{os.minor(self._device)}"
        self._inflight = Path(f"/sys/dev/block/{numbers}/inflight")
        self._dirty = dirty
        self._buffer = buffer or buffer_size(os.cpu_count() or 1)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="imager-writes", daemon=True)
        self._error: ImagerError | None = None
        self.written = 0
        """Bytes written so far, as far as they were looked at."""
        self.events = 0

    def __enter__(self) -> Self:
        self._mount = tracefs()
        root = self._mount.__enter__()
        try:
            self._instance = Instance(root, self._device, self._buffer)
        except BaseException:
            self._mount.__exit__(None, None, None)
            raise
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._instance.close()
        self._mount.__exit__(None, None, None)

    def take(self) -> Extents:
        """What was written since the last time, in bytes; to be read only afterwards.

        Raises LostWritesError where the record has a gap.
        """
        self._catch_up()
        return self._dirty.take()

    def waiting(self) -> Extents:
        """As `take`, but it stays to be taken."""
        self._catch_up()
        return self._dirty.peek()

    def idle(self) -> bool:
        """Whether the disk has no write under way at this moment."""
        counts = self._inflight.read_text().split()
        return len(counts) == 2 and counts[1] == "0"

    def verify(self) -> None:
        """LostWritesError unless all writes so far were recorded."""
        self._catch_up()
        lost = self._instance.lost()
        if lost:
            raise _lost(f"{lost} of them", self._buffer)
        if not self._instance.still_records():
            raise LostWritesError(
                "somebody switched off or changed the recording of writes: nothing of this "
                "capture is kept; try again"
            )

    def _catch_up(self) -> None:
        """Take all that the kernel has recorded up to now."""
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                self._read_pages()
            except OSError as error:
                self._error = LostWritesError(
                    f"the record of writes cannot be read ({error.strerror}): nothing of this "
                    "capture is kept; try again"
                )
                raise self._error from None
            except (LostWritesError, TraceFormatError) as error:
                self._error = error
                raise

    def _read_pages(self) -> None:
        layout = self._instance.format
        for page in self._instance.pages():
            writes, lost = parse_page(page, layout)
            if lost:
                raise _lost("some of them", self._buffer)
            self.events += len(writes)
            self.written += self._dirty.mark(writes)

    def _follow(self) -> None:
        while not self._stop.wait(_INTERVAL):
            begun = time.monotonic()
            try:
                self._catch_up()
            except NotCaughtError:
                return  # kept for whoever asks next
            # A machine so busy that this takes long must still get to do something else.
            self._stop.wait(min(time.monotonic() - begun, _INTERVAL))


def _lost(count: str, buffer: int) -> LostWritesError:
    return LostWritesError(
        f"writes came faster than they could be recorded, and {count} were lost (the buffers hold "
        f"{buffer >> 10} KiB for each CPU): nothing of this capture is kept; try again when the "
        "disk is less busy"
    )
