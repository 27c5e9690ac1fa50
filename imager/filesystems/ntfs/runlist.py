"""Runlists ("mapping pairs"): which clusters hold an attribute, and reading through them.

Format: "NTFS Documentation" of the Linux-NTFS project, concept "Data Runs".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems import Volume

PIECE = 4 << 20
"""Bytes that are read at once where a whole stream is read."""

MAX_RUNS = 1 << 17
"""Runs of one file that are kept in memory; $Bitmap of a 16 TiB volume has 2^17 clusters."""

SPARSE = -1
"""The LCN of a run that nothing is allocated for."""

_MAX_VCN = 1 << 55
"""Clusters of 512 bytes in a stream of 2^64 bytes: a run behind it is nonsense."""


class Run(NamedTuple):
    """`length` clusters of an attribute, from its cluster `vcn` on."""

    vcn: int
    lcn: int
    """Where on the volume; or SPARSE."""
    length: int


def decode_runlist(pairs: bytes, lowest_vcn: int, highest_vcn: int, clusters: int) -> list[Run]:
    """Decode mapping pairs that have to map exactly `lowest_vcn` to `highest_vcn`.

    Every run has to lie within the `clusters` of the volume, and a zero byte has to end them.
    """
    runs: list[Run] = []
    vcn = lowest_vcn
    lcn = 0
    position = 0
    end = len(pairs)
    while position < end and (header := pairs[position]):
        position += 1
        delta_at = position + (header & 15)
        next_at = delta_at + (header >> 4)
        if not 1 <= header & 15 <= 8 or header >> 4 > 8 or next_at > end:
            raise NotUnderstoodError("a runlist is damaged")
        length = int.from_bytes(pairs[position:delta_at], "little", signed=True)
        if length <= 0 or vcn + length > _MAX_VCN:
            raise NotUnderstoodError("a runlist is damaged")
        if header >> 4:
            lcn += int.from_bytes(pairs[delta_at:next_at], "little", signed=True)
            if lcn < 0 or lcn + length > clusters:
                raise NotUnderstoodError("a runlist points outside the volume")
            runs.append(Run(vcn, lcn, length))
        else:
            runs.append(Run(vcn, SPARSE, length))
        vcn += length
        position = next_at
    if position >= end or vcn != highest_vcn + 1:
        raise NotUnderstoodError("a runlist does not map its attribute")
    return runs


class Stream:
    """The content of a non-resident attribute, as far as it is initialised.

    Compressed and encrypted attributes are not decoded: metadata never is either.
    """

    def __init__(
        self, volume: Volume, cluster_size: int, runs: Sequence[Run], data_size: int, size: int
    ) -> None:
        """Map `runs`, which start at VCN 0 without a gap; `size` is the initialised size."""
        if not 0 <= size <= data_size:
            raise NotUnderstoodError("an attribute's sizes contradict each other")
        self._volume = volume
        self._cluster_size = cluster_size
        self._starts: list[int] = []
        self.runs: list[Run] = []
        self.data_size = data_size
        self.size = size
        self.mapped = 0
        self.extend(runs)

    def extend(self, runs: Sequence[Run]) -> None:
        """Map further `runs`, which go on where the last one ends."""
        if len(self.runs) + len(runs) > MAX_RUNS:
            raise NotUnderstoodError("a file is too fragmented")
        for run in runs:
            if run.vcn * self._cluster_size != self.mapped:
                raise NotUnderstoodError("a runlist has a gap")
            self.runs.append(run)
            self._starts.append(run.vcn)
            self.mapped += run.length * self._cluster_size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`, both in bytes; sparse runs read as zeros."""
        if offset < 0 or offset + size > min(self.size, self.mapped):
            raise NotUnderstoodError("an attribute is shorter than what should be in it")
        parts: list[bytes] = []
        while size:
            vcn, inside = divmod(offset, self._cluster_size)
            run = self.runs[bisect_right(self._starts, vcn) - 1]
            left = (run.vcn + run.length - vcn) * self._cluster_size - inside
            take = min(size, left)
            if run.lcn == SPARSE:
                parts.append(bytes(take))
            else:
                at = (run.lcn + vcn - run.vcn) * self._cluster_size + inside
                parts.append(self._volume.read(at, take))
            offset += take
            size -= take
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self, size: int, unit: int = 1) -> Iterator[tuple[int, bytes]]:
        """The first `size` bytes as (offset, bytes), in large pieces of a multiple of `unit`."""
        step = max(PIECE // unit, 1) * unit
        for offset in range(0, size, step):
            yield offset, self.read(offset, min(step, size - offset))

    def require_dense(self, name: str) -> None:
        """Raise NotUnderstoodError unless every run is allocated and all content is mapped."""
        allocated = self.runs and all(run.lcn != SPARSE for run in self.runs)
        if not allocated or not self.size <= self.mapped <= self._volume.size:
            raise NotUnderstoodError(f"{name} is not fully allocated")
