"""Free space between the frames of an image: records of zeros, for what a patched image has left over.

An image of a disk in use is patched while it is still `.partial`: chunks that were read again
replace those read first. Some room behind each segment lets the new ones fit in most cases.
"""

from __future__ import annotations

from collections.abc import Iterator

from imager.image.format import MAX_FREE_RECORD, Tag
from imager.image.hashing import HashAlgorithm
from imager.image.records import OVERHEAD, encode_record

HEAD_SLACK = 1 << 16
"""Room behind the head, which is written anew when the disk's final state is known (bytes)."""
_MIN_SLACK = 1 << 14
_SHARE = 64
"""A segment's slack is this part of its frames: docs/decisions.md has the measurements."""


def segment_slack(frames: int) -> int:
    """Room to be left behind a segment with `frames` bytes of frames."""
    return max(frames // _SHARE, _MIN_SLACK)


def free_sizes(size: int) -> Iterator[int]:
    """The sizes of the records that fill `size` bytes; 0, or at least `OVERHEAD`."""
    if 0 < size < OVERHEAD:
        raise ValueError(f"{size} bytes of free space cannot be")
    while size:
        part = min(size, MAX_FREE_RECORD)
        if 0 < size - part < OVERHEAD:
            part -= OVERHEAD
        yield part
        size -= part


def free_records(size: int, uuid: bytes, algorithm: HashAlgorithm) -> Iterator[bytes]:
    """Records that fill `size` bytes."""
    for part in free_sizes(size):
        yield encode_record(Tag.FREE, uuid, algorithm, bytes(part - OVERHEAD))
