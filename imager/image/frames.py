"""zstd frames: the ones that we make ourselves, and where one ends (RFC 8878).

skippable frame   magic 0x184D2A5?, u32 size, `size` bytes that every decoder skips
zstd frame        magic 0xFD2FB528, header, blocks, content checksum
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import zstandard

from imager.errors import ImageError
from imager.image.format import (
    GUARD_DICTIONARY_ID,
    MAX_ZERO_RUN,
    SKIPPABLE,
    ZERO_WINDOW,
    max_window,
)

ZSTD_MAGIC = 0xFD2FB528
BLOCK_MAX = 1 << 17
BLOCK_HEADER = 3
RLE_BLOCK = 1
RESERVED_BLOCK = 3
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
        1, window_log=ZERO_WINDOW.bit_length() - 1, write_checksum=1, write_content_size=1
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
    pieces = [compressor.compress(_PIECE) for _ in range(size // len(_PIECE))]
    pieces.append(compressor.compress(_PIECE[: size % len(_PIECE)]))
    pieces.append(compressor.flush())
    return b"".join(pieces)


def check_frame_header(frame: bytes | memoryview, content_size: int, chunk_size: int) -> None:
    """ImageError unless `frame` is one zstd frame with checksum that claims `content_size` bytes.

    Called before decoding, so that a hostile frame cannot make the decoder allocate more than a
    chunk needs, and so that plain `zstd` finds no other frame behind this one.
    """
    try:
        parameters = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError:
        raise ImageError("a stored chunk is not a zstd frame") from None
    if parameters.content_size != content_size:
        raise ImageError(
            f"a stored chunk claims {parameters.content_size} bytes instead of {content_size}"
        )
    window = parameters.window_size
    if parameters.dict_id or not parameters.has_checksum or window > max_window(chunk_size):
        raise ImageError("a stored chunk's frame header is not one that imager writes")
    if frame_size(frame) != len(frame):
        raise ImageError("a stored chunk is not exactly one zstd frame")


def frame_size(data: bytes | memoryview) -> int:
    """Bytes of the zstd frame that `data` begins with; ImageError where it does not hold all of it.

    Walks the block headers (RFC 8878, 3.1.1.2) without decoding anything.
    """
    size = len(data)
    _require(size >= 5)
    position = 5 + _header_rest(data[4])
    last = False
    while not last:
        _require(position + BLOCK_HEADER <= size)
        last, length = _block(data[position : position + BLOCK_HEADER])
        position += BLOCK_HEADER + length
    position += _checksum_size(data[4])
    _require(position <= size)
    return position


def read_frame(read: Callable[[int], bytes], limit: int) -> bytes:
    """Read one whole frame, of at most `limit` bytes, from a stream by `read(size)` (exact).

    Walks the block headers, so that no byte behind the frame is consumed. Raises ImageError where
    the stream holds no frame or a larger one; what `read` raises passes.
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
    out += read(_header_rest(descriptor))
    last = False
    while not last:
        header = read(BLOCK_HEADER)
        last, length = _block(header)
        _require(len(out) + BLOCK_HEADER + length <= limit)
        out += header
        out += read(length)
    out += read(_checksum_size(descriptor))
    return bytes(out)


def _header_rest(descriptor: int) -> int:
    """Bytes of the frame header behind its descriptor (RFC 8878, 3.1.1.1.1)."""
    single_segment = descriptor >> 5 & 1
    window = 1 - single_segment
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
    return window + dictionary + content_size


def _checksum_size(descriptor: int) -> int:
    return 4 if descriptor & 4 else 0


def _block(header: bytes | memoryview) -> tuple[bool, int]:
    """Whether a block is the last one, and how many bytes follow its header."""
    value = int.from_bytes(header, "little")
    kind, size = value >> 1 & 3, value >> 3
    _require(kind != RESERVED_BLOCK and (kind == RLE_BLOCK or size <= BLOCK_MAX))
    return bool(value & 1), 1 if kind == RLE_BLOCK else size


def _require(condition: bool) -> None:
    if not condition:
        raise ImageError("this is not a frame that imager writes here")
