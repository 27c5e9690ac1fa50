"""What is in a store, read from the images' heads and manifests.

Heads are untrusted: an image that cannot be read, or whose head makes no sense, is listed as such,
and neither counted nor ever pruned.
"""

from __future__ import annotations

import datetime
import enum
import os
import uuid as uuid_module
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imager.errors import ImageError, ReadFailedError
from imager.image.format import OPENING_SIZE
from imager.image.head import Head, get
from imager.image.opening import expired_since
from imager.image.reader import Completeness, ImageReader
from imager.image.sink import PART_NAME
from imager.store.disk_key import key_of_head
from imager.store.folder import Store
from imager.store.names import EXPIRED_SUFFIX, IMAGE_SUFFIX, PARTIAL_SUFFIX
from imager.store.retention import Candidate, Quality
from imager.store.sidecar import CheckRecord, is_pinned, last_check
from imager.wording import printable

_LAST = ".last"


class State(enum.Enum):
    """What became of an image, as its name says it."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    """Being written, or left by a capture that was interrupted."""
    EXPIRED = "expired"
    """Given up; what other images borrow from it is still there."""


@dataclass(frozen=True)
class ImageFiles:
    """The files of one image."""

    path: Path
    """What it is called, without the marks of its state: also where its sidecars are named after."""
    state: State
    files: tuple[Path, ...]

    @property
    def opened_as(self) -> Path:
        """The path by which a reader opens it."""
        split = PART_NAME.fullmatch(self.files[0].name) is not None
        return self.path if split else self.files[0]

    def size(self) -> int:
        """Bytes of its files."""
        return sum(status.st_size for status in _statuses(self.files))

    def allocated(self) -> int:
        """Bytes that it takes of the file system: fewer where holes were punched."""
        return sum(status.st_blocks * 512 for status in _statuses(self.files))

    def modified(self) -> float:
        """When one of its files was last written, seconds since the epoch."""
        return max((status.st_mtime for status in _statuses(self.files)), default=0.0)


@dataclass(frozen=True)
class StoredImage:
    """An image whose head was read."""

    files: ImageFiles
    uuid: str
    created: datetime.datetime
    host: str
    disk: str
    """The disk's key (see `disk_key`)."""
    head: Head
    """Without what is long and not needed here: its facts are only the parents."""
    verdict: str
    """Of the capture: "ok" or "degraded"; "unfinished" where its end is not there."""
    content_digest: bytes
    check: CheckRecord | None
    pinned: bool
    orphaned: bool = False
    """Whether an image that it needs is not in its folder."""

    @property
    def name(self) -> str:
        """For a person and as a key within its folder."""
        return self.files.path.name

    @property
    def state(self) -> State:
        """As `ImageFiles.state`."""
        return self.files.state

    @property
    def parents(self) -> tuple[str, ...]:
        """The UUIDs of the images that it refers to."""
        return tuple(str(uuid_module.UUID(bytes=parent.uuid)) for parent in self.head.parents)

    @property
    def quality(self) -> Quality:
        """How good it is, as far as known."""
        failed = self.check is not None and not self.check.passed
        if self.verdict == "unfinished" or self.orphaned or failed:
            return Quality.DAMAGED
        return Quality.DEGRADED if self.verdict == "degraded" else Quality.GOOD

    def candidate(self) -> Candidate:
        """The image as the rules of retention see it."""
        return Candidate(
            self.name,
            self.created,
            self.quality,
            self.check is not None and self.check.passed,
            self.pinned,
        )


@dataclass(frozen=True)
class Unreadable:
    """Files that look like an image but cannot be read as one."""

    files: ImageFiles
    reason: str


@dataclass(frozen=True)
class DiskFolder:
    """All images in one folder."""

    path: Path
    images: tuple[StoredImage, ...]
    """Newest first, of every state."""
    unreadable: tuple[Unreadable, ...]

    @property
    def complete(self) -> tuple[StoredImage, ...]:
        """Those that can be restored, newest first."""
        return tuple(image for image in self.images if image.state is State.COMPLETE)

    def disks(self) -> tuple[tuple[str, str], ...]:
        """The machines and disks that its complete images are of; usually one."""
        return tuple(dict.fromkeys((image.host, image.disk) for image in self.complete))

    def of(self, host: str, disk: str) -> tuple[StoredImage, ...]:
        """The complete images of this disk of this machine, newest first."""
        return tuple(i for i in self.complete if (i.host, i.disk) == (host, disk))


def read_store(store: Store) -> tuple[DiskFolder, ...]:
    """Everything in the store."""
    return tuple(read_folder(path) for path in store.disk_folders())


def read_folder(path: Path) -> DiskFolder:
    """Everything in one disk's folder.

    An image that gets another name meanwhile is not missed: the folder is read again until its
    names are the same before and after. ReadFailedError where it never comes to rest.
    """
    listed = find_images(path)
    for _ in range(_LOOKS):
        folder = _read(path, listed)
        before, listed = listed, find_images(path)
        if listed == before:
            return folder
    raise ReadFailedError(f"{path}: its files change their names faster than they can be read")


_LOOKS = 20


def _read(path: Path, listed: Iterable[ImageFiles]) -> DiskFolder:
    images: list[StoredImage] = []
    unreadable: list[Unreadable] = []
    for files in listed:
        try:
            images.append(read_image(files))
        except (ImageError, ReadFailedError, OSError) as error:
            unreadable.append(Unreadable(files, str(error)))
    images.sort(key=lambda image: (image.created, len(image.name), image.name), reverse=True)
    readable = {image.uuid: image for image in images if image.state is not State.PARTIAL}
    found = tuple(replace(image, orphaned=_is_orphaned(image, readable)) for image in images)
    return DiskFolder(path, found, tuple(unreadable))


def _is_orphaned(image: StoredImage, readable: dict[str, StoredImage]) -> bool:
    """Whether one of all the images that it needs is missing, or it needs itself."""
    seen: set[str] = set()
    waiting = list(image.parents)
    while waiting:
        uuid = waiting.pop()
        if uuid == image.uuid or uuid not in readable:
            return True
        if uuid not in seen:
            seen.add(uuid)
            waiting += readable[uuid].parents
    return False


def find_images(folder: Path) -> tuple[ImageFiles, ...]:
    """The images in a folder by the names of their files, in order of their names."""
    found: dict[Path, dict[State, list[Path]]] = {}
    for file in sorted(folder.iterdir()):
        place = _place(file)
        if place is not None:
            base, state = place
            found.setdefault(base, {}).setdefault(state, []).append(file)
    return tuple(image for base, by_state in found.items() for image in _joined(base, by_state))


def _place(file: Path) -> tuple[Path, State] | None:
    """Which image a file belongs to, and what its own name says of its state."""
    part = PART_NAME.fullmatch(file.name)
    if part is not None and part["image"].endswith(IMAGE_SUFFIX):
        base = file.with_name(part["image"])
        if part["partial"]:
            return base, State.PARTIAL
        return base, State.EXPIRED if part["last"] == EXPIRED_SUFFIX else State.COMPLETE
    if file.name.endswith(IMAGE_SUFFIX):
        return file, State.COMPLETE
    if file.name.endswith(IMAGE_SUFFIX + EXPIRED_SUFFIX):
        return file.with_suffix(""), State.EXPIRED
    if file.name.endswith(IMAGE_SUFFIX + PARTIAL_SUFFIX):
        return file.with_suffix(""), State.PARTIAL
    return None


def _joined(base: Path, by_state: dict[State, list[Path]]) -> Iterator[ImageFiles]:
    """Parts of one image together: the last one's name says what state it is in."""
    complete = by_state.get(State.COMPLETE, [])
    parts = [file for file in complete if _is_part(file)]
    expired = by_state.get(State.EXPIRED, [])
    partial = by_state.get(State.PARTIAL, [])
    if parts and expired and _is_part(expired[0]):
        yield ImageFiles(base, State.EXPIRED, (*parts, *expired))
    elif parts and not any(file.name.endswith(_LAST) for file in parts):
        # Some parts have their names, the last one not yet: the capture did not come to its end.
        yield ImageFiles(base, State.PARTIAL, tuple(sorted((*parts, *partial))))
        partial = []
    elif parts:
        yield ImageFiles(base, State.COMPLETE, tuple(parts))
    if base in complete:
        yield ImageFiles(base, State.COMPLETE, (base,))
    if expired and not (parts and _is_part(expired[0])):
        yield ImageFiles(base, State.EXPIRED, tuple(expired))
    if partial:
        yield ImageFiles(base, State.PARTIAL, tuple(partial))


def _is_part(file: Path) -> bool:
    return PART_NAME.fullmatch(file.name) is not None


def read_image(files: ImageFiles) -> StoredImage:
    """Read an image's head and end; ImageError where it does not say what it is."""
    with ImageReader(files.opened_as) as image:
        head = image.head
        if expired_since(image.file.read(0, OPENING_SIZE)):
            files = replace(files, state=State.EXPIRED)  # whatever a crash left of its name
        uuid = image.uuid_text
        complete = image.completeness is Completeness.COMPLETE
        verdict = image.manifest.verdict if image.manifest else "ok"
        return StoredImage(
            files=files,
            uuid=uuid,
            created=_created(head),
            host=host_of(head),
            disk=key_of_head(head),
            head=replace(head, facts={"parents": head.facts.get("parents", [])}),
            verdict=verdict if complete else "unfinished",
            content_digest=image.footer.content_digest if image.footer else b"",
            check=last_check(files.path, uuid),
            pinned=is_pinned(files.path),
        )


def host_of(head: Head) -> str:
    """The name of the machine that an image says it is of, safe to show."""
    host = head.facts.get("host")
    name = host.get("name") if isinstance(host, dict) else None
    return printable(name) if isinstance(name, str) and name else "unnamed"


def _created(head: Head) -> datetime.datetime:
    try:
        created = datetime.datetime.fromisoformat(get(head.facts, "created", str))
        created.astimezone(datetime.UTC)  # one that no other zone can express is no date
    except (ValueError, OverflowError):
        created = datetime.datetime.min
    if created.tzinfo is None:
        raise ImageError("the image does not say when it was captured")
    return created


def _statuses(files: Iterable[Path]) -> Iterable[os.stat_result]:
    for file in files:
        try:
            yield file.stat()
        except FileNotFoundError:
            continue  # renamed or deleted meanwhile
