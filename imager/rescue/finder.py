"""Which images are on the attached disks, read from the images themselves.

Whoever attaches a disk decides what is on it: names, sizes and contents are untrusted. So a search
is bounded in depth, files and time, follows no links, and opens only what begins like an image; and
nothing stays mounted that a restore might have as its target.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from uuid import UUID

from imager.disk.identity import Identity
from imager.errors import ImageError, ImagerError, RefusedError
from imager.image.format import OPENING_SIZE, Tag
from imager.image.opening import is_opening
from imager.image.origin import FileOrigin
from imager.image.reader import Completeness, ImageReader
from imager.image.records import record_pattern
from imager.image.sink import PART_NAME
from imager.rescue.media import MediaVolume, mounted_read_only
from imager.wording import printable

MAX_DEPTH = 6
"""Folders below the root that are entered."""
MAX_ENTRIES = 50_000
"""Names looked at on a volume."""
MAX_IMAGES = 500
"""Images listed from a volume."""
MAX_SECONDS = 60.0
"""After which a volume is left; one slow file may take longer."""
_NEAR_ROOT = 1
"""Folders below the root in which a file may be called anything."""
_LISTED = 3
_MAX_NAME = 64

Looking = Callable[[MediaVolume], None]
"""Called with each volume before it is looked into."""
Clock = Callable[[], float]


GIVEN_UP = "given up"


@dataclass(frozen=True)
class FoundImage:
    """An image as it describes itself; what it says is proven only when it is verified."""

    volume: MediaVolume
    path: PurePosixPath
    """From the volume's root; for a split image the name that its parts share."""
    size: int
    """Bytes of the file, or of all parts."""
    created: datetime | None
    host: str | None
    disk: Identity | None
    """The imaged disk."""
    disk_size: int
    verdict: str
    """`ok`, `degraded` or, as the image is not complete, `unfinished`; `unreadable`; `given up`
    by a prune of its store, so that it only serves newer images: never found."""
    note: str
    """Why it is not `ok`, as a clause; empty if it is."""
    uuid: str
    """As imager info prints it; empty where unreadable."""


@dataclass(frozen=True)
class FoundImages:
    """What a search has found."""

    images: tuple[FoundImage, ...]
    """The newest first, those without a date last."""
    problems: tuple[str, ...]
    """What could not be looked into, or not to its end; one line each."""


@dataclass
class _Search:
    """One volume being looked through."""

    root: Path
    clock: Clock
    foreign: list[str] = field(default_factory=list)
    """Files that are named like images and are none."""
    cut: str = ""
    """Why the search ended early."""


def no_looking(volume: MediaVolume) -> None:
    """For callers who do not care."""


def find_images(
    volumes: Iterable[MediaVolume],
    looking: Looking = no_looking,
    clock: Clock = time.monotonic,
) -> FoundImages:
    """The images on `volumes`, each of which is mounted while it is looked into, and no longer.

    Whatever is wrong with a volume or an image is among the results; nothing is raised for it.
    """
    images: list[FoundImage] = []
    problems: list[str] = []
    for volume in volumes:
        looking(volume)
        try:
            with mounted_read_only(volume) as root:
                search = _Search(root, clock)
                images += _images(search, volume)
        except ImagerError as error:
            problems.append(str(error))
            continue
        if search.foreign:
            more = len(search.foreign) - _LISTED
            names = ", ".join(search.foreign[:_LISTED]) + (f" and {more} more" if more > 0 else "")
            problems.append(f"{volume.title}: no imager images in spite of their names: {names}")
        if search.cut:
            problems.append(f"{volume.title} was not looked through to its end: {search.cut}")
    return FoundImages(tuple(sorted(images, key=_age)), tuple(problems))


def describe_image(volume: MediaVolume, root: Path, path: PurePosixPath) -> FoundImage:
    """What the image at `path` on a volume that is mounted on `root` says of itself."""
    file = place_of(root, path)
    try:
        with ImageReader(file) as image:
            return _description(volume, path, image)
    except (ImagerError, OSError) as error:
        reason = str(error).replace(str(file), path.name).replace(f"{root}/", "")
        size = _size(file)
        return FoundImage(
            *(volume, path, size, None, None, None, 0, "unreadable", printable(reason), "")
        )


@contextlib.contextmanager
def open_found(image: FoundImage) -> Iterator[FileOrigin]:
    """The image, to restore from; its volume is mounted (read-only) until the end.

    Raises ReadFailedError where the volume cannot be mounted, ImageError where the image is gone
    or no longer the one that was found.
    """
    with mounted_read_only(image.volume) as root:
        if describe_image(image.volume, root, image.path).uuid != image.uuid:
            raise ImageError(f"{image.volume.title}: {image.path} is not the image it was")
        with FileOrigin(place_of(root, image.path)) as origin:
            yield origin


def place_of(root: Path, path: PurePosixPath) -> Path:
    """Where `path` of a volume is; RefusedError where its links lead out of the volume."""
    try:
        place = (root / str(path).lstrip("/")).resolve()
        inside = place.is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        raise RefusedError(f"{printable(str(path))}: its links lead nowhere") from None
    if not inside:
        raise RefusedError(f"{printable(str(path))} leads out of its disk")
    return place


def _images(search: _Search, volume: MediaVolume) -> Iterator[FoundImage]:
    seen: set[PurePosixPath] = set()
    for file in _files(search):
        match = PART_NAME.fullmatch(file.name)
        path = PurePosixPath(file.relative_to(search.root))
        if match is not None:
            path = path.with_name(match["image"])
        if path in seen:
            continue
        if not _begins_like_an_image(file):
            if file.suffix == ".img" and _worth_a_word(search, file):
                search.foreign.append(printable(str(path)))
            continue
        seen.add(path)
        if len(seen) > MAX_IMAGES:
            search.cut = f"it holds more than {MAX_IMAGES} images"
            return
        found = describe_image(volume, search.root, path)
        if found.verdict != GIVEN_UP:
            yield found


def _files(search: _Search) -> Iterator[Path]:
    """Files that may be images, those near the root first."""
    end = search.clock() + MAX_SECONDS
    folders = deque([(search.root, 0)])
    entries = 0
    while folders:
        folder, depth = folders.popleft()
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            entries += 1
            if entries > MAX_ENTRIES:
                search.cut = f"it holds more than {MAX_ENTRIES} files"
                return
            if search.clock() > end:
                search.cut = f"it took longer than {MAX_SECONDS:.0f} seconds"
                return
            path = folder / name
            try:
                mode = path.lstat().st_mode
            except OSError:
                continue
            if stat.S_ISDIR(mode) and depth < MAX_DEPTH:
                folders.append((path, depth + 1))
            elif stat.S_ISREG(mode) and (depth <= _NEAR_ROOT or _is_named_like_one(name)):
                yield path


def _is_named_like_one(name: str) -> bool:
    return name.endswith((".img", ".partial")) or PART_NAME.fullmatch(name) is not None


def _worth_a_word(search: _Search, file: Path) -> bool:
    """Whether a person may take it for an image: near the root, or where captures go."""
    depth = len(file.relative_to(search.root).parts) - 1
    return depth == 0 or file.parent.name == "images"


_RECORD = record_pattern(Tag.HEAD, Tag.PART)


def _begins_like_an_image(file: Path) -> bool:
    """Whether it has the opening, the head behind a damaged opening, or is a later part."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            data = os.pread(fd, OPENING_SIZE + 64, 0)
        finally:
            os.close(fd)
    except OSError:
        return False
    head = _RECORD.match(data, OPENING_SIZE) is not None
    return is_opening(data) or head or _RECORD.match(data) is not None


def _description(volume: MediaVolume, path: PurePosixPath, image: ImageReader) -> FoundImage:
    facts = image.head.facts
    host = facts.get("host")
    name = host.get("name") if isinstance(host, dict) else None
    verdict, note = _verdict(image)
    return FoundImage(
        volume=volume,
        path=path,
        size=image.file.size,
        created=_created(facts.get("created")),
        host=printable(name)[:_MAX_NAME] or None if isinstance(name, str) else None,
        disk=_identity(facts.get("source")),
        disk_size=image.head.disk_size,
        verdict=verdict,
        note=printable(note),
        uuid=str(UUID(bytes=image.uuid)),
    )


def _verdict(image: ImageReader) -> tuple[str, str]:
    if image.expired:
        return GIVEN_UP, "a prune gave it up"
    if image.completeness is Completeness.UNFINISHED:
        return "unfinished", "its capture was interrupted"
    if image.completeness is Completeness.CUT_SHORT:
        return "unfinished", "it is cut short: its end is missing"
    problem = next(iter(image.problems), None)
    if image.manifest is None:
        return "degraded", "its manifest is damaged: check it before you rely on it"
    if problem is not None:
        return "degraded", f"damaged ({problem.message}): check it before you rely on it"
    if image.manifest.verdict == "degraded":
        return "degraded", "parts of the disk could not be read when it was captured"
    return "ok", ""


def _created(value: object) -> datetime | None:
    """The time of capture, with its zone; None where the image does not tell it sensibly."""
    if not isinstance(value, str):
        return None
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        return None
    return when if when.tzinfo is not None else None


def _identity(value: object) -> Identity | None:
    try:
        return Identity.from_json(value)
    except ValueError:
        return None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _age(image: FoundImage) -> tuple[bool, float]:
    """Sorts the newest first."""
    if image.created is None:
        return (True, 0.0)
    return (False, -image.created.timestamp())
