"""What a whole image says without a look at any frame: its maps, and whether all references hold."""

from __future__ import annotations

from typing import NamedTuple

from imager.errors import ImageError
from imager.extents import Extents, ExtentsBuilder
from imager.image.chain import Chain
from imager.image.format import RangeKind
from imager.image.hashing import ContentDigest
from imager.image.reader import LostRange
from imager.pipeline import Progress


class Survey(NamedTuple):
    """What was found."""

    maps: dict[RangeKind, Extents]
    lost: Extents
    """Disk ranges of which nobody knows what they hold."""
    problem: str
    """Why something is lost, or what is wrong with the whole; empty if all is well."""


def survey(chain: Chain, progress: Progress) -> Survey:
    """Go through the whole disk of a complete image."""
    maps = {kind: ExtentsBuilder() for kind in RangeKind}
    lost = ExtentsBuilder()
    problem = ""
    head, image = chain.head, chain.image
    digest = ContentDigest(image.algorithm, head.disk_size, head.chunk_size)
    for piece in chain.pieces():
        if isinstance(piece, LostRange):
            lost.add(piece.start, piece.end)
            problem = problem or piece.reason or "a segment and its copy are damaged"
            continue
        for kind, extents in piece.segment.maps.items():
            for start, end in extents:
                maps[kind].add(start, end)
        for entry in piece.segment.entries:
            digest.add(entry.content_hash, entry.chunks)
        progress("survey", piece.segment.end, head.disk_size)
    if not problem and (image.footer is None or digest.result() != image.footer.content_digest):
        problem = "the content digest differs from the chunks' hashes"
    return Survey({kind: found.build() for kind, found in maps.items()}, lost.build(), problem)


def require_sound(chain: Chain, found: Survey, distrusted: Extents | None = None) -> None:
    """ImageError unless nothing is wrong but in the `distrusted` ranges of the disk."""
    if found.problem and (not found.lost or found.lost - (distrusted or Extents())):
        raise ImageError(f"{chain.image.file.path} is damaged: {found.problem}")
