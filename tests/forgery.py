"""Images whose hashes are all right and whose numbers lie: what an attacker would make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import zstandard

from imager.image.format import (
    ENTRY,
    FOOTER,
    FOOTER_RECORD_SIZE,
    INDEX_ITEM,
    MAJOR,
    MAP_HEADER,
    MINOR,
    OPENING_SIZE,
    RELEASE,
    SEEK_ENTRY,
    SEEK_FOOTER,
    SEEKABLE_MAGIC,
    SEGMENT_HEADER,
    SEPARATOR_SIZE,
    SKIPPABLE_SEEK_TABLE,
    VERSION,
    Entry,
    Footer,
    IndexItem,
    SegmentHeader,
    Tag,
    Version,
)
from imager.image.frames import guard_frame, skippable, zero_frame
from imager.image.hashing import ContentDigest, hash_algorithm
from imager.image.head import dump
from imager.image.index import encode_index
from imager.image.opening import is_guarded, plain_opening
from imager.image.records import OVERHEAD, encode_record
from tests.image_files import CHUNK, UUID, Disk

ALGORITHM = hash_algorithm("blake3")
DISK = Disk(b"first chunk".ljust(CHUNK, b".") + bytes(2 * CHUNK) + b"last" * (CHUNK // 4))


def zstd_frame(content: bytes, checksum: bool = True, size: bool = True) -> bytes:
    """An honest frame, or one that says less."""
    compressor = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size)
    return compressor.compress(content)


@dataclass
class Chunk:
    """A frame and what its entry says, which `lies` may change."""

    frame: bytes
    size: int
    """Bytes that the seek table says it decodes to."""
    content: bytes
    """One chunk, for the content hash."""
    chunks: int = 1
    kind: int = 1
    lies: dict[str, Any] = field(default_factory=dict)


def honest_chunks() -> list[Chunk]:
    first, last = DISK.content[:CHUNK], DISK.content[-CHUNK:]
    return [
        Chunk(zstd_frame(first), CHUNK, first),
        Chunk(zero_frame(2 * CHUNK), 2 * CHUNK, bytes(CHUNK), chunks=2, kind=2),
        Chunk(zstd_frame(last), CHUNK, last),
    ]


def _same(value: Any) -> Any:
    return value


@dataclass
class Forgery:
    """An image in the making; everything is honest but for what a test changes."""

    head: dict[str, Any] = field(default_factory=lambda: DISK.head().to_json())
    head_json: bytes | None = None
    """Instead of `head`, as it is."""
    manifest_head: dict[str, Any] | None = None
    manifest: dict[str, Any] = field(
        default_factory=lambda: {"verdict": "ok", "unreadable_bytes": 0}
    )
    version: dict[str, Any] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=honest_chunks)
    segment_header: dict[str, Any] = field(default_factory=dict)
    maps: list[bytes] = field(default_factory=list)
    """Encoded maps, header and ranges."""
    map_count: int | None = None
    segment: Callable[[bytes], bytes] = _same
    items: Callable[[list[IndexItem]], list[IndexItem]] = _same
    index: Callable[[bytes], bytes] = _same
    footer: dict[str, Any] = field(default_factory=dict)
    seek_entries: Callable[[list[tuple[int, int]]], list[tuple[int, int]]] = _same
    seek_frames: int | None = None
    uuid: bytes = UUID
    opening: bytes = plain_opening(DISK.size, False)
    bases: list[bytes] = field(default_factory=list)
    """Encoded bases of deltas."""

    def build(self) -> bytes:
        """The image."""
        seek: list[tuple[int, int]] = []
        out = bytearray()

        def emit(frame: bytes, decoded: int = 0) -> int:
            out.extend(frame)
            seek.append((len(frame), decoded))
            return len(out) - len(frame)

        guard = len(guard_frame()) if is_guarded(self.opening) else 0
        if guard:
            emit(self.opening[:guard])
        emit(self.opening[guard:])
        sealed = partial(record, uuid=self.uuid)
        head = sealed(Tag.HEAD, self._version() + self._head_json())
        emit(head)
        entries = []
        for chunk in self.chunks:
            offset = emit(chunk.frame, chunk.size) if chunk.frame else len(out)
            entry = Entry(
                offset,
                len(chunk.frame),
                chunk.chunks,
                chunk.kind,
                0,
                0,
                0,
                ALGORITHM.digest(chunk.content),
                ALGORITHM.frame_digest(chunk.frame),
            )
            entries.append(entry._replace(**chunk.lies))
        payload = self.segment(self._segment(entries))
        segment_offset = emit(sealed(Tag.SEGMENT, payload))
        emit(sealed(Tag.SEPARATOR, bytes(SEPARATOR_SIZE)))
        copy_offset = emit(sealed(Tag.SEGMENT_COPY, payload))
        start, end = SEGMENT_HEADER.unpack_from(payload.ljust(SEGMENT_HEADER.size, b"\0"))[2:4]
        item = IndexItem(
            start,
            end,
            segment_offset,
            copy_offset,
            len(payload) + OVERHEAD,
            0,
            ALGORITHM.digest(payload),
        )
        manifest_json = {"head": self.manifest_head or self.head, **self.manifest}
        manifest = sealed(Tag.MANIFEST, self._version() + dump(manifest_json))
        if self.head_json is not None:
            text = b'{"head":' + self.head_json + b',"verdict":"ok"}'
            manifest = sealed(Tag.MANIFEST, self._version() + text)
        manifest_offset = emit(manifest)
        encoded = b"".join(INDEX_ITEM.pack(*each) for each in self.items([item]))
        index = sealed(Tag.INDEX, self.index(encode_index(encoded, OVERHEAD)))
        for size in (FOOTER_RECORD_SIZE, len(index), FOOTER_RECORD_SIZE):
            seek.append((size, 0))
        index_offset = len(out) + FOOTER_RECORD_SIZE
        seek_offset = index_offset + len(index) + FOOTER_RECORD_SIZE
        listed = self.seek_entries(seek)
        count = len(listed) if self.seek_frames is None else self.seek_frames
        table = b"".join(SEEK_ENTRY.pack(*each) for each in listed)
        table = skippable(SKIPPABLE_SEEK_TABLE, table + SEEK_FOOTER.pack(count, 0, SEEKABLE_MAGIC))
        digest = ContentDigest(ALGORITHM, DISK.size, CHUNK)
        for entry in entries:
            digest.add(entry.content_hash, min(entry.chunks, 1 << 20))
        footer = Footer(
            image_size=seek_offset + len(table),
            head_offset=OPENING_SIZE,
            head_size=len(head),
            manifest_offset=manifest_offset,
            manifest_size=len(manifest),
            index_offset=index_offset,
            index_size=len(index),
            seek_table_offset=seek_offset,
            seek_table_size=len(table),
            opening_hash=ALGORITHM.digest(self.opening),
            head_hash=ALGORITHM.digest(head),
            manifest_hash=ALGORITHM.digest(manifest),
            index_hash=ALGORITHM.digest(index),
            seek_table_hash=ALGORITHM.digest(table),
            content_digest=digest.result(),
        )._replace(**self.footer)
        foot = sealed(Tag.FOOTER, FOOTER.pack(*footer))
        return bytes(out) + foot + index + foot + table

    def _version(self) -> bytes:
        version = Version(MAJOR, MINOR, 0, 0, 0, RELEASE)
        return VERSION.pack(*version._replace(**self.version))

    def _head_json(self) -> bytes:
        return dump(self.head) if self.head_json is None else self.head_json

    def _segment(self, entries: list[Entry]) -> bytes:
        header = SegmentHeader(
            number=0,
            entries=len(entries),
            start=0,
            end=DISK.size,
            maps=len(self.maps) if self.map_count is None else self.map_count,
            bases=len(self.bases),
        )._replace(**self.segment_header)
        packed = [ENTRY.pack(*entry) for entry in entries]
        return b"".join([SEGMENT_HEADER.pack(*header), *packed, *self.bases, *self.maps])


def record(tag: bytes, payload: bytes, uuid: bytes = UUID) -> bytes:
    """A record with the right hash."""
    return encode_record(tag, uuid, ALGORITHM, payload)


def encoded_map(kind: int, *bounds: int, count: int | None = None) -> bytes:
    """A map with these boundaries, in whatever order."""
    number = len(bounds) // 2 if count is None else count
    return MAP_HEADER.pack(kind, number) + b"".join(b.to_bytes(8, "little") for b in bounds)


def head_with(**facts: Any) -> dict[str, Any]:
    """The honest head with other facts."""
    return {**DISK.head().to_json(), **facts}


def layout_with(**facts: Any) -> dict[str, Any]:
    """The honest head with another layout."""
    return head_with(layout={**DISK.layout().to_json(), **facts})


def volume_with(**facts: Any) -> dict[str, Any]:
    """The honest head with another volume in its layout."""
    (volume,) = DISK.layout().to_json()["volumes"]
    return layout_with(volumes=[{**volume, **facts}])
