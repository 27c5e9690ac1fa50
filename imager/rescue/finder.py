"""Which images are on the attached disks, read from the images themselves.

Whoever attaches a disk decides what is on it: names, sizes and contents are untrusted. So a search
is bounded in depth, files and time, follows no links, and opens only what begins like an image; and
nothing stays mounted that a restore might have as its target.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imager.errors import ImagerError
from imager.image.format import OPENING_SIZE, Tag
from imager.image.opening import is_opening
from imager.image.records import record_pattern
from imager.image.sink import PART_NAME
from imager.rescue.found_image import GIVEN_UP, FoundImage, describe_image, with_parents
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

Looking = Callable[[MediaVolume], None]
"""Called with each volume before it is looked into."""
Clock = Callable[[], float]


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
    end: float
    """When it is given up, as the clock has it."""
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
                search = _Search(root, clock, clock() + MAX_SECONDS)
                images += _with_parents(search, tuple(_images(search, volume)))
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
        yield describe_image(volume, search.root, path)


def _with_parents(search: _Search, found: tuple[FoundImage, ...]) -> Iterator[FoundImage]:
    """Those that are to be shown, as orphans where their parents are missing; as time allows."""
    for image in found:
        if image.verdict != GIVEN_UP:
            late = search.clock() > search.end
            yield image if late else with_parents(image, found, search.root)


def _files(search: _Search) -> Iterator[Path]:
    """Files that may be images, those near the root first."""
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
            if search.clock() > search.end:
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


def _age(image: FoundImage) -> tuple[bool, float]:
    """Sorts the newest first."""
    if image.created is None:
        return (True, 0.0)
    return (False, -image.created.timestamp())
