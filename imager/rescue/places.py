"""Where something may be written that is not a target: the stick's partition, another disk, a share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imager.errors import WriteFailedError
from imager.rescue.media import (
    EFI_LABEL,
    MediaVolume,
    folder_volume,
    is_writable,
    mounted_for_writing,
    mounted_read_only,
)
from imager.rescue.screen import Choice
from imager.rescue.session import Session
from imager.rescue.shares import Share, mounted_share
from imager.wording import format_size, shorten

_MAX_TAG = 40
"""Of a share's address, so that there is room beside it."""


def choose_volume(
    session: Session, title: str, text: str, without: str | None = None
) -> MediaVolume | None:
    """A file system to write to; the stick's own is preselected, the disk `without` left out.

    Another disk's is mounted read-write only after the person has agreed to that. None: go back.
    """
    own = session.machine.data()
    if own is not None and own.disk is not None and own.disk.name == without:
        own = None
    volumes = [
        volume
        for volume in session.machine.volumes()
        if is_writable(volume) and volume.disk is not None and volume.disk.name != without
        if volume.label != EFI_LABEL
    ]
    others = [volume for volume in volumes if own is None or volume.path != own.path]
    others += (_share_volume(share) for share in session.shares)
    places = {_tag(volume): volume for volume in ([own] if own else []) + others}
    choices = [_choice(volume, volume is own) for volume in places.values()]
    if not choices:
        session.screen.show(
            title,
            "There is no place to write to. Attach a disk with a file system on it, or connect "
            "to a network share.",
        )
        return None
    while True:
        chosen = session.screen.menu(title, text, choices)
        if chosen is None:
            return None
        volume = places[chosen]
        if volume is own or volume.kind == "folder":
            return volume
        if session.screen.confirm(
            title,
            f"{volume.describe()}\n\nFiles will be added to this file system; nothing on it is "
            "overwritten. Is it not a disk of the machine that needs help?",
            yes="Use it",
            no="Back",
        ):
            return volume


@contextmanager
def mounted_to_write(session: Session, volume: MediaVolume) -> Iterator[Path]:
    """The volume's files, to add to; WriteFailedError where that is not possible."""
    for share in session.shares:
        if share.address == volume.path:
            with mounted_share(share, session.machine.state, write=True) as place:
                if not os.access(place, os.W_OK):
                    raise WriteFailedError(f"{share.address} does not let this user write")
                yield place
            return
    with mounted_for_writing(volume) as place:
        yield place


def free_bytes(session: Session, volume: MediaVolume) -> int:
    """Room on it for one who is not root; ReadFailedError where it cannot be mounted."""
    with ExitStack() as stack:
        for share in session.shares:
            if share.address == volume.path:
                volume = folder_volume(
                    stack.enter_context(mounted_share(share, session.machine.state))
                )
        status = os.statvfs(stack.enter_context(mounted_read_only(volume)))
        return status.f_bavail * status.f_frsize


def _share_volume(share: Share) -> MediaVolume:
    return MediaVolume(share.address, "folder", None, None, 0, None)


def _tag(volume: MediaVolume) -> str:
    return shorten(volume.path.removeprefix("/dev/"), _MAX_TAG)


def _choice(volume: MediaVolume, is_own: bool) -> Choice:
    if volume.disk is None:
        return Choice(_tag(volume), "network share")
    label = "this stick" if is_own else volume.label or "no label"
    return Choice(
        _tag(volume),
        f"{label}, {volume.kind}, {format_size(volume.size)}",
        f"on {volume.disk.describe()}",
    )
