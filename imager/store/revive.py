"""Having an image back that a prune has given up, as long as nothing of it has gone."""

from __future__ import annotations

from pathlib import Path

from imager.check import check
from imager.errors import ImageError, RefusedError
from imager.image.opening import final_opening
from imager.image.reader import ImageReader
from imager.pipeline import Progress, no_progress
from imager.store import actions
from imager.store.catalog import ImageFiles, State, find_images
from imager.store.folder import disk_lock
from imager.store.sidecar import pin


def revive(path: Path, note: str = "", progress: Progress = no_progress) -> Path:
    """Give the expired image at `path` its name back, and pin it; returns the name.

    Raises ImageError where something of it is gone already, RefusedError where it is not expired.
    """
    files = _files_of(path)
    with disk_lock(files.path.parent):
        with ImageReader(files.opened_as) as image:
            if not image.expired:
                raise RefusedError(f"{path} was not given up by a prune")
            opening = final_opening(image.head)
        lost = check(files.opened_as, progress=progress).lost
        if lost:
            raise ImageError(
                f"{path} was given up by a prune, and {lost.total} bytes of the disk are gone from "
                "it already"
            )
        pin(files.path, note)
        actions.take_back(files, opening)
    return files.path


def _files_of(path: Path) -> ImageFiles:
    for files in find_images(path.absolute().parent):
        named = path.absolute() in (files.path, files.opened_as, *files.files)
        if named and files.state is State.EXPIRED:
            return files
    raise RefusedError(f"{path} was not given up by a prune")
