"""The CRC-32C by which version 5 protects each metadata block: over all of it, its own field as zeros.

XFS Filesystem Structure ("Self Describing Metadata"): the field is little-endian, unlike all others.
"""

from __future__ import annotations

from crc32c import crc32c

_SIZE = 4


def checksum(data: bytes | bytearray, at: int) -> bytes:
    """The four bytes that belong at `at` in `data`."""
    crc: int = crc32c(data[:at])
    crc = crc32c(data[at + _SIZE :], crc32c(bytes(_SIZE), crc))
    return crc.to_bytes(_SIZE, "little")


def is_intact(data: bytes | bytearray, at: int) -> bool:
    """Whether the checksum that is stored at `at` is that of `data`."""
    return checksum(data, at) == data[at : at + _SIZE]


def seal(data: bytearray, at: int) -> None:
    """Put the right checksum at `at`."""
    data[at : at + _SIZE] = checksum(data, at)
