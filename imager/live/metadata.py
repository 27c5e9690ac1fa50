"""A volume that remembers what was read of it, until that is written.

The maps have to be read while everything stands still. Nearly all that they are made of was read just
before, and has not been written since: it need not be read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace

from imager.extents import Extents
from imager.filesystems import Volume
from imager.layout.analyse import Identify
from imager.layout.blkid import Identity, identify

_MEMORY = 1 << 25
"""Bytes that are remembered at most: the bitmaps of an ext4 of 1 TiB."""
_SIGNATURES = 1 << 20
"""Where a volume's signature may be, from its start (bytes)."""


Place = Callable[[Extents], Extents]


class RememberedVolume:
    """A `Volume` on top of another one, and what blkid saw in it."""

    def __init__(self, volume: Volume, mounted: Collection[int]) -> None:
        """`mounted` are the offsets of volumes that cannot become something else: in use."""
        self._volume = volume
        self._mounted = mounted
        self.still: Collection[int] = ()
        """The offsets of volumes whose file systems are to be read as frozen ones."""
        self._reads: dict[tuple[object, int, int], bytes] = {}
        self._bytes = 0
        self._written = Extents()
        self._identities: dict[tuple[int, int], Identity | None] = {}

    @property
    def size(self) -> int:
        """Bytes."""
        return self._volume.size

    @property
    def sector_size(self) -> int:
        """Bytes."""
        return self._volume.sector_size

    def read(self, offset: int, size: int) -> bytes:
        """As the volume below gives it, or gave it."""
        return self.recall(None, self._volume, Extents.span(offset, offset + size), offset, size)

    def remember(self, volume: Volume, place: Place) -> Volume:
        """What is read of `volume`, whose bytes lie on this one where `place` says, remembered too."""
        return _Inner(self, volume, place)

    def recall(self, key: object, volume: Volume, at: Extents, offset: int, size: int) -> bytes:
        """What `volume`, known by `key`, gives or gave; it lies `at` these bytes of this one."""
        known = self._reads.get((key, offset, size))
        if known is not None and not any(self._written.count(*piece) for piece in at):
            return known
        data = volume.read(offset, size)
        if known is None and self._bytes + size <= _MEMORY:
            self._bytes += size
            self._reads[key, offset, size] = data
        return data

    def written(self, ranges: Extents) -> None:
        """These are not what they were."""
        self._written |= ranges

    def forget(self) -> None:
        """Read everything anew from now on; what is written before this call must not matter."""
        self._reads.clear()
        self._bytes = 0
        self._written = Extents()
        self._identities.clear()

    @property
    def identify(self) -> Identify:
        """As `blkid.identify`, asked only once for a volume that stays what it is."""
        return self._identify

    def _identify(self, path: str | os.PathLike[str], start: int, size: int) -> Identity | None:
        key = (start, size)
        changed = start not in self._mounted and self._written.count(start, start + _SIGNATURES)
        if key not in self._identities or changed:
            self._identities[key] = identify(path, start, size)
        identity = self._identities[key]
        return replace(identity, still=start in self.still) if identity else None


class _Inner:
    """A volume in a remembered one that is read elsewhere: where the kernel shows it decrypted."""

    def __init__(self, outer: RememberedVolume, volume: Volume, place: Place) -> None:
        self._outer = outer
        self._volume = volume
        self._place = place
        self.size = volume.size
        self.sector_size = volume.sector_size
        whole = place(Extents.span(0, volume.size))
        # It is opened anew each time, but is the same volume.
        self._key = (whole.start, whole.end)

    def read(self, offset: int, size: int) -> bytes:
        """As `Volume.read`."""
        at = self._place(Extents.span(offset, offset + size))
        return self._outer.recall(self._key, self._volume, at, offset, size)
