"""The hash algorithms that an image may name, and the tree that makes its content digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from imager.errors import MissingToolError, UnsupportedImageError

HASH_SIZE = 32
"""Bytes of a content hash or record hash."""
FRAME_HASH_SIZE = 16
"""Bytes of a stored frame's hash: the first half of the full hash."""
GROUP_CHUNKS = 1024
"""Chunks whose content hashes are joined into one leaf of the content digest's tree."""

HashFunction = Callable[[bytes | bytearray | memoryview], bytes]


class Hasher(Protocol):
    """A hash that is computed piece by piece."""

    def update(self, data: bytes, /) -> object:
        """Take in more data."""

    def digest(self) -> bytes:
        """The hash of all of it."""


@dataclass(frozen=True)
class HashAlgorithm:
    """A cryptographic hash with 32 bytes of output; `digest` releases the GIL for large input."""

    number: int
    name: str
    digest: HashFunction
    new: Callable[[], Hasher]

    def frame_digest(self, data: bytes | bytearray | memoryview) -> bytes:
        """The 16-byte hash of a stored frame."""
        return self.digest(data)[:FRAME_HASH_SIZE]


def _sha256(data: bytes | bytearray | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _blake3() -> HashAlgorithm:
    try:
        from blake3 import blake3
    except ImportError:
        raise MissingToolError(
            "this image is hashed with BLAKE3: install the Python package 'blake3'"
        ) from None
    return HashAlgorithm(NUMBERS["blake3"], "blake3", lambda data: blake3(data).digest(), blake3)


NUMBERS = {"blake3": 1, "sha256": 2}
"""Names, and the numbers that stand for them in records (docs/format.md, "Records")."""


@cache
def hash_algorithm(name: str) -> HashAlgorithm:
    """The algorithm called `name`; UnsupportedImageError if there is no such one."""
    if name == "blake3":
        return _blake3()
    if name == "sha256":
        return HashAlgorithm(NUMBERS[name], name, _sha256, hashlib.sha256)
    raise UnsupportedImageError(f"unknown hash algorithm {name!r}")


def hash_algorithm_number(number: int) -> HashAlgorithm:
    """The algorithm with this number in a record; UnsupportedImageError if there is none."""
    for name, known in NUMBERS.items():
        if known == number:
            return hash_algorithm(name)
    raise UnsupportedImageError(f"unknown hash algorithm number {number}")


class ContentDigest:
    """The digest of a disk's content, whatever way it is stored: a tree over chunk hashes.

        root = H("imager content 1\\0" | disk size, u64 | chunk size, u64 | leaf 0 | leaf 1 | ...)
        leaf = H(content hashes of 1024 chunks, the last leaf fewer)

    Runs of equal chunks cost nothing per chunk: a leaf of 1024 zero chunks is computed once.
    """

    def __init__(self, algorithm: HashAlgorithm, disk_size: int, chunk_size: int) -> None:
        """Begin the digest of a disk of `disk_size` bytes in chunks of `chunk_size` bytes."""
        self._digest = algorithm.digest
        self._root = bytearray(b"imager content 1\0")
        self._root += disk_size.to_bytes(8, "little") + chunk_size.to_bytes(8, "little")
        self._pending = bytearray()
        self._uniform: dict[bytes, bytes] = {}

    def add(self, content_hash: bytes, chunks: int = 1) -> None:
        """Append `chunks` chunks, in disk order, that all have this content hash."""
        leaf_size = GROUP_CHUNKS * HASH_SIZE
        head = min(chunks, (leaf_size - len(self._pending)) // HASH_SIZE)
        self._pending += content_hash * head
        if len(self._pending) == leaf_size:
            self._root += self._digest(self._pending)
            self._pending.clear()
        full, rest = divmod(chunks - head, GROUP_CHUNKS)
        if full:
            if content_hash not in self._uniform:
                self._uniform = {content_hash: self._digest(content_hash * GROUP_CHUNKS)}
            self._root += self._uniform[content_hash] * full
        self._pending += content_hash * rest

    def result(self) -> bytes:
        """The digest; nothing may be added afterwards."""
        if self._pending:
            self._root += self._digest(self._pending)
            self._pending.clear()
        return self._digest(self._root)
