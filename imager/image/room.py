"""Whether an image can hold the end of so many chunks, known before anything is written."""

from __future__ import annotations

from imager.errors import UsageError
from imager.extents import Extents
from imager.image.format import INDEX_ITEM, SEEK_ENTRY, SEEKABLE_MAX_FRAMES, SEGMENT_ENTRIES
from imager.image.head import Head


def require_room(head: Head, used: Extents, split: int | None) -> None:
    """UsageError where index and seek table of the chunks in use would not fit at the end.

    So it is said before anything is written; `finish` counts the frames that came of them.
    """
    chunks = used.total // head.chunk_size + 2 * len(used)
    if _fits(chunks, split):
        return
    chunks = used.align(head.chunk_size).total // head.chunk_size
    if not _fits(chunks, None):
        raise UsageError(f"{chunks} chunks are too many for one image: use a larger --chunk-size")
    if not _fits(chunks, split):
        raise UsageError(
            f"the last part cannot hold the index of {chunks} chunks: "
            "use a larger --split or --chunk-size"
        )


def _fits(chunks: int, split: int | None) -> bool:
    segments = chunks // SEGMENT_ENTRIES
    frames = chunks + 2 * segments
    size = frames * SEEK_ENTRY.size + segments * INDEX_ITEM.size
    return frames <= SEEKABLE_MAX_FRAMES and (split is None or size <= split)
