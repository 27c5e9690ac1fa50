"""The image format's constants and binary structures, version 1.2 (docs/format.md).

All integers are little-endian. Every structure is declared here once, as data.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

MAJOR = 1
MINOR = 0
MINOR_INCREMENTAL = 1
"""Incremental images, and free space, came with version 1.1; others stay what 1.0 made them."""
MINOR_REVISED = 2
"""Images some of whose segments replace others."""
RELEASE = b"imager 0.1"
"""The first release that reads images of this version."""

INCOMPATIBLE_PARTIAL = 1 << 0
"""Some partitions were left out by request: not the image of a whole disk."""
INCOMPATIBLE_INCREMENTAL = 1 << 1
"""Holds only what differs from its parent, without which it cannot be read."""
INCOMPATIBLE_FREE = 1 << 2
"""Some space between frames is free: it was captured from a disk in use, and patched."""
INCOMPATIBLE_REVISED = 1 << 3
"""Segments may replace what earlier ones say: captured from a disk in use, and never patched."""
KNOWN_INCOMPATIBLE = (
    INCOMPATIBLE_PARTIAL | INCOMPATIBLE_INCREMENTAL | INCOMPATIBLE_FREE | INCOMPATIBLE_REVISED
)
GUARDED = INCOMPATIBLE_PARTIAL | INCOMPATIBLE_INCREMENTAL | INCOMPATIBLE_REVISED
"""With any of these plain `zstd` would give something else than the disk."""
KNOWN_READ_COMPATIBLE = 0
"""Features that an older release may read, but must not change the image."""

SKIPPABLE_TEXT = 0x184D2A5C
"""Skippable frame of the opening: text for a person."""
SKIPPABLE_RECORD = 0x184D2A5D
"""Skippable frame that holds a record of ours."""
SKIPPABLE_SEEK_TABLE = 0x184D2A5E
"""Skippable frame of the zstd seekable format's seek table."""
SEEKABLE_MAGIC = 0x8F92EAB1
"""Last four bytes of a seek table (zstd, contrib/seekable_format/zstd_seekable_compression_format.md)."""
SEEKABLE_MAX_FRAMES = 1 << 27

OPENING_SIZE = 512
GUARD_DICTIONARY_ID = int.from_bytes(b"IMAG", "little")
"""In the range for private use (RFC 8878, section 5: 32768 to 2^31 - 1)."""

MIN_CHUNK = 1 << 16
MAX_CHUNK = 1 << 24
DEFAULT_CHUNK = 1 << 20
MAX_ZERO_RUN = 1 << 30
"""Bytes that one zero frame decodes to at most."""
MAX_ZERO_FRAME = 1 << 20
"""Bytes of the largest frame that a run of zeros may take; ours take 32 KiB."""
SEGMENT_ENTRIES = 64
"""Entries after which the writer closes a segment."""
SEGMENT_RANGES = 1 << 16
"""Map ranges after which the writer closes a segment early."""
SEGMENT_BYTES = 1 << 25
"""Bytes of frames after which the writer closes a segment early."""
MAX_SEGMENT_ENTRIES = 1 << 12
"""Entries of a segment that a reader accepts."""
MAX_SEGMENT_FRAMES = 1 << 26
"""Bytes of frames that a segment has at most: a reader from a pipe holds them in memory."""
MAX_SEGMENT = 1 << 22
"""A segment record larger than this is not ours (bytes); two fillings of ranges and a chunk's fit."""
MAX_JSON = 1 << 22
"""A head or manifest larger than this is not ours (bytes); parsed it takes 25 times as much."""
MAX_INDEX = 1 << 28
"""An index larger than this is not ours (bytes)."""
MAX_REVISED_SEGMENTS = 1 << 20
"""Segments of a revised image, replaced ones included: a reader sorts them in memory."""
MIN_INDEX_RECORD = 4096
"""The index lies between the two footers; padded so that no sector holds parts of both."""
SEPARATOR_SIZE = 4096
"""Zeros between the last segment and the first copy (bytes): no sector holds parts of both."""
ZERO_WINDOW = 1 << 17
"""Window of a frame of zeros (bytes): decoders with little memory cope with it."""

MAX_CHAIN = 512
"""Images of a chain, the full one included."""
MAX_PARENT_RUN = 1 << 16
"""Chunks after which the writer begins another run of the parent's chunks."""
MAX_PARENTS = 8
"""Images that a head refers to."""
DELTA_STRIDE = 4
"""How far, in powers of this, some images' deltas reach back in the chain; see `parent_image`."""
MAX_DELTA_DEPTH = 12
"""Deltas one upon the other that a writer makes."""
MAX_DELTA_DEPTH_READ = 32
"""Deltas one upon the other that a reader follows."""

MAX_FREE_RECORD = 1 << 20
"""Bytes of a record of free space; larger space is several of them."""

SKIPPABLE = Struct("<II")


def max_window(chunk_size: int) -> int:
    """The largest window that a frame may ask a decoder to allocate (bytes)."""
    return max(chunk_size, ZERO_WINDOW)


def max_frame(chunk_size: int) -> int:
    """The most bytes that a chunk's frame may take: zstd's bound, generously."""
    return chunk_size + (chunk_size >> 7) + 1024


class RecordHeader(NamedTuple):
    """What each record begins with; payload and a 32-byte hash of all that precedes it follow."""

    magic: int
    size: int
    tag: bytes
    hash_algorithm: int
    reserved: int
    uuid: bytes


RECORD_HEADER = Struct("<II4sHH16s")


class Tag:
    """The four letters that name a record's kind."""

    HEAD = b"HEAD"
    SEGMENT = b"SEGM"
    SEGMENT_COPY = b"SEGC"
    SEPARATOR = b"VOID"
    PART = b"PART"
    FREE = b"FREE"
    MANIFEST = b"MANI"
    INDEX = b"INDX"
    FOOTER = b"FOOT"


class Version(NamedTuple):
    """The head's fixed beginning, the same in all versions; JSON follows."""

    major: int
    minor: int
    incompatible: int
    read_compatible: int
    optional: int
    release: bytes


VERSION = Struct("<HHQQQ24s")


class ChunkKind(IntEnum):
    """How the chunks of an entry are stored."""

    DATA = 1
    """One chunk in one zstd frame."""
    ZERO = 2
    """A run of chunks that are all zero, in one zstd frame."""
    PARENT = 3
    """A run of chunks that are the parent's at the same place; no frame."""
    DELTA = 4
    """One chunk in a zstd frame whose dictionary is a chunk of an ancestor."""


OWN_MAPS = 1 << 0
"""Flag of a run of the parent's chunks: not its maps, the segment's own ones count."""


class Entry(NamedTuple):
    """A chunk of a segment and its frame; or a run of chunks: zeros, or the parent's."""

    offset: int
    """Where the frame begins (or would, if it has none) in the image file."""
    stored_size: int
    chunks: int
    kind: int
    flags: int
    bases: int
    """Of a delta: how many; 1."""
    reference: int
    """Of a delta: its first item in the segment's table of bases."""
    content_hash: bytes
    """Of one decoded chunk; of the parent's chunks the hash of their content hashes."""
    frame_hash: bytes
    """Of the stored frame."""


ENTRY = Struct("<QIIBBHI32s16s")


class Base(NamedTuple):
    """What a delta's dictionary is made of: the chunk of an ancestor at the same place."""

    parent: int
    """Item in the head's table of parents."""
    length: int
    offset: int
    """Disk byte at which it begins in that image."""
    content_hash: bytes


BASE = Struct("<IIQ32s")


class SegmentHeader(NamedTuple):
    """A segment's beginning; entries, bases and maps follow."""

    number: int
    entries: int
    start: int
    """First disk byte that the segment covers."""
    end: int
    maps: int
    bases: int
    """Items in the table of base chunks."""


SEGMENT_HEADER = Struct("<IIQQII")


class RangeKind(IntEnum):
    """Why some bytes of the disk are not what the disk held."""

    UNUSED = 1
    """Free in a file system, or outside partitions: decodes as zeros."""
    UNREADABLE = 2
    """The device gave an error: decodes as zeros."""
    EXCLUDED = 3
    """Left out by request: decodes as zeros; a restore neither writes nor discards it."""


class MapHeader(NamedTuple):
    """A map's beginning; `ranges` pairs of u64 (start, end in disk bytes) follow."""

    kind: int
    ranges: int


MAP_HEADER = Struct("<II")


class IndexHeader(NamedTuple):
    """The index's beginning; one `IndexItem` a segment follows, then zeros up to the minimum size."""

    segments: int
    item_size: int


INDEX_HEADER = Struct("<II")


class IndexItem(NamedTuple):
    """Where a segment and its copy are."""

    start: int
    end: int
    offset: int
    copy_offset: int
    size: int
    """Of the whole record, the same for both."""
    reserved: int
    payload_hash: bytes


INDEX_ITEM = Struct("<QQQQII32s")


class Footer(NamedTuple):
    """Where everything is, and its hash; stored twice, the same."""

    image_size: int
    """Bytes of the whole image, all parts together, the seek table included."""
    head_offset: int
    head_size: int
    manifest_offset: int
    manifest_size: int
    index_offset: int
    index_size: int
    seek_table_offset: int
    seek_table_size: int
    opening_hash: bytes
    head_hash: bytes
    manifest_hash: bytes
    index_hash: bytes
    seek_table_hash: bytes
    content_digest: bytes


FOOTER = Struct("<9Q32s32s32s32s32s32s")
FOOTER_RECORD_SIZE = RECORD_HEADER.size + FOOTER.size + 32


class PartHeader(NamedTuple):
    """The beginning of each part of a split image but the first."""

    number: int
    reserved: int
    offset: int
    """Where the part begins in the joined image: a part that is missing moves no other."""


PART_HEADER = Struct("<IIQ")

SEEK_ENTRY = Struct("<II")
SEEK_FOOTER = Struct("<IBI")
