"""One image on a volume: what it says of itself, and opening it.

What an image says is proven only when it is verified; until then it is text from a stranger.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from uuid import UUID

from imager.disk.identity import Identity
from imager.errors import ImageError, ImagerError, RefusedError
from imager.image.chain import Chain
from imager.image.origin import FileOrigin
from imager.image.reader import Completeness, ImageReader
from imager.rescue.media import MediaVolume, mounted_read_only
from imager.wording import printable

GIVEN_UP = "given up"
ORPHANED = "orphaned"
NOT_WHOLE = ("unfinished", "unreadable")
"""Verdicts of images that have lost something themselves, whatever they refer to."""
_MAX_NAME = 64


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
    """`ok`, `degraded` or, as the image is not complete, `unfinished`; `orphaned` where an image is
    missing that it refers to; `unreadable`; `given up` by a prune of its store, so that it only
    serves newer images: never found."""
    note: str
    """Why it is not `ok`, as a clause; empty if it is."""
    uuid: str
    """As imager info prints it; empty where unreadable."""
    refers_to: tuple[str, ...] = ()
    """The UUIDs of the images that it needs."""


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


def with_parents(image: FoundImage, found: Sequence[FoundImage], root: Path) -> FoundImage:
    """`image`, as `orphaned` where one that it needs is missing; `found` are those on its volume.

    What is in `found` is believed; only where something seems to be missing the files are opened.
    """
    folder = {each.uuid: each for each in found if each.path.parent == image.path.parent}
    todo, seen = [image], {image.uuid}
    while todo:
        for uuid in todo.pop().refers_to:
            if uuid not in folder or folder[uuid].verdict in NOT_WHOLE:
                return _asked(image, root)
            if uuid not in seen:
                seen.add(uuid)
                todo.append(folder[uuid])
    return image


def _asked(image: FoundImage, root: Path) -> FoundImage:
    """`image` with what its chain itself says."""
    if image.verdict in NOT_WHOLE:
        return image
    try:
        with Chain(place_of(root, image.path)) as chain:
            reason = chain.broken
    except (ImagerError, OSError) as error:
        reason = str(error)
    if not reason:
        return image
    reason = reason.replace(f"{root}/", "").replace(str(root), "its folder")
    return replace(image, verdict=ORPHANED, note=printable(reason))


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
        refers_to=tuple(str(UUID(bytes=each.uuid)) for each in image.head.parents),
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
