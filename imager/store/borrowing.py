"""What images still need of each other: which chunks of an expired image somebody reads.

An image needs a range of its parent where it says "as the parent's", and of that or an older image
where it has a delta against that one's chunk. Going from children to parents, of each image only the
index is read, and only once:

    kept     | all          |            the whole disk is needed
      parent | a   b   .  d |            what the child leaves to it
        parent   a   .      |            and what that leaves to the next
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from imager.extents import Extents, ExtentsBuilder
from imager.image.format import ChunkKind, Entry
from imager.image.index import Segment
from imager.image.reader import ImageReader, LostRange
from imager.store.catalog import State, StoredImage


@dataclass(eq=False)
class Demand:
    """What is needed of one image."""

    image: StoredImage
    ranges: Extents = field(default_factory=Extents)
    """Disk ranges whose content somebody reads from it."""
    referred_to: bool = False
    """Whether an image that stays names it: then its structure is needed, if nothing else."""


def demands(images: Sequence[StoredImage], kept: Iterable[StoredImage]) -> tuple[Demand, ...]:
    """What the `kept` images need of all the images in their folder, children before parents.

    An image that is not kept and that nobody who stays refers to needs nothing itself. Where
    references run in a circle, which no capture makes, everything in it is needed.
    """
    by_uuid: dict[str, list[Demand]] = {}
    for image in images:
        by_uuid.setdefault(image.uuid, []).append(Demand(image))
    every = [demand for group in by_uuid.values() for demand in group]
    for image in kept:
        for demand in by_uuid[image.uuid]:
            demand.ranges = _whole(demand.image)
            demand.referred_to = True
    ordered = list(_children_first(every, by_uuid))
    for demand in every:
        if demand not in ordered:
            demand.ranges = _whole(demand.image)
            demand.referred_to = True
            ordered.append(demand)
    for demand in ordered:
        if demand.referred_to and demand.image.parents:
            for uuid, needed in zip(demand.image.parents, _borrowed(demand), strict=True):
                for other in by_uuid.get(uuid, ()):
                    other.ranges |= needed
                    other.referred_to = True
    return tuple(ordered)


def unneeded_frames(image: ImageReader, needed: Extents) -> Iterator[Entry]:
    """The entries whose stored frames hold nothing of these disk ranges."""
    for segment in image.segments():
        if isinstance(segment, LostRange):
            continue  # its frames cannot be told from one another
        for start, end, entry in segment.placed(image.head.chunk_size):
            if entry.stored_size and not needed.count(start, end):
                yield entry


def _whole(image: StoredImage) -> Extents:
    return Extents.span(0, image.head.disk_size) if image.head.disk_size else Extents()


def _children_first(every: Sequence[Demand], by_uuid: dict[str, list[Demand]]) -> Iterator[Demand]:
    children = {id(demand): 0 for demand in every}
    for demand in every:
        for uuid in demand.image.parents:
            for parent in by_uuid.get(uuid, ()):
                children[id(parent)] += 1
    ready = [demand for demand in every if not children[id(demand)]]
    while ready:
        demand = ready.pop()
        yield demand
        for uuid in demand.image.parents:
            for parent in by_uuid.get(uuid, ()):
                children[id(parent)] -= 1
                if not children[id(parent)]:
                    ready.append(parent)


def _borrowed(demand: Demand) -> list[Extents]:
    """What an image reads, to give its own needed ranges, from each one that it refers to."""
    image = demand.image
    if image.state is State.PARTIAL:
        return [_whole(image) for _ in image.parents]  # what it will need is not written yet
    needed = [ExtentsBuilder() for _ in image.parents]
    with ImageReader(image.files.opened_as) as reader:
        for segment in reader.segments():
            if isinstance(segment, LostRange):
                for builder in needed:
                    builder.add(segment.start, segment.end)
                continue
            for item, start, end in _references(segment, demand.ranges, image.head.chunk_size):
                needed[item].add(start, end)
    return [builder.build() for builder in needed]


def _references(
    segment: Segment, ranges: Extents, chunk_size: int
) -> Iterator[tuple[int, int, int]]:
    """Items of the table of references, each with a disk range that is needed of that image."""
    for start, end, entry in segment.placed(chunk_size):
        if entry.kind == ChunkKind.PARENT:
            for low, high in ranges.clip(start, end).align(chunk_size).clip(start, end):
                yield 0, low, high
        elif entry.kind == ChunkKind.DELTA and ranges.count(start, end):
            yield segment.bases[entry.reference].parent, start, end
