"""Prune: give up images that no rule keeps, and give back what nobody borrows from them.

Why it is safe at every step, on any file system and without a lock that works:

1. An image is given up by its new name and the guard, nothing else; its content stays as it is.
2. Only after the grace time does anything that lies in it go, and only after every image in the
   folder, those being written included, was looked at again: `read_folder` misses none that gets
   another name meanwhile. Whoever was still within the grace time counts as kept.
3. A capture names its parents in the head with which its `.partial` begins, and only then looks
   whether they were given up. If one was, it lets go of it and leaves nothing behind. If none was,
   its head was there before any guard: every prune that takes something of them sees it first. So
   an image that gets its name can be read, even if the capture is killed at that very moment.
4. What remains needed, and each image's structure, is never touched.

A crash leaves an image that is good, or one that was already given up and that the next prune takes
up where it lies.
"""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imager.errors import ImagerError, RefusedError
from imager.image.reader import ImageReader
from imager.pipeline import Progress, no_progress
from imager.store import actions
from imager.store.borrowing import Demand, demands, unneeded_frames
from imager.store.catalog import DiskFolder, ImageFiles, State, StoredImage, read_folder
from imager.store.consolidate import consolidate, is_worthwhile
from imager.store.files import remove_leftovers
from imager.store.folder import Store, disk_lock
from imager.store.names import PARTIAL_SUFFIX, is_copy
from imager.store.retention import Decision, Rules, decide
from imager.store.sidecar import remove_sidecars

DEFAULT_GRACE = datetime.timedelta(days=1)
"""Longer than any capture that might still build upon an image when it is given up."""


@dataclass(frozen=True)
class PrunedDisk:
    """What was decided, and done, for one disk."""

    folder: Path
    host: str
    disk: str
    decisions: tuple[Decision, ...]
    """Newest first."""


@dataclass(frozen=True)
class PruneReport:
    """What a prune did, or would do."""

    disks: tuple[PrunedDisk, ...]
    expired: tuple[Path, ...]
    """Given up just now."""
    deleted: tuple[Path, ...]
    """Files of images given up before, or left by captures that were interrupted."""
    waiting: tuple[Path, ...]
    """Given up, and within the grace time."""
    borrowed: tuple[Path, ...]
    """Given up, and still needed by other images in part."""
    freed: int
    """Bytes given back to the file system."""
    notes: tuple[str, ...]
    """What could not be done, and why."""


class _Tally:
    """Collects a report."""

    def __init__(self) -> None:
        self.disks: list[PrunedDisk] = []
        self.expired: list[Path] = []
        self.deleted: list[Path] = []
        self.waiting: list[Path] = []
        self.borrowed: list[Path] = []
        self.freed = 0
        self.notes: list[str] = []

    def report(self) -> PruneReport:
        return PruneReport(
            tuple(self.disks),
            tuple(self.expired),
            tuple(self.deleted),
            tuple(self.waiting),
            tuple(self.borrowed),
            self.freed,
            tuple(self.notes),
        )


def prune(
    store: Store,
    rules: Rules,
    now: datetime.datetime,
    *,
    grace: datetime.timedelta = DEFAULT_GRACE,
    dry_run: bool = False,
    only: Path | None = None,
    progress: Progress = no_progress,
) -> PruneReport:
    """Apply `rules` to each disk in the store, or to the one whose folder is `only`.

    Raises RefusedError where no rule keeps anything. What cannot be done for one disk is a note,
    and the others are still dealt with.
    """
    if rules.absent:
        raise RefusedError("no --keep rule is given, so every image would go: name at least one")
    tally = _Tally()
    for folder in store.disk_folders() if only is None else (only,):
        progress(f"pruning {folder.parent.name}/{folder.name}", 0, 0)
        try:
            if dry_run:
                _decide(read_folder(folder), rules, now, tally)
                continue
            with disk_lock(folder):
                for image in _decide(read_folder(folder), rules, now, tally):
                    actions.expire(image.files)
                    tally.expired.append(image.files.path)
                _reclaim(store, folder, now, grace, tally)
        except (ImagerError, OSError) as error:
            tally.notes.append(f"{folder}: {getattr(error, 'strerror', None) or error}")
    return tally.report()


def _decide(
    folder: DiskFolder, rules: Rules, now: datetime.datetime, tally: _Tally
) -> list[StoredImage]:
    """The images of a folder that go."""
    going: list[StoredImage] = []
    for host, disk in folder.disks():
        images = {image.name: image for image in folder.of(host, disk)}
        decisions = decide([image.candidate() for image in images.values()], rules, now)
        tally.disks.append(PrunedDisk(folder.path, host, disk, decisions))
        going += (images[each.image.name] for each in decisions if not each.kept)
    tally.notes += (
        f"{unreadable.files.path} cannot be read as an image and is left alone: {unreadable.reason}"
        for unreadable in folder.unreadable
    )
    return going


def _reclaim(
    store: Store, path: Path, now: datetime.datetime, grace: datetime.timedelta, tally: _Tally
) -> None:
    """Give back what nobody needs of the images given up longer than `grace` ago."""
    ripe: set[Path] = set()
    for image in read_folder(path).images:
        if image.state is not State.EXPIRED:
            continue
        since = actions.guarded_since(image.files)
        if since is None:  # its name is new, or a crash came before the guard
            actions.guard(image.files, now)
            since = now
        if now - since >= grace:
            ripe.add(image.files.path)
        else:
            tally.waiting.append(image.files.path)
    # Every reference that was published before the guards were written is seen from here on.
    folder = read_folder(path)
    _delete_abandoned(folder, now, grace, tally)
    folder = read_folder(path)
    if folder.unreadable:
        if ripe:
            tally.notes.append(
                f"{path}: no space is given back, as {folder.unreadable[0].files.path.name} "
                "does not tell what it needs"
            )
        return
    expendable = [
        image
        for image in folder.images
        if image.state is State.EXPIRED and image.files.path in ripe
    ]
    doubles = _doubles(expendable)
    for image in doubles:
        _delete(image.files, tally)
    expendable = [image for image in expendable if image not in doubles]
    if not expendable:
        return
    kept = [i for i in folder.images if i not in expendable and i not in doubles]
    for demand in demands([*kept, *expendable], kept):
        if demand.image not in expendable:
            continue
        if demand.referred_to:
            _give_back(demand, store.free()[0], tally)
            tally.borrowed.append(demand.image.files.path)
        else:
            _delete(demand.image.files, tally)


def _doubles(images: Sequence[StoredImage]) -> list[StoredImage]:
    """Of an image and its compact copy, when a crash left both: the one that can be spared.

    The other is the whole one, and of two that are whole the larger: it has all that anybody needs.
    """
    best: dict[str, StoredImage] = {}
    for image in images:
        other = best.get(image.uuid)
        if other is None or _worth(image) > _worth(other):
            best[image.uuid] = image
    return [image for image in images if best[image.uuid] is not image]


def _worth(image: StoredImage) -> tuple[bool, int]:
    return image.verdict != "unfinished", image.files.size()


def _delete_abandoned(
    folder: DiskFolder, now: datetime.datetime, grace: datetime.timedelta, tally: _Tally
) -> None:
    """Delete what interrupted captures left, once a later one has come to its end."""
    remove_leftovers(folder.path, (now - DEFAULT_GRACE).timestamp())
    left: list[tuple[ImageFiles, datetime.datetime | None]] = [
        (image.files, image.created) for image in folder.images
    ]
    left += ((unreadable.files, None) for unreadable in folder.unreadable)
    for files, created in left:
        named_so = any(file.name.endswith(PARTIAL_SUFFIX) for file in files.files)
        if files.state is not State.PARTIAL or not named_so:
            continue
        age = now.timestamp() - files.modified()
        later = [image for image in folder.complete if created is None or image.created > created]
        abandoned = bool(later) and age >= max(grace, DEFAULT_GRACE).total_seconds()
        # A copy's original is still there: it can go at once.
        if (abandoned or is_copy(files.path.name)) and not _is_written(files):
            _delete(files, tally)


def _is_written(files: ImageFiles) -> bool:
    """Whether a capture holds one of the files open, where locks tell."""
    for file in files.files:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
        finally:
            os.close(fd)
    return False


def _delete(files: ImageFiles, tally: _Tally) -> None:
    freed = files.allocated()
    actions.delete(files)
    remove_sidecars(files.path)
    tally.freed += freed
    tally.deleted.append(files.path)


def _give_back(demand: Demand, free: int, tally: _Tally) -> None:
    """Give back the frames that nobody needs, in whatever way the file system allows."""
    files = demand.image.files
    before = files.allocated()
    with ImageReader(files.opened_as) as image:
        size = image.file.size
        punched = all(_punch(image, start, end) for start, end in _unneeded(image, demand))
        unneeded = sum(end - start for start, end in _unneeded(image, demand))
    if punched:
        tally.freed += before - files.allocated()
        return
    if is_worthwhile(size, unneeded, free):
        copy = consolidate(files, demand.ranges)
        if copy is not None:
            remove_sidecars(files.path)
            tally.freed += before - copy.allocated()


def _punch(image: ImageReader, start: int, end: int) -> bool:
    """Punch a hole into a range of the image's bytes; whether that is possible."""
    for part in image.file.parts:
        first, last = max(start, part.start), min(end, part.end)
        if first < last and not actions.punch(part.path, first - part.start, last - part.start):
            return False
    return True


def _unneeded(image: ImageReader, demand: Demand) -> Iterator[tuple[int, int]]:
    """The ranges of the image's bytes that hold frames nobody needs, neighbours joined."""
    start = end = 0
    for entry in unneeded_frames(image, demand.ranges):
        if entry.offset != end:
            if start < end:
                yield start, end
            start = entry.offset
        end = entry.offset + entry.stored_size
    if start < end:
        yield start, end
