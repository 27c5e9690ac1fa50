"""What a capture is to store, and how."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from imager.errors import UsageError
from imager.extents import Extents
from imager.image.format import (
    DEFAULT_CHUNK,
    MAX_CHUNK,
    MIN_CHUNK,
)
from imager.pipeline import thread_count

Consistency = Literal["auto", "offline", "frozen", "snapshot", "crash"]

DEFAULT_LEVEL = 3
MAX_LEVEL = 19
"""Above it zstd wants more memory than the rescue machine may have."""
MAX_PAUSE = 60.0
"""Seconds; a machine whose disk stands still for longer is taken for dead."""


@dataclass(frozen=True)
class CaptureOptions:
    """What to store, and how; the defaults are right for nearly everybody."""

    level: int = DEFAULT_LEVEL
    threads: int | None = None
    """None: one for each core."""
    chunk_size: int = DEFAULT_CHUNK
    """Bytes, a power of two."""
    only: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    raw: bool = False
    keep_gaps: bool = False
    unlock: Mapping[int | None, bytes] = field(default_factory=dict, repr=False)
    """Passphrases of LUKS volumes that are not open, by the partition's number (None: the disk)."""
    split: int | None = None
    """Bytes of a part at most."""
    note: str = ""
    continue_on_read_error: bool = False
    resume: bool = False
    verify: bool = False
    consistency: Consistency = "auto"
    """auto: offline where nothing on the disk is mounted read-write, else frozen, or snapshot where
    that would take too long. frozen: as the disk is at one instant, for which its file systems are
    frozen. snapshot: the same, but what its LVM volumes hold is read afterwards, from snapshots.
    offline: refuse a disk in use. crash: store what is in use whole, as a power cut would leave it."""
    target_pause: float = 0.15
    """How long the file systems of a disk in use should stand still at most, seconds."""
    max_pause: float = 2.0
    """How long they ever may, seconds."""
    before_freeze: str = ""
    """A shell command to be run before that; if it fails there is no image."""
    after_thaw: str = ""
    """A shell command to be run after that."""
    inside_freeze: Callable[[], None] = lambda: None
    """Called while they stand still, when all is read."""
    hash_name: str = "blake3"
    host: str | None = None
    """The machine's name, where another system than its own captures it."""
    sector_size: int | None = None
    """Of a plain disk-image file, bytes; devices know theirs."""
    parent: Path | None = None
    """Store only what differs from this image, which gives chunk size and hash algorithm, too."""
    distrusted: Extents = field(default_factory=Extents)
    """Disk ranges in which the parent is known to be damaged: they are stored whole."""
    created: datetime.datetime | None = None
    """What the image says when it was captured, with its zone; None: now."""

    def __post_init__(self) -> None:
        """Check what argparse cannot."""
        if not 1 <= self.level <= MAX_LEVEL:
            raise UsageError(f"a compression level lies between 1 and {MAX_LEVEL}")
        if self.chunk_size & (self.chunk_size - 1) or not (
            MIN_CHUNK <= self.chunk_size <= MAX_CHUNK
        ):
            raise UsageError("a chunk size is a power of two between 64 KiB and 16 MiB")
        thread_count(self.threads)
        if not 0 < self.target_pause <= self.max_pause <= MAX_PAUSE:
            raise UsageError(
                f"a pause has up to {MAX_PAUSE:g} seconds, and --target-pause is not above "
                "--max-pause"
            )
        if self.only and self.exclude:
            raise UsageError("--only and --exclude cannot be used together")
        if self.distrusted and self.parent is None:
            raise UsageError("without a parent image there is nothing to distrust")
