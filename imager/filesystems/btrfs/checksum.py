"""The four checksums of btrfs: what its superblock names covers superblock and every tree block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import crc32c

from imager.errors import NotUnderstoodError

CSUM_SIZE = 32
"""Bytes reserved for a checksum, whatever its kind; the rest is zeros."""

Checksum = Callable[[bytes | memoryview], bytes]


def find_checksum(csum_type: int) -> Checksum:
    """The function that gives the bytes to be compared, for the superblock's csum_type.

    Raises NotUnderstoodError where it is unknown, or not to be had here.
    """
    if csum_type == 0:
        return _crc32c
    if csum_type == 1:
        return _find_xxhash()
    if csum_type == 2:
        return _sha256
    if csum_type == 3:
        return _blake2
    raise NotUnderstoodError(f"checksum type {csum_type} is not known")


def _crc32c(data: bytes | memoryview) -> bytes:
    return crc32c.crc32c(data).to_bytes(4, "little")


def _sha256(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _blake2(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def _find_xxhash() -> Checksum:
    try:
        import xxhash
    except ImportError:
        raise NotUnderstoodError("checksums are xxhash, and python3-xxhash is missing") from None

    def xxh64(data: bytes | memoryview) -> bytes:
        return xxhash.xxh64_intdigest(data).to_bytes(8, "little")

    return xxh64
