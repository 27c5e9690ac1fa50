"""Linux swap space: the header is kept, the pages are not.

Source: mkswap(8); `union swap_header` in the kernel's include/linux/swap.h. The first page holds
the header at byte 1024 and ends with a signature, whose place therefore tells the page size; the
header is in the byte order of the machine that made it.

    | 1024 bytes for boot loaders | header, bad pages ... | SWAPSPACE2 | page 1 | ... | last_page |
                                                           ^ page size - 10

Whatever was swapped out means nothing to the next boot, with one exception: a hibernation image.
Nothing but a signature leads a boot to it: kernel (kernel/power/swap.c) and uswsusp write theirs
over SWAPSPACE2 as the last step of suspending, TuxOnIce there or at the beginning of the page, and
resuming puts SWAPSPACE2 back. So these are looked for at the end of every possible page, and behind
an ordinary signature there may be remains of an image, but no boot will resume from them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import Allocation, Volume


class SwapHeader(NamedTuple):
    """The fields of `info` in `union swap_header`, as far as they say where the space is."""

    version: int
    last_page: int
    nr_badpages: int


_HEADER = {"little": struct.Struct("<III"), "big": struct.Struct(">III")}
_HEADER_AT = 1024
_VERSION = 1

_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_KEPT = max(_PAGE_SIZES)
"""The first page of any page size, so that what is kept does not depend on a guess."""

_SIGNATURE_SIZE = 10
_SWAP_SIGNATURE = b"SWAPSPACE2"
_OLD_SIGNATURE = b"SWAP-SPACE"
_TUXONICE = b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"
_IMAGE_SIGNATURES = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", _TUXONICE)

_BAD_PAGES_AT = 1536
"""Where the list of bad pages begins; it ends before the signature."""


def read_allocation(volume: Volume) -> Allocation:
    """The first 64 KiB of a swap space; the rest of it is not in use.

    Raises NotUnderstoodError where there is, or might be, a hibernation image, or where the header
    leaves a doubt, and ReadFailedError where it cannot be read.
    """
    if volume.size < _KEPT:
        raise NotUnderstoodError("too small for a swap space")
    start = volume.read(0, _KEPT)
    ends = {size: start[size - _SIGNATURE_SIZE : size] for size in _PAGE_SIZES}
    if start.startswith(_TUXONICE) or any(
        end.startswith(_IMAGE_SIGNATURES) for end in ends.values()
    ):
        raise NotUnderstoodError("holds a hibernation image")
    if _OLD_SIGNATURE in ends.values():
        raise NotUnderstoodError("swap space of version 0")
    page_sizes = [size for size, end in ends.items() if end == _SWAP_SIGNATURE]
    if len(page_sizes) != 1:
        raise NotUnderstoodError("no swap signature, or more than one")
    size = _swap_size(start, page_sizes[0])
    # The kernel does not use a space that is cut off; one that is shorter than its volume is
    # normal, and the caller keeps what lies behind.
    if size > volume.size:
        raise NotUnderstoodError("swap space is larger than its volume")
    return Allocation(Extents.span(0, min(_KEPT, size)), size)


def _swap_size(start: bytes, page_size: int) -> int:
    """How many bytes the header says that the space has."""
    for layout in _HEADER.values():
        header = SwapHeader._make(layout.unpack_from(start, _HEADER_AT))
        if header.version == _VERSION:
            break
    else:
        raise NotUnderstoodError("swap space of an unknown version")
    bad_pages = (page_size - _SIGNATURE_SIZE - _BAD_PAGES_AT) // 4
    if header.last_page == 0 or header.nr_badpages > min(bad_pages, header.last_page):
        raise NotUnderstoodError("swap header makes no sense")
    return (header.last_page + 1) * page_size
