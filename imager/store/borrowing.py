"""What images still need of each other: which chunks of an expired image somebody reads.

An image needs a range of its parent where it says "as the parent's", and where it has a delta
against the parent's chunk. Going from children to parents, each image is read once, and only its
own index:

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
            needed = _borrowed(demand)
            for uuid in demand.image.parents:
                for parent in by_uuid.get(uuid, ()):
                    parent.ranges |= needed
                    parent.referred_to = True
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


def _borrowed(demand: Demand) -> Extents:
    """The disk ranges that an image reads from its parent to give its own needed ranges."""
    image = demand.image
    if image.state is State.PARTIAL:
        return _whole(image)  # what it will need is not written yet
    needed = ExtentsBuilder()
    with ImageReader(image.files.opened_as) as reader:
        for segment in reader.segments():
            if isinstance(segment, LostRange):
                needed.add(segment.start, segment.end)
                continue
            for start, end in _of_parent(segment, demand.ranges, image.head.chunk_size):
                needed.add(start, end)
    return needed.build()


def _of_parent(segment: Segment, ranges: Extents, chunk_size: int) -> Iterator[tuple[int, int]]:
    for start, end, entry in segment.placed(chunk_size):
        if entry.kind == ChunkKind.PARENT:
            yield from ranges.clip(start, end).align(chunk_size).clip(start, end)
        elif entry.kind == ChunkKind.DELTA and ranges.count(start, end):
            yield start, end
