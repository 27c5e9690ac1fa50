"""What a job means on this machine: which image, which disk. Never a guess: one, or a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from imager.disk.identity import is_named
from imager.disk.inventory import Disk
from imager.disk.safety import summary
from imager.errors import ImageError, RefusedError
from imager.rescue.found_image import FoundImage, describe_image
from imager.rescue.kernel_line import ONLY_DISK, ImageChoice, TargetChoice
from imager.rescue.media import LIVE_LABEL, MediaVolume, mounted_read_only
from imager.wording import printable


def with_label(volumes: Iterable[MediaVolume], label: str) -> MediaVolume:
    """The volume with this label; RefusedError unless it is exactly one."""
    volumes = tuple(volumes)
    found = [volume for volume in volumes if volume.label == label]
    if len(found) == 1:
        return found[0]
    if found:
        listed = summary(tuple(volume.describe() for volume in found))
        raise RefusedError(f"more than one disk has the label {printable(label)}: {listed}")
    listed = summary(tuple(volume.title for volume in volumes)) or "none that can hold an image"
    raise RefusedError(
        f"no attached disk has a file system with the label {printable(label)}: there is {listed}"
    )


def image_at(volume: MediaVolume, choice: ImageChoice) -> FoundImage:
    """The image at the path of `choice`; ImageError where it is missing, or cannot be restored."""
    assert choice.path is not None
    with mounted_read_only(volume) as root:
        image = describe_image(volume, root, choice.path)
    if image.verdict in ("unreadable", "unfinished"):
        raise ImageError(f"{volume.title}: {printable(str(choice.path))}: {image.note}")
    return image


def newest(images: Sequence[FoundImage]) -> FoundImage:
    """The newest good one of one machine's one disk; RefusedError where that is not clear.

    `images`: the newest first.
    """
    good = [image for image in images if image.verdict == "ok" and image.created is not None]
    if not good:
        bad = summary(tuple(f"{image.path} ({image.note or 'no date'})" for image in images))
        raise RefusedError(f"no good image was found{': only ' + printable(bad) if bad else ''}")
    sources = dict.fromkeys(_source(image) for image in good)
    if len(sources) > 1:
        listed = summary(tuple(sources))
        raise RefusedError(
            f"there are images of several disks ({listed}), so the newest says nothing: "
            "write imager.image=LABEL:/path/to/image"
        )
    return good[0]


def choose_target(choice: TargetChoice, disks: Sequence[Disk], image: FoundImage) -> Disk:
    """The disk to overwrite, as far as its name goes; RefusedError unless it is exactly one.

    For "only-disk" USB disks, the medium, the disk that holds the image and what is read-only do
    not count, as these are what a person plugs in to rescue the machine. A disk that is too small
    does: to pass it over would be to guess.
    """
    if choice.key == ONLY_DISK:
        found = [disk for disk in disks if _is_eligible(disk, image)]
        if len(found) == 1:
            return found[0]
        if found:
            raise RefusedError(
                f"imager.target=only-disk, but there are {len(found)} disks: {_listed(found)}; "
                "write imager.target=serial:NUMBER"
            )
        raise RefusedError(
            "imager.target=only-disk, but there is no disk that it can mean "
            f"(USB disks, read-only ones and that with the image do not count): {_listed(disks)}"
        )
    found = [disk for disk in disks if is_named(disk.identity, choice.key, choice.value)]
    name = f"{choice.key}:{printable(choice.value)}"
    if len(found) == 1:
        return found[0]
    if found:
        raise RefusedError(f"imager.target={name} is more than one disk: {_listed(found)}")
    raise RefusedError(f"no disk is {name}: there is {_listed(disks)}")


def is_blank(disk: Disk) -> bool:
    """Whether nothing is known to be on a disk, as an interrupted restore leaves it."""
    return disk.table is None and disk.contents.kind is None and not disk.partitions


def _is_eligible(disk: Disk, image: FoundImage) -> bool:
    identity = disk.identity
    holder = image.volume.disk
    labels = {disk.contents.label, *(part.contents.label for part in disk.partitions)}
    return not (
        disk.is_system
        or LIVE_LABEL in labels
        or identity.read_only
        or identity.removable
        or identity.transport == "usb"
        or (holder is not None and holder.name == identity.name)
    )


def _source(image: FoundImage) -> str:
    """The disk that was imaged, and its machine, in words that tell it from others."""
    disk = image.disk
    name = (disk.wwn or disk.serial or f"{disk.model} {disk.size}") if disk else "unknown disk"
    return f"{image.host or 'unknown machine'}: {name}"


def _listed(disks: Sequence[Disk]) -> str:
    return summary(tuple(disk.identity.describe() for disk in disks)) or "none"
