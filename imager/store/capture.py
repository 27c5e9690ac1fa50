"""Capture into a store: what differs from the newest good image of the same disk, or all of it.

An image that was given up before the new one's head could be seen is not referred to: the one before
it is tried, and at last the disk is stored whole. What is given up later is kept as long as the new
image needs it. Whether all of it is there is looked at once more when the new image has its name: had
a person deleted it, the disk is captured again, whole, and the image without a parent is deleted.
"""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from imager.capture import CaptureOptions, CaptureResult, capture
from imager.disk.source import SourceDevice
from imager.errors import ImageError, ReadFailedError, RefusedError, WriteFailedError
from imager.extents import Extents
from imager.image.sink import MIN_PART
from imager.pipeline import Progress, no_progress
from imager.preview import Preview, preview
from imager.store import actions
from imager.store.catalog import (
    DiskFolder,
    State,
    StoredImage,
    find_images,
    read_folder,
    read_image,
)
from imager.store.disk_key import key_of_device
from imager.store.folder import Store, disk_lock
from imager.store.names import image_name, slug
from imager.wording import printable

MAX_CHAIN = 60
"""Images that build upon each other before a full one begins anew."""
_ATTEMPTS = 100


@dataclass(frozen=True)
class StoredCapture:
    """A finished capture into a store."""

    image: Path
    result: CaptureResult
    parent: Path | None
    """What it refers to; None for a full image."""
    why_full: str
    """Why it is a full image, for a person."""
    healed: Extents
    """Disk ranges that a check found damaged in older images, and that were stored anew."""
    size: int
    """Bytes that the image added."""


class _Disk(NamedTuple):
    """The disk that is to be captured; sizes in bytes."""

    key: str
    size: int
    sector_size: int


@dataclass(frozen=True)
class _Base:
    """An image to refer to, and what of it is known to be damaged."""

    image: StoredImage
    distrusted: Extents


def capture_into(
    store: Store,
    source: str | Path,
    options: CaptureOptions,
    now: datetime.datetime | None = None,
    *,
    full: bool = False,
    max_chain: int = MAX_CHAIN,
    progress: Progress = no_progress,
) -> StoredCapture:
    """Store the disk `source` in `store`.

    Errors are those of `capture`; RefusedError also where the disk cannot be told from others or
    somebody else is working on its folder.
    """
    disk = _look_at(source, options)
    folder = disk_folder(store, platform.node(), disk.key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteFailedError(f"{folder} cannot be made: {error.strerror}") from None
    options = replace(options, split=_part_size(store, options))
    with disk_lock(folder):
        if options.resume:
            return _resume(folder, source, options, progress)
        bases, why_full = _choose(read_folder(folder), disk, options, full, max_chain)
        for base in bases:
            based = replace(options, parent=base.image.files.opened_as, distrusted=base.distrusted)
            try:
                done = _capture(folder, source, based, now, base, "", progress)
            except ImageError as error:
                why_full = str(error)  # the parent is damaged: try the one before
                continue
            if not done.result.parent_problem:
                return done
            # Somebody deleted it while we wrote: what we wrote cannot be read any more.
            why_full = done.result.parent_problem
            whole = _capture(folder, source, options, now, None, why_full, progress)
            _remove(done.image)
            return whole
        return _capture(folder, source, options, now, None, why_full, progress)


def preview_into(
    store: Store,
    source: str | Path,
    options: CaptureOptions,
    *,
    full: bool = False,
    max_chain: int = MAX_CHAIN,
    progress: Progress = no_progress,
) -> tuple[Preview, str]:
    """What `capture_into` would store, and in words what would become of it."""
    disk = _look_at(source, options)
    folder = disk_folder(store, platform.node(), disk.key)
    found = read_folder(folder) if folder.is_dir() else DiskFolder(folder, (), ())
    bases, why_full = _choose(found, disk, options, full, max_chain)
    for base in bases:
        based = replace(options, parent=base.image.files.opened_as, distrusted=base.distrusted)
        try:
            expected = preview(source, based, progress)
        except ImageError as error:
            why_full = str(error)
            continue
        return expected, f"{folder}: incremental, against {base.image.files.path}"
    return preview(source, options, progress), f"{folder}: full: {why_full}"


def _look_at(source: str | Path, options: CaptureOptions) -> _Disk:
    with SourceDevice(Path(source), sector_size=options.sector_size) as device:
        return _Disk(key_of_device(device), device.size, device.sector_size)


def disk_folder(store: Store, host: str, key: str) -> Path:
    """Where this machine's images of the disk are, whatever the folder was renamed to."""
    usual = store.path / slug(host) / slug(key)
    every = store.disk_folders()
    for folder in sorted(every, key=lambda folder: folder != usual):
        newest = _newest(folder)
        if newest is not None and (newest.host, newest.disk) == (printable(host), key):
            return folder
    return usual


def _newest(folder: Path) -> StoredImage | None:
    """The image whose name is the last, if it can be read; else the one before, and so on."""
    for files in reversed(find_images(folder)):
        if files.state is State.COMPLETE:
            try:
                return read_image(files)
            except (ImageError, ReadFailedError, OSError):
                continue
    return None


def _part_size(store: Store, options: CaptureOptions) -> int | None:
    largest = store.part_size()
    if options.split is None or largest is None:
        return options.split or largest
    return max(MIN_PART, min(options.split, largest))


def _choose(
    folder: DiskFolder, disk: _Disk, options: CaptureOptions, full: bool, max_chain: int
) -> tuple[tuple[_Base, ...], str]:
    """The images that a new one may refer to, the best first; why there is none, if so."""
    if full:
        return (), "a full image was asked for"
    images = folder.of(printable(platform.node()), disk.key)
    if not images:
        return (), "it is the first image of this disk"
    head = images[0].head
    if (head.disk_size, head.sector_size) != (disk.size, disk.sector_size):
        return (), "the disk has another size than it had"
    if head.chunk_size != options.chunk_size:
        return (), "its chunks have another size than those of the images before"
    by_uuid = {image.uuid: image for image in folder.images}
    if _chain_length(images[0], by_uuid) >= max_chain:
        return (), f"{max_chain} images build upon each other already"
    same = [image for image in images[:_TRIED] if _geometry(image) == _geometry(images[0])]
    return tuple(_Base(image, _damaged_since(image, images)) for image in same), ""


def _geometry(image: StoredImage) -> tuple[int, int, int]:
    return image.head.disk_size, image.head.sector_size, image.head.chunk_size


_TRIED = 3
"""Images that are tried as a parent, the newest first, before a full one is written."""


def _chain_length(image: StoredImage, by_uuid: dict[str, StoredImage]) -> int:
    """How many images a restore of this one opens."""
    seen: set[str] = set()
    step: StoredImage | None = image
    while step is not None and step.uuid not in seen:
        seen.add(step.uuid)
        step = by_uuid.get(step.parents[0]) if step.parents else None
    return len(seen)


def _damaged_since(image: StoredImage, images: tuple[StoredImage, ...]) -> Extents:
    """Disk ranges that a check found lost after this image was captured.

    What was known before, its own capture has stored anew.
    """
    damaged = Extents()
    for other in images:
        if other.check is not None and other.check.when >= image.created:
            damaged |= other.check.lost
    size = image.head.disk_size
    return damaged.align(image.head.chunk_size).clip(0, size) if size else damaged


def _capture(
    folder: Path,
    source: str | Path,
    options: CaptureOptions,
    now: datetime.datetime | None,
    base: _Base | None,
    why_full: str,
    progress: Progress,
) -> StoredCapture:
    taken = {files.path for files in find_images(folder)}
    moment = now or datetime.datetime.now().astimezone()
    names = (folder / image_name(moment, attempt) for attempt in range(1, _ATTEMPTS))
    path = next(name for name in names if name not in taken)
    result = capture(source, path, replace(options, created=moment), progress)
    return _stored(path, result, base, why_full)


def _stored(path: Path, result: CaptureResult, base: _Base | None, why_full: str) -> StoredCapture:
    return StoredCapture(
        path,
        result,
        base.image.files.path if base else None,
        why_full,
        base.distrusted if base else Extents(),
        result.image.size,
    )


def _resume(
    folder: Path, source: str | Path, options: CaptureOptions, progress: Progress
) -> StoredCapture:
    """Go on with the newest capture that was interrupted."""
    found = read_folder(folder)
    left = [image for image in found.images if image.state is State.PARTIAL]
    if not left:
        raise RefusedError(f"nothing in {folder} was left from an interrupted capture")
    partial = left[0]
    base = None
    if partial.parents:
        parent = next((i for i in found.complete if i.uuid == partial.parents[0]), None)
        if parent is None:
            raise RefusedError(
                f"{partial.files.path} refers to an image that is no longer there: capture anew"
            )
        base = _Base(parent, _damaged_since(parent, found.complete))
        options = replace(options, parent=parent.files.opened_as, distrusted=base.distrusted)
    result = capture(source, partial.files.path, options, progress)
    return _stored(partial.files.path, result, base, "")


def _remove(image: Path) -> None:
    """Delete an image that nobody can read."""
    for files in find_images(image.parent):
        if files.path == image:
            actions.delete(files)
