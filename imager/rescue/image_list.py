"""The images found, as a list to choose from: the machine's own newest good one first in line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime

from imager.disk.inventory import Disk
from imager.errors import ImagerError
from imager.rescue.finder import FoundImages, find_images
from imager.rescue.found_image import FoundImage
from imager.rescue.lock import working
from imager.rescue.media import MediaVolume, folder_volume
from imager.rescue.screen import Choice
from imager.rescue.session import Session, without_mounts
from imager.rescue.shares import Share, mounted_share
from imager.rescue.targets import is_same_disk
from imager.wording import format_age, format_size, printable, shorten

VERDICTS = {
    "ok": "ok",
    "degraded": "DEGRADED",
    "unfinished": "UNFINISHED",
    "orphaned": "NO PARENT",
    "unreadable": "UNREADABLE",
}
USABLE = ("ok", "degraded")
"""Verdicts of images that a disk can be restored from as it was captured."""
_LISTED = 300
"""Lines of a menu that anybody can still use."""

Located = tuple[FoundImage, Share | None]
"""An image, and the share that it is on, if it is on one."""


class Findings:
    """What a search over disks and shares has found."""

    def __init__(self, images: Sequence[Located], problems: Sequence[str]) -> None:
        self.images = tuple(images)[:_LISTED]
        self.problems = tuple(problems)

    def number_of(self, located: Located | None) -> int | None:
        """The place of an image in the list."""
        return self.images.index(located) if located in self.images else None

    def preselected(self, disks: Sequence[Disk], machine: str) -> int | None:
        """The newest good image of this machine's own disk, else of `machine`, else of any."""
        good = [
            number for number, (image, _) in enumerate(self.images) if image.verdict == "ok"
        ] or [
            number for number, (image, _) in enumerate(self.images) if image.verdict == "degraded"
        ]
        own = [
            number
            for number in good
            if any(is_same_disk(disk.identity, self.images[number][0].disk) for disk in disks)
        ]
        named = [number for number in good if machine and self.images[number][0].host == machine]
        return next(iter(own or named or good), None)


def search(session: Session) -> Findings:
    """Look on all attached disks, the stick, and the shares; says on the screen where it is.

    Raises RefusedError while another console is at work.
    """
    session.journal.note("looking for images")

    def looking(volume: MediaVolume) -> None:
        session.screen.notice("Looking for images", f"Looking on {volume.describe()} ...")

    with working(session.lock, session.words("looking for images")):
        session.screen.notice("Looking for images", "Looking which disks there are ...")
        local = find_images(session.machine.volumes(), looking)
        images: list[Located] = [(image, None) for image in local.images]
        problems = [without_mounts(line) for line in local.problems]
        for share in session.shares:
            session.screen.notice("Looking for images", f"Looking on {share.address} ...")
            found = _on_share(session, share)
            images += [(image, share) for image in found.images]
            problems += found.problems
    images.sort(key=_newest_first)
    session.journal.note(f"{len(images)} images found", *problems)
    return Findings(images, problems)


def choices(findings: Findings, now: datetime) -> list[Choice]:
    """A menu's lines."""
    return [
        Choice(str(number), _line(image, now), _help(image, share))
        for number, (image, share) in enumerate(findings.images, 1)
    ]


def name_of(image: FoundImage) -> str:
    """How a sentence calls an image."""
    when = f" of {image.created:%Y-%m-%d %H:%M}" if image.created else ""
    return f"{printable(image.host or image.path.name)}{when}"


def place_name(image: FoundImage, share: Share | None) -> str:
    """Where an image is: "images/office-pc.img on sdc3 (IMAGER_DATA)"."""
    return printable(f"{image.path} on {share.address if share else image.volume.title}")


def on_share(
    session: Session, image: FoundImage, share: Share | None, stack: ExitStack
) -> FoundImage:
    """`image` as it can be opened now; its share, if any, stays mounted as long as `stack` lasts."""
    if share is None:
        return image
    place = stack.enter_context(mounted_share(share, session.machine.state))
    volume = folder_volume(place, share.address)
    return replace(image, volume=volume)


def _on_share(session: Session, share: Share) -> FoundImages:
    try:
        with mounted_share(share, session.machine.state) as place:
            found = find_images([folder_volume(place, share.address)])
            problems = (line.replace(str(place), share.address) for line in found.problems)
            return FoundImages(found.images, tuple(problems))
    except ImagerError as error:
        return FoundImages((), (str(error),))


def _newest_first(located: Located) -> tuple[bool, float]:
    created = located[0].created
    return (created is None, -created.timestamp() if created else 0.0)


def _line(image: FoundImage, now: datetime) -> str:
    when, age = "unknown date", ""
    if image.created is not None:
        when = f"{image.created.astimezone(now.tzinfo):%Y-%m-%d %H:%M}"
        age = format_age((now - image.created).total_seconds())
    machine = shorten(image.host or image.path.name, 13)
    size = format_size(image.size)
    return f"{machine:<13} {when:<16} {age:<14} {size:>7} {VERDICTS[image.verdict]}"


def _help(image: FoundImage, share: Share | None) -> str:
    what = place_name(image, share)
    if image.note:
        return f"{what}: {image.note}"
    model = image.disk.model if image.disk else None
    return f"{what}; of a disk of {format_size(image.disk_size)}" + (f", {model}" if model else "")
