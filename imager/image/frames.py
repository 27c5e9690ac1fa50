"""zstd frames: the ones that we make ourselves, and where one ends (RFC 8878).

skippable frame   magic 0x184D2A5?, u32 size, `size` bytes that every decoder skips
zstd frame        magic 0xFD2FB528, header, blocks, content checksum
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import zstandard

from imager.errors import ImageError
from imager.image.format import GUARD_DICTIONARY_ID, MAX_WINDOW, MAX_ZERO_RUN, SKIPPABLE

ZSTD_MAGIC = 0xFD2FB528
BLOCK_MAX = 1 << 17
_ZERO_WINDOW_LOG = 17
_PIECE = bytes(1 << 20)


def skippable(magic: int, payload: bytes) -> bytes:
    """A skippable frame around `payload`."""
    return SKIPPABLE.pack(magic, len(payload)) + payload


def is_skippable(magic: int) -> bool:
    """Whether a frame's magic number is one of the sixteen skippable ones."""
    return magic & 0xFFFFFFF0 == 0x184D2A50


def guard_frame() -> bytes:
    """An empty frame that names a private dictionary: plain `zstd` stops here with an error.

    Frame header (RFC 8878, 3.1.1.1): single segment, 4-byte dictionary ID, 1-byte content size 0;
    then one last raw block of 0 bytes.
    """
    dictionary = GUARD_DICTIONARY_ID.to_bytes(4, "little")
    return ZSTD_MAGIC.to_bytes(4, "little") + b"\x23" + dictionary + b"\0" + b"\x01\0\0"


@lru_cache(maxsize=1024)
def zero_frame(size: int) -> bytes:
    """A frame that decodes to `size` zero bytes (at most 1 GiB) and needs a 128 KiB window only."""
    if not 0 < size <= MAX_ZERO_RUN:
        raise ValueError(f"no zero frame of {size} bytes")
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=_ZERO_WINDOW_LOG, write_checksum=1, write_content_size=1
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
    pieces = [compressor.compress(_PIECE) for _ in range(size // len(_PIECE))]
    pieces.append(compressor.compress(_PIECE[: size % len(_PIECE)]))
    pieces.append(compressor.flush())
    return b"".join(pieces)


def check_frame_header(frame: bytes | memoryview, content_size: int) -> None:
    """ImageError unless `frame` is a zstd frame with checksum that claims `content_size` bytes.

    Called before decoding, so that a hostile frame cannot make the decoder allocate more.
    """
    try:
        parameters = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError:
        raise ImageError("a stored chunk is not a zstd frame") from None
    if parameters.content_size != content_size:
        raise ImageError(
            f"a stored chunk claims {parameters.content_size} bytes instead of {content_size}"
        )
    if parameters.dict_id or not parameters.has_checksum or parameters.window_size > MAX_WINDOW:
        raise ImageError("a stored chunk's frame header is not one that imager writes")


def read_frame(read: Callable[[int], bytes], limit: int) -> bytes:
    """Read one whole frame, of at most `limit` bytes, from a stream by `read(size)` (exact).

    Walks the block headers (RFC 8878, 3.1.1.2), so that no byte behind the frame is consumed.
    Raises ImageError where the stream holds no frame or a larger one; what `read` raises passes.
    """
    start = read(4)
    magic = int.from_bytes(start, "little")
    if is_skippable(magic):
        size = read(4)
        length = int.from_bytes(size, "little")
        _require(length + 8 <= limit)
        return start + size + read(length)
    _require(magic == ZSTD_MAGIC)
    out = bytearray(start)
    out += read(1)
    descriptor = out[4]
    single_segment = descriptor >> 5 & 1
    content_field = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    out += read((0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3] + content_field)
    last = False
    while not last:
        header = read(3)
        value = int.from_bytes(header, "little")
        last = bool(value & 1)
        kind, size_ = value >> 1 & 3, value >> 3
        _require(kind != 3 and (kind == 1 or size_ <= BLOCK_MAX))
        length = 1 if kind == 1 else size_
        _require(len(out) + 3 + length <= limit)
        out += header
        out += read(length)
    if descriptor & 4:
        out += read(4)
    return bytes(out)


def _require(condition: bool) -> None:
    if not condition:
        raise ImageError("the stream does not hold a frame that imager writes here")
