"""Parses the kernel's binary trace pages: bytes in, ranges of sectors out.

A page of a per-CPU ring buffer (linux/ring_buffer.h; `events/header_page` gives the offsets):

    u64 time | commit: length in the low 20 bits, flags above | events ...

An event begins with u32: type_len in the low 5 bits, a time difference above. type_len 1 to 28 is
the payload's size in words; 0: its size in bytes follows as u32; 29: padding; 30, 31: time stamps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import Struct, error

from imager.errors import NotCaughtError

_LENGTH = 0xFFFFF
_MISSED = 1 << 31
"""Events were lost before this page."""
_PADDING, _TIME_EXTEND = 29, 30
_U32 = Struct("<I")
_EVENT_START = Struct("<IIH")
"""Header, the word behind it, and where the payload begins behind that: the event's type."""

_FIELD = re.compile(
    r"field:\s*(?P<declared>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
)
_ID = re.compile(r"^ID: (\d+)$", re.MULTILINE)


class TraceFormatError(NotCaughtError):
    """The kernel's trace data does not look as it should: writes cannot be followed."""


@dataclass(frozen=True)
class PageFormat:
    """Where things are in a page and in the payload of an event."""

    commit: int
    """Offset of the commit word in a page."""
    data: int
    """Offset of the first event in a page."""
    event: int
    """The number of the one event type that is recorded."""
    sector: int
    """Offset in the payload of the first sector, u64."""
    count: int
    """Offset in the payload of the number of sectors, u32."""


def page_format(header_page: str, event_format: str) -> PageFormat:
    """Read the kernel's own descriptions; TraceFormatError where they are not as expected."""
    page, event = _fields(header_page), _fields(event_format)
    number = _ID.search(event_format)
    try:
        if number is None or event["common_type"] != (0, 2):
            raise KeyError("common_type")
        for fields, name, size in ((page, "commit", 8), (event, "sector", 8)):
            if fields[name][1] != size:
                raise KeyError(name)
        if event["nr_sector"][1] != 4:
            raise KeyError("nr_sector")
        return PageFormat(
            page["commit"][0],
            page["data"][0],
            int(number[1]),
            event["sector"][0],
            event["nr_sector"][0],
        )
    except KeyError as missing:
        raise TraceFormatError(
            f"this kernel describes its trace records in another way ({missing.args[0]}): "
            "writes cannot be followed; unmount the disk, or boot another system to capture it"
        ) from None


def parse_page(page: bytes, layout: PageFormat) -> tuple[list[tuple[int, int]], bool]:
    """The (first sector, sectors) of each event in a page, and whether events before it were lost.

    Events of other types are passed over. Raises TraceFormatError where the page makes no sense.
    """
    found: list[tuple[int, int]] = []
    try:
        commit = _U32.unpack_from(page, layout.commit)[0]
        position = layout.data
        end = position + (commit & _LENGTH)
        if end > len(page):
            raise error
        read_start = _EVENT_START.unpack_from
        # One read for both numbers, wherever this kernel has put them: a million events a second.
        first = min(layout.sector, layout.count)
        sector_first = layout.sector < layout.count
        between = abs(layout.count - layout.sector) - (8 if sector_first else 4)
        read_numbers = Struct(f"<Q{between}xI" if sector_first else f"<I{between}xQ").unpack_from
        kind, append = layout.event, found.append
        while position + 10 <= end:
            header, word, event = read_start(page, position)
            length = header & 31
            if 1 <= length <= 28:
                payload = position + 4
                following = payload + 4 * length
                event = word & 0xFFFF
            elif length == 0:
                payload = position + 8
                following = position + 4 + word
                if word < 8:
                    raise error
            elif length == _PADDING:
                if header >> 5 == 0:
                    break
                position += 4 + word
                continue
            else:
                position += 8
                continue
            if following > end:
                raise error
            if event == kind:
                one, other = read_numbers(page, payload + first)
                append((one, other) if sector_first else (other, one))
            position = following
    except error:
        raise TraceFormatError("the kernel's trace records make no sense") from None
    return found, bool(commit & _MISSED)


def _fields(text: str) -> dict[str, tuple[int, int]]:
    """Name to (offset, size) of each field that is declared like a C variable."""
    found: dict[str, tuple[int, int]] = {}
    for match in _FIELD.finditer(text):
        name = match["declared"].split()[-1].partition("[")[0]
        found.setdefault(name, (int(match["offset"]), int(match["size"])))
    return found
