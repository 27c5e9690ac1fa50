"""Which chunks a check has decoded and hashed, so that another check need not do it again.

Images of one chain share most of their chunks. What is kept is ranges of the disk for each image file,
not frames: neighbours join, so a whole image takes 16 bytes.
"""

from __future__ import annotations

from pathlib import Path

from imager.extents import Extents, ExtentsBuilder


class ProvedChunks:
    """Disk ranges whose chunks, as an image file itself stores them, are right.

    For the span of a few checks, in which nothing is damaged that was right before.
    """

    def __init__(self) -> None:
        """Nothing is proved yet."""
        self._proved: dict[Path, Extents] = {}
        self._now: dict[Path, ExtentsBuilder] = {}

    def covers(self, image: Path, start: int, end: int) -> bool:
        """Whether all of [start, end) was proved by an earlier check."""
        proved = self._proved.get(image)
        return proved is not None and proved.covers(start, end)

    def add(self, image: Path, start: int, end: int) -> None:
        """Chunks are proved; within one check they come in disk order."""
        self._now.setdefault(image, ExtentsBuilder()).add(start, end)

    def end_check(self) -> None:
        """What was added counts from now on."""
        for image, builder in self._now.items():
            self._proved[image] = self._proved.get(image, Extents()) | builder.build()
        self._now.clear()
