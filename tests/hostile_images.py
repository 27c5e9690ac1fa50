"""A collection of images whose hashes are right and whose numbers are not, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zstandard

from imager.image.format import (
    ENTRY,
    INDEX_HEADER,
    INDEX_ITEM,
    MAX_SEGMENT_ENTRIES,
    IndexItem,
)
from imager.image.frames import guard_frame, skippable, zero_frame
from imager.image.head import dump
from tests.forgery import (
    DISK,
    Chunk,
    Forgery,
    encoded_map,
    head_with,
    honest_chunks,
    layout_with,
    volume_with,
    zstd_frame,
)
from tests.image_files import CHUNK

HUGE = (1 << 64) - 1


def with_chunk(number: int, **changes: Any) -> list[Chunk]:
    chunks = honest_chunks()
    for name, value in changes.items():
        setattr(chunks[number], name, value)
    return chunks


def with_frame(frame: bytes, size: int = CHUNK) -> Forgery:
    """The first chunk's frame is this one."""
    return Forgery(chunks=with_chunk(0, frame=frame, size=size))


def with_entry(number: int = 0, **lies: Any) -> Forgery:
    return Forgery(chunks=with_chunk(number, lies=lies))


def claiming(content_size: int | None, window: int | None = None) -> bytes:
    """The first chunk's frame with another header: sizes as RFC 8878, 3.1.1.1 has them."""
    honest = zstd_frame(DISK.content[:CHUNK])
    assert honest[4] == 0x64  # single segment, checksum, two bytes of size
    body = honest[7:]
    if content_size is None:
        return honest[:4] + b"\x04" + b"\x88" + body
    if window is None:
        return honest[:4] + b"\xe4" + content_size.to_bytes(8, "little") + body
    return honest[:4] + b"\xc4" + bytes([window]) + content_size.to_bytes(8, "little") + body


def dictionary_frame() -> bytes:
    frame = zstd_frame(DISK.content[:CHUNK])
    return frame[:4] + bytes([frame[4] | 3]) + (77).to_bytes(4, "little") + frame[5:]


def two_items(**second: Any) -> Callable[[list[IndexItem]], list[IndexItem]]:
    """The index lists the only segment once more, as what follows it."""

    def items(honest: list[IndexItem]) -> list[IndexItem]:
        (item,) = honest
        other = item._replace(start=item.end, end=item.end + CHUNK)
        return [item, other._replace(**second)]

    return items


def item_with(**lies: Any) -> Callable[[list[IndexItem]], list[IndexItem]]:
    return lambda items: [items[0]._replace(**lies)]


def nested(levels: int) -> bytes:
    return b'{"a":' + b"[" * levels + b"]" * levels + b"}"


def head_text(extra: bytes) -> bytes:
    """The honest head with more text at its end."""
    return dump(head_with())[:-1] + b"," + extra + b"}"


HEADS = {
    "disk_size 2^63": Forgery(head_with(disk_size=1 << 63)),
    "disk_size 2^63-1": Forgery(head_with(disk_size=(1 << 63) - 1)),
    "disk_size 2^200": Forgery(head_with(disk_size=1 << 200)),
    "disk_size -1": Forgery(head_with(disk_size=-1)),
    "disk_size 0": Forgery(head_with(disk_size=0)),
    "disk_size 1.5": Forgery(head_with(disk_size=1.5)),
    "disk_size text": Forgery(head_with(disk_size="1")),
    "disk_size true": Forgery(head_with(disk_size=True)),
    "disk_size null": Forgery(head_with(disk_size=None)),
    **{
        f"chunk_size {size}": Forgery(head_with(chunk_size=size))
        for size in (0, 1, -CHUNK, 65535, 1 << 25, 1 << 70)
    },
    **{
        f"sector_size {size}": Forgery(head_with(sector_size=size))
        for size in (0, 3, 256, -512, 1 << 17)
    },
    "split is text": Forgery(head_with(split="no")),
    "head nested 10^6 deep": Forgery(head_json=nested(10**6)),
    "head nested 500 deep": Forgery(head_json=head_text(b'"x":' + b"[" * 500 + b"]" * 500)),
    "number of 10^6 digits": Forgery(head_json=head_text(b'"x":' + b"9" * 10**6)),
    "NaN": Forgery(head_json=head_text(b'"x":NaN')),
    "Infinity": Forgery(head_json=head_text(b'"x":-Infinity')),
    "1e999": Forgery(head_json=head_text(b'"x":1e999')),
    "duplicate keys": Forgery(head_json=head_text(b'"disk_size":512')),
    "head is a list": Forgery(head_json=b"[]"),
    "head is nothing": Forgery(head_json=b""),
    "head is no UTF-8": Forgery(head_json=b'{"a":"\xff\xfe"}'),
    "head is larger than any": Forgery(head_json=head_text(b'"x":"' + b"x" * (5 << 20) + b'"')),
    "head and manifest contradict": Forgery(manifest_head=head_with(created="another time")),
    "head and manifest name two sizes": Forgery(manifest_head=head_with(disk_size=8 * CHUNK)),
    "verdict is a list": Forgery(manifest={"verdict": ["ok"]}),
    "verdict is excellent": Forgery(manifest={"verdict": "excellent"}),
    "layout missing": Forgery({k: v for k, v in head_with().items() if k != "layout"}),
    "layout is a number": Forgery(head_with(layout=7)),
    "layout of another size": Forgery(layout_with(size=CHUNK)),
    "volume at a negative offset": Forgery(volume_with(start=-512)),
    "volume outside of the disk": Forgery(volume_with(start=CHUNK)),
    "volume of 2^63 bytes": Forgery(volume_with(size=1 << 63)),
    "volume of 2^200 bytes": Forgery(volume_with(size=1 << 200)),
    "partition number 2^64": Forgery(volume_with(number=1 << 64)),
    "partition number -1": Forgery(volume_with(number=-1)),
    "volumes overlap": Forgery(layout_with(volumes=DISK.layout().to_json()["volumes"] * 2)),
    "a sound disk of 2^63-1 bytes": Forgery(
        {
            **volume_with(size=(1 << 63) - 1, used=0),
            "disk_size": (1 << 63) - 1,
            "layout": {**volume_with(size=(1 << 63) - 1)["layout"], "size": (1 << 63) - 1},
        },
        items=item_with(end=(1 << 63) - 1),
    ),
    "table outside of the disk": Forgery(
        layout_with(
            table={"kind": "gpt", "uuid": None, "partitions": [], "extents": [[0, 1 << 62]]}
        )
    ),
}

SEGMENTS = {
    "no entries": Forgery(segment_header={"entries": 0, "end": 0}),
    "2^32-1 entries": Forgery(segment_header={"entries": (1 << 32) - 1}),
    "more entries than a segment has": Forgery(
        segment=lambda payload: (
            payload[:4]
            + (MAX_SEGMENT_ENTRIES + 1).to_bytes(4, "little")
            + payload[8:]
            + bytes(ENTRY.size * MAX_SEGMENT_ENTRIES)
        )
    ),
    "bases": Forgery(segment_header={"bases": 1}),
    "start inside of a chunk": Forgery(segment_header={"start": 512}),
    "start behind the end": Forgery(segment_header={"start": 5 * CHUNK}),
    "end behind the disk": Forgery(segment_header={"end": 5 * CHUNK}),
    "end 2^64-1": Forgery(segment_header={"end": HUGE}),
    "hole at the end": Forgery(segment_header={"end": 3 * CHUNK}),
    "another number": Forgery(segment_header={"number": 7}),
    "2^32-1 maps": Forgery(map_count=(1 << 32) - 1),
    "map of 2^32-1 ranges": Forgery(maps=[encoded_map(1, 0, 512, count=(1 << 32) - 1)]),
    "map decreases": Forgery(maps=[encoded_map(1, 1024, 512)]),
    "map is empty inside": Forgery(maps=[encoded_map(1, 512, 512)]),
    "map overlaps itself": Forgery(maps=[encoded_map(1, 0, 1024, 512, 2048)]),
    "map outside": Forgery(maps=[encoded_map(1, 0, 5 * CHUNK)]),
    "map to 2^64-1": Forgery(maps=[encoded_map(1, 0, HUGE)]),
    "map of half sectors": Forgery(maps=[encoded_map(1, 256, 512)]),
    "map of an unknown kind": Forgery(maps=[encoded_map(9, 0, 512)]),
    "map twice": Forgery(maps=[encoded_map(1, 0, 512), encoded_map(1, 512, 1024)]),
    "segment with more behind": Forgery(segment=lambda payload: payload + b"more"),
    "segment cut in an entry": Forgery(segment=lambda payload: payload[:-8]),
    "segment of nothing": Forgery(segment=lambda payload: b""),
    "segment larger than any": Forgery(segment=lambda payload: payload + bytes(5 << 20)),
    **{
        f"entry's {name} {value}": with_entry(number, **{name: value})
        for number, name, value in [
            (0, "offset", 1 << 20),
            (0, "offset", HUGE),
            (0, "offset", 0),
            (2, "offset", 600),
            (0, "stored_size", 0),
            (0, "stored_size", (1 << 32) - 1),
            (0, "stored_size", CHUNK),
            (0, "chunks", 0),
            (0, "chunks", 2),
            (1, "chunks", (1 << 32) - 1),
            (1, "chunks", 1),
            (1, "chunks", 1 << 14),
            (0, "kind", 0),
            (0, "kind", 3),
            (1, "kind", 255),
            (0, "kind", 2),
            (0, "flags", 1),
            (0, "bases", 1),
            (0, "reference", 1),
        ]
    },
    "content hash": with_entry(0, content_hash=bytes(32)),
}

HONEST = zstd_frame(DISK.content[:CHUNK])
FRAMES = {
    "frame claims 2^62": with_frame(claiming(1 << 62)),
    "frame claims one more": with_frame(claiming(CHUNK + 1)),
    "frame claims nothing": with_frame(claiming(None)),
    "frame of another length": with_frame(zstd_frame(bytes(CHUNK - 1))),
    "frame of 1 GiB for a chunk": with_frame(zero_frame(1 << 30), 1 << 30),
    "frame decodes to more than it claims": with_frame(
        zstd_frame(bytes(2 * CHUNK))[:4]
        + b"\x64"
        + (CHUNK - 256).to_bytes(2, "little")
        + zstd_frame(bytes(2 * CHUNK))[9:]
    ),
    "window of 2^41": with_frame(claiming(CHUNK, 0xF8)),
    "window of 2^27": with_frame(claiming(CHUNK, 17 << 3)),
    "dictionary": with_frame(dictionary_frame()),
    "guard": with_frame(guard_frame()),
    "skippable frame": with_frame(skippable(0x184D2A50, b"x" * 100)),
    "two frames": with_frame(HONEST + zstd_frame(b"more")),
    "a frame and an empty one": with_frame(HONEST + zstd_frame(b"")),
    "a frame and a skippable one": with_frame(HONEST + skippable(0x184D2A50, b"")),
    "garbage behind the frame": with_frame(HONEST + b"garbage"),
    "no checksum": with_frame(zstd_frame(DISK.content[:CHUNK], checksum=False)),
    "wrong checksum": with_frame(HONEST[:-4] + b"oops"),
    "frame cut in its checksum": with_frame(HONEST[:-1]),
    "frame cut before its checksum": with_frame(HONEST[:-4]),
    "frame cut in a block": with_frame(HONEST[:12]),
    "only a magic number": with_frame(HONEST[:4]),
    "reserved block": with_frame(HONEST[:7] + b"\x07\0\0" + HONEST[-4:]),
    "block that is too large": with_frame(HONEST[:7] + b"\xfd\xff\xff" + HONEST[10:]),
    "no frame at all": with_frame(b"\0" * 40),
    "zeros that are none": Forgery(chunks=with_chunk(1, frame=zstd_frame(b"x" * (2 * CHUNK)))),
    "zeros of another length": Forgery(chunks=with_chunk(1, frame=zero_frame(3 * CHUNK))),
    "zeros with more behind": Forgery(
        chunks=with_chunk(1, frame=zero_frame(2 * CHUNK) + zstd_frame(b"x"))
    ),
    "zeros in a window of 2^27": Forgery(
        chunks=with_chunk(
            1,
            frame=zstandard.ZstdCompressor(
                compression_params=zstandard.ZstdCompressionParameters(
                    window_log=27, write_checksum=True
                )
            )
            .compressobj(size=2 * CHUNK)
            .compress(bytes(CHUNK)),
        )
    ),
}

INDEXES = {
    "2^32-1 segments": Forgery(
        index=lambda payload: INDEX_HEADER.pack((1 << 32) - 1, INDEX_ITEM.size) + payload[8:]
    ),
    "items of no size": Forgery(
        index=lambda payload: INDEX_HEADER.pack((1 << 32) - 1, 0) + payload[8:]
    ),
    "index of nothing": Forgery(index=lambda payload: b""),
    "no segments": Forgery(items=lambda items: []),
    "segments overlap": Forgery(items=two_items(start=CHUNK, end=4 * CHUNK)),
    "segments loop": Forgery(items=two_items(start=0, end=4 * CHUNK)),
    "segments leave a hole": Forgery(items=item_with(start=CHUNK)),
    "segments end early": Forgery(items=item_with(end=CHUNK)),
    "segments go behind the disk": Forgery(items=two_items()),
    "empty segment": Forgery(items=two_items(end=4 * CHUNK)),
    "segment of 2^64": Forgery(items=item_with(end=HUGE)),
    "segment at 2^64-1": Forgery(items=item_with(offset=HUGE, copy_offset=HUGE)),
    "segment at 0": Forgery(items=item_with(offset=0, copy_offset=0)),
    "segment is the head": Forgery(items=item_with(offset=512)),
    "segment is its copy": Forgery(
        items=lambda items: [items[0]._replace(offset=items[0].copy_offset)]
    ),
    "segment of 2^32-1 bytes": Forgery(items=item_with(size=(1 << 32) - 1)),
    "segment of no bytes": Forgery(items=item_with(size=0)),
    "segment of another hash": Forgery(
        items=lambda items: [items[0]._replace(payload_hash=bytes(32))]
    ),
}

FOOTERS = {
    **{
        f"footer's {name} {value}": Forgery(footer={name: value})
        for name in (
            "image_size",
            "head_offset",
            "head_size",
            "manifest_offset",
            "manifest_size",
            "index_offset",
            "index_size",
            "seek_table_offset",
            "seek_table_size",
        )
        for value in (1, 513, HUGE)
    },
    **{
        f"footer's {name}": Forgery(footer={name: bytes(32)})
        for name in (
            "opening_hash",
            "head_hash",
            "manifest_hash",
            "index_hash",
            "seek_table_hash",
            "content_digest",
        )
    },
    "seek table of 2^27 frames": Forgery(seek_frames=1 << 27),
    "seek table of 2^32-1 frames": Forgery(seek_frames=(1 << 32) - 1),
    "seek table of no frames": Forgery(seek_frames=0),
    "seek table says less": Forgery(seek_entries=lambda entries: entries[:-1]),
    "seek table says more": Forgery(seek_entries=lambda entries: [*entries, (8, 0)]),
    "seek table lies about a size": Forgery(
        seek_entries=lambda entries: [*entries[:3], (1, 2), *entries[4:]]
    ),
}

HOSTILE = {**HEADS, **SEGMENTS, **FRAMES, **INDEXES, **FOOTERS}
