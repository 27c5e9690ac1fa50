"""The three checksums of ext2/3/4 and its journal, seeded and finished as the file system does it.

Linux documentation, "ext4 Data Structures and Algorithms", section Checksums; jbd2's first
checksum is the kernel's `crc32_be`.
"""

from __future__ import annotations

import zlib

import crc32c as _castagnoli

CRC_START = 0xFFFFFFFF
"""The seed of a 32-bit checksum that continues no other."""

_MASK = 0xFFFFFFFF
_CRC16_REFLECTED_POLYNOMIAL = 0xA001
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def crc32c(seed: int, data: bytes) -> int:
    """CRC-32C of `data` going on from `seed`, without the customary final inversion."""
    return _castagnoli.crc32c(data, seed ^ _MASK) ^ _MASK


def crc32_be(seed: int, data: bytes) -> int:
    """CRC-32 of `data`, most significant bit first, going on from `seed`, not inverted.

    It is zlib's CRC with the bits of every byte, of seed and of result in reverse.
    """
    reflected = zlib.crc32(data.translate(_REVERSED_BITS), _reverse32(seed) ^ _MASK) ^ _MASK
    return _reverse32(reflected)


def crc16(seed: int, data: bytes) -> int:
    """CRC-16 (polynomial 0x8005, reflected) of `data` going on from `seed`."""
    table = _CRC16_TABLE
    for byte in data:
        seed = seed >> 8 ^ table[(seed ^ byte) & 0xFF]
    return seed


def _reverse32(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, "little").translate(_REVERSED_BITS), "big")


def _crc16_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_CRC16_REFLECTED_POLYNOMIAL if value & 1 else 0)
    return value


_CRC16_TABLE = tuple(_crc16_entry(value) for value in range(256))
