"""The file allocation table: from first clusters to runs, without a loop over clusters.

Source: "exFAT file system specification", section 4, "File Allocation Table Region".

A window of the table is compared with the one in which every cluster is followed by its neighbour, as
one large number; where they differ a run ends. So a chain costs as many steps as it has runs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from bitarray import bitarray

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume
from imager.filesystems.exfat.boot import FIRST_CLUSTER, Geometry

_END_OF_CHAIN = 0xFFFFFFFF
_MEDIA, _SECOND = 0xFFFFFFF8, 0xFFFFFFFF
"""FAT[0] and FAT[1]; sections 4.1.1 and 4.1.2."""

_WINDOW = 1 << 16
"""Entries that are looked at together: 256 KiB of the table."""
_WINDOWS = 32
"""How many are kept."""
_LANES = int.from_bytes(b"\1\0\0\0" * _WINDOW, "little")
_NEIGHBOURS = int.from_bytes(b"".join(n.to_bytes(4, "little") for n in range(_WINDOW)), "little")

LARGEST_DIRECTORY = 256 << 20
"""Bytes; section 7.4.9, and the reason why what has no size of its own is bounded."""
_PIECE = 1 << 20


class Stream(NamedTuple):
    """Clusters with a content."""

    runs: tuple[tuple[int, int], ...]
    """First cluster and number of clusters of each run, in order."""
    size: int
    """Bytes of content."""

    def pieces(self, volume: Volume, geometry: Geometry) -> Iterator[bytes]:
        """The content, cut into pieces of 1 MiB and less."""
        left = self.size
        for first, count in self.runs:
            at, end = geometry.offset(first), geometry.offset(first + count)
            while at < end and left > 0:
                length = min(_PIECE, end - at, left)
                yield volume.read(at, length)
                at, left = at + length, left - length


class Chains:
    """The active file allocation table of a volume."""

    def __init__(self, volume: Volume, geometry: Geometry) -> None:
        """Raises NotUnderstoodError unless the table begins as one does."""
        self._volume = volume
        self._geometry = geometry
        self._window = lru_cache(maxsize=_WINDOWS)(self._read_window)
        first = volume.read(geometry.fat, 8)
        if first != _MEDIA.to_bytes(4, "little") + _SECOND.to_bytes(4, "little"):
            raise NotUnderstoodError("no file allocation table where the boot sector says")

    def whole(self, first: int) -> Stream:
        """A chain without a known size, up to its end; such as the root directory's."""
        most = LARGEST_DIRECTORY // self._geometry.cluster
        runs = tuple(self._runs(first, most))
        return Stream(runs, sum(count for _, count in runs) * self._geometry.cluster)

    def chain(self, first: int, size: int) -> Stream:
        """The chain of `size` bytes that begins at this cluster.

        Raises NotUnderstoodError where it is longer or shorter, or leaves the volume.
        """
        clusters = self._clusters(size)
        runs = tuple(self._runs(first, clusters)) if clusters else ()
        if sum(count for _, count in runs) != clusters:
            raise NotUnderstoodError("a chain of clusters ends before its file does")
        return Stream(runs, size)

    def contiguous(self, first: int, size: int) -> Stream:
        """What lies in neighbouring clusters and has no chain: NoFatChain, section 6.3.4.2."""
        clusters = self._clusters(size)
        if clusters:
            self._check(first)
            self._check(first + clusters - 1)
        return Stream(((first, clusters),) if clusters else (), size)

    def _runs(self, first: int, most: int) -> Iterator[tuple[int, int]]:
        """The runs of a chain; NotUnderstoodError if it has more than `most` clusters."""
        number, left = first, most
        mark, steps = _END_OF_CHAIN, 0
        while number != _END_OF_CHAIN:
            self._check(number)
            if number == mark:
                raise NotUnderstoodError("a chain of clusters runs in a circle")
            if steps & (steps - 1) == 0:  # Brent's way to see a circle, however long
                mark = number
            steps += 1
            last = self._last_of_run(number, left)
            count = last - number + 1
            if count > left:
                raise NotUnderstoodError("a chain of clusters is longer than what it holds")
            yield number, count
            left -= count
            number = self._entry(last)

    def _last_of_run(self, number: int, most: int) -> int:
        """The last of the neighbouring clusters from `number` on that follow each other.

        Looks no further than one cluster past `most` of them.
        """
        last, stop = number, number + most
        while last < stop:
            base = last - last % _WINDOW
            breaks = self._window(base)[1]
            at = breaks.find(1, last - base)
            if at >= 0:
                return min(base + at, stop)
            last = base + _WINDOW
        return stop

    def _entry(self, number: int) -> int:
        base = number - number % _WINDOW
        return self._window(base)[0][number - base]

    def _read_window(self, base: int) -> tuple[array[int], bitarray]:
        """Entries `base` and following, and a bit for each that does not name its neighbour."""
        count = min(_WINDOW, self._geometry.clusters + FIRST_CLUSTER - base)
        data = self._volume.read(self._geometry.fat + 4 * base, 4 * count)
        # Lane by lane base + 1, base + 2, ...: no lane overflows into the next.
        following = (_NEIGHBOURS + (base + 1) * _LANES) & (1 << 32 * count) - 1
        differing = (int.from_bytes(data, "little") ^ following).to_bytes(4 * count, "little")
        breaks = bitarray(count, endian="little")
        breaks.setall(0)
        for plane in range(4):
            bits = bitarray(endian="little")
            bits.pack(differing[plane::4])
            breaks |= bits
        if base + count == self._geometry.clusters + FIRST_CLUSTER:
            breaks[-1] = 1  # the last cluster has no neighbour
        entries = array("I")
        entries.frombytes(data)
        if _BIG_ENDIAN:
            entries.byteswap()
        return entries, breaks

    def _clusters(self, size: int) -> int:
        clusters = -(-size // self._geometry.cluster)
        if clusters > self._geometry.clusters:
            raise NotUnderstoodError("a file is larger than the volume")
        return clusters

    def _check(self, number: int) -> None:
        if not FIRST_CLUSTER <= number < self._geometry.clusters + FIRST_CLUSTER:
            raise NotUnderstoodError("a file refers to clusters outside of the volume")


_BIG_ENDIAN = array("H", (1,)).tobytes()[0] == 0
