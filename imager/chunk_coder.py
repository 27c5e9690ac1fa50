"""What becomes of one chunk: zeros, the parent's, a delta against an older one, or a frame of its own."""

from __future__ import annotations

from typing import NamedTuple

from imager.chunks import ChunkRun
from imager.image.codec import ChunkEncoder
from imager.image.format import Base
from imager.image.hashing import HashAlgorithm
from imager.parent_image import ParentImage


class Encoded(NamedTuple):
    """A chunk run as a thread hands it back; `frame` is None where all is zero."""

    run: ChunkRun
    frame: bytes | None
    content_hash: bytes
    frame_hash: bytes
    unreadable: list[tuple[int, int]]
    unchanged: bool = False
    """The parent has the same; then there is no frame either."""
    base: Base | None = None
    """What the frame needs as dictionary."""


_GOOD_DELTA = 32
"""A delta this many times smaller than its chunk is taken without trying anything else."""


class ChunkCoder:
    """Compares chunks with the parent's and compresses what is new; for many threads."""

    def __init__(
        self, algorithm: HashAlgorithm, level: int, chunk_size: int, parent: ParentImage | None
    ) -> None:
        """Chunks have at most `chunk_size` bytes; `level` is zstd's."""
        self.algorithm = algorithm
        self.encoder = ChunkEncoder(algorithm, level, chunk_size)
        self.parent = parent
        self._chunk_size = chunk_size
        self._zero_hashes: dict[int, bytes] = {}

    def zero_hash(self, size: int) -> bytes:
        """The content hash of a chunk of zeros, the first of a run of `size` bytes."""
        size = min(self._chunk_size, size)
        if size not in self._zero_hashes:
            self._zero_hashes[size] = self.algorithm.digest(bytes(size))
        return self._zero_hashes[size]

    def nothing(
        self, run: ChunkRun, unreadable: list[tuple[int, int]], parent_hash: bytes | None
    ) -> Encoded:
        """A run of zeros; `parent_hash` is that of each of the parent's chunks there."""
        same = parent_hash is not None and parent_hash == self.zero_hash(run.end - run.start)
        return Encoded(run, None, parent_hash or b"", b"", unreadable, same)

    def encode(
        self,
        run: ChunkRun,
        chunk: bytearray,
        unreadable: list[tuple[int, int]],
        parent_hash: bytes | None,
    ) -> Encoded:
        """The content of one chunk."""
        if self.encoder.is_zero(chunk):
            return self.nothing(run, unreadable, parent_hash)
        content_hash = self.algorithm.digest(chunk)
        if content_hash == parent_hash:
            return Encoded(run, None, content_hash, b"", unreadable, True)
        frame, base = self._compress(run, chunk, parent_hash)
        frame_hash = self.algorithm.frame_digest(frame)
        return Encoded(run, frame, content_hash, frame_hash, unreadable, base=base)

    def _compress(
        self, run: ChunkRun, chunk: bytearray, parent_hash: bytes | None
    ) -> tuple[bytes, Base | None]:
        """The chunk as a delta, or whole where that is hardly larger: it is read faster.

        The first base serves unless it is of hardly any use.
        """
        whole: bytes | None = None
        if self.parent is not None and parent_hash is not None:
            zero_hash = self.zero_hash(run.end - run.start)
            for base, content in self.parent.bases(run.start, zero_hash):
                delta = self.encoder.encode_delta(chunk, content)
                if len(delta) * _GOOD_DELTA <= len(chunk):
                    return delta, base
                whole = whole or self.encoder.encode(chunk)
                if len(delta) < (len(whole) * 7 // 8 if base.parent == 0 else len(whole) // 2):
                    return delta, base
        return whole or self.encoder.encode(chunk), None
