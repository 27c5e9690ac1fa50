"""A volume with some bytes changed, and how they are chosen.

Most bytes of a volume are looked at by no reader. So the reads on the sound volume are recorded;
each of them is as likely to be hit as any other, however long, and in it mostly places that are not
zero. What is put there are the numbers that upset readers of structures: 0, all ones, one more or
less, the places of other structures and its own, pieces of other structures.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from imager.errors import ReadFailedError
from imager.filesystems import Volume

_STRIDE = 16
"""Places that are not zero are remembered by this many bytes."""
_MOST_PLACES = 1 << 14
_MOST_PATCHES = 24
_UNITS = (1, 512, 1024, 2048, 4096, 8192, 16384)
"""Addresses on disk count bytes, sectors, blocks or clusters."""
_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 256, 512, 1024, 4096)


class Patch(NamedTuple):
    """Bytes that stand at an offset of the volume instead of what was there."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Damage:
    """What is different on a damaged volume."""

    size: int
    """The volume's size in bytes; less than the sound one's where it is cut short."""
    patches: tuple[Patch, ...] = ()
    """Later ones lie upon earlier ones."""
    forged: bool = False
    """Whether all checksums fit."""

    def changed_bytes(self) -> int:
        """At most this many bytes are different."""
        return sum(len(patch.data) for patch in self.patches)


class Damaged:
    """A volume as `Damage` leaves it."""

    def __init__(self, sound: Volume, damage: Damage) -> None:
        self._sound = sound
        self._damage = damage
        self.size = damage.size
        self.sector_size = sound.sector_size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ReadFailedError(f"read of {size} bytes at {offset} is outside the volume")
        data = self._sound.read(offset, size)
        hits = [p for p in self._damage.patches if p.offset < offset + size]
        hits = [p for p in hits if offset < p.offset + len(p.data)]
        if not hits:
            return data
        out = bytearray(data)
        for start, patch in hits:
            low, high = max(start, offset), min(start + len(patch), offset + size)
            out[low - offset : high - offset] = patch[low - start : high - start]
        return bytes(out)


class Recorder:
    """A volume that remembers what was read of it."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.size = volume.size
        self.sector_size = volume.sector_size
        self.reads: dict[tuple[int, int], None] = {}

    def read(self, offset: int, size: int) -> bytes:
        data = self._volume.read(offset, size)
        if size:
            self.reads[offset, size] = None
        return data


class Mutator:
    """Makes one damage from another."""

    def __init__(self, sound: Volume, reads: list[tuple[int, int]], noise: random.Random) -> None:
        self._sound = sound
        self._noise = noise
        self._reads = [(offset, size, _places(sound.read(offset, size))) for offset, size in reads]

    def mutate(self, damage: Damage) -> Damage:
        """`damage` and one to four changes more."""
        noise = self._noise
        patches = list(damage.patches)
        for _ in range(noise.choice((1, 1, 1, 2, 3, 4))):
            patches.append(self._patch(Damaged(self._sound, replace(damage, forged=False))))
        size = damage.size
        if noise.random() < 0.01:
            unit = noise.choice((1, 512, 4096, 1 << 20))
            size = max(noise.randrange(size + 1) // unit * unit, 1)
        return replace(damage, size=size, patches=tuple(patches[-_MOST_PATCHES:]))

    def _place(self) -> int:
        """A byte that the reader looks at."""
        offset, size, places = self._noise.choice(self._reads)
        if places and self._noise.random() < 0.85:
            return offset + min(self._noise.choice(places) + self._near(), size - 1)
        return offset + self._noise.randrange(size)

    def _near(self) -> int:
        return self._noise.randrange(_STRIDE)

    def _patch(self, volume: Damaged) -> Patch:
        noise = self._noise
        offset = min(self._place(), volume.size - 1)
        kind = noise.randrange(10)
        if kind < 2:
            byte = self._bytes(volume, offset, 1)[0] if offset < volume.size else 0
            return Patch(offset, bytes([byte ^ 1 << noise.randrange(8)]))
        if kind < 7:
            return self._number(volume, offset)
        length = noise.choice(_LENGTHS)
        if kind == 7:
            return Patch(offset, noise.choice((b"\0", b"\xff")) * length)
        if kind == 8:
            return Patch(offset, noise.randbytes(min(length, 64)))
        # A piece of another structure, often at the same place in its block.
        source = self._place()
        if noise.random() < 0.7:
            length = noise.choice((512, 1024, 4096))
            offset, source = offset // length * length, source // length * length
        return Patch(offset, self._bytes(volume, source, length))

    def _number(self, volume: Damaged, offset: int) -> Patch:
        """A number that lies on a multiple of its own size, as nearly all do."""
        noise = self._noise
        width = noise.choice((1, 2, 2, 4, 4, 4, 8))
        order: Literal["little", "big"] = "little" if noise.random() < 0.8 else "big"
        offset -= offset % width if noise.random() < 0.9 else 0
        old = int.from_bytes(self._bytes(volume, offset, width), order)
        place = self._place() if noise.random() < 0.7 else offset
        most = (1 << 8 * width) - 1
        number = noise.choice(
            (
                noise.choice((0, 1, most, most >> 1, (most >> 1) + 1, most - 1)),
                old + noise.choice((-1, 1, -2, 2, 8, -8)),
                old << 1,
                old >> 1,
                place // noise.choice(_UNITS),
                volume.size // noise.choice(_UNITS) + noise.choice((-1, 0, 1)),
                noise.getrandbits(8 * width),
                1 << noise.randrange(8 * width),
            )
        )
        return Patch(offset, (number & most).to_bytes(width, order))

    def _bytes(self, volume: Damaged, offset: int, size: int) -> bytes:
        """What stands there now, zeros behind the end."""
        inside = max(min(size, volume.size - offset), 0)
        return volume.read(offset, inside).ljust(size, b"\0") if inside else bytes(size)


def _places(data: bytes) -> list[int]:
    """Offsets in `data` of pieces that are not zero, all over it where there are many."""
    blank = bytes(_STRIDE)
    found = [at for at in range(0, len(data), _STRIDE) if data[at : at + _STRIDE] != blank]
    return found[:: len(found) // _MOST_PLACES + 1]
