"""$LogFile: whether the volume's metadata waits for the log to be replayed.

Format: libntfs-3g's logfile.h; "NTFS Documentation" of the Linux-NTFS project, file $LogFile.

    page 0: restart page   page 1: its second copy   then: pages of log records

Only the restart pages are read. Records are not: replaying them needs the tables that Windows
wrote with its last checkpoint and the meaning of operations that nobody has documented (Windows 10
added some), and no map can be *proved* from a guess. So a volume whose log waits is stored whole.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from imager.errors import NotUnderstoodError
from imager.filesystems.ntfs.record import STRIDE, apply_fixups
from imager.filesystems.ntfs.runlist import Stream

_RESTART_PAGE = Struct("<4sHHQIIHhh")
_RESTART_AREA = Struct("<QHHHHIHHqIHHII")
_CLIENT_SIZE = 160
_NO_CLIENT = 0xFFFF
_VOLUME_IS_CLEAN = 0x0002

_MAX_PAGE = 64 << 10


class RestartPageHeader(NamedTuple):
    """RESTART_PAGE_HEADER."""

    magic: bytes
    usa_ofs: int
    usa_count: int
    chkdsk_lsn: int
    system_page_size: int
    log_page_size: int
    restart_area_offset: int
    minor_ver: int
    major_ver: int


class RestartArea(NamedTuple):
    """RESTART_AREA."""

    current_lsn: int
    log_clients: int
    client_free_list: int
    client_in_use_list: int
    flags: int
    seq_number_bits: int
    restart_area_length: int
    client_array_offset: int
    file_size: int
    last_lsn_data_length: int
    log_record_header_length: int
    log_page_data_offset: int
    restart_log_open_count: int
    reserved: int

    @property
    def is_clean(self) -> bool:
        """Windows 2000 and older close the log; later ones leave it open but set a flag."""
        return self.client_in_use_list == _NO_CLIENT or bool(self.flags & _VOLUME_IS_CLEAN)


def check_log(stream: Stream) -> None:
    """Raise NotUnderstoodError unless the log is empty or was closed cleanly.

    An empty log is filled with 0xFF; nothing can be replayed where no restart page is, so only
    the place of the two restart pages is looked at.
    """
    stream.require_dense("$LogFile")
    head = stream.read(0, min(stream.size, 2 * _MAX_PAGE))
    if len(head) < 2 * STRIDE:
        raise NotUnderstoodError("$LogFile is too short")
    if head.count(b"\xff") == len(head):
        return
    first, page_size = _restart_area(head, 0, stream.size)
    second, second_size = _restart_area(head, page_size, stream.size)
    if second_size != page_size:
        raise NotUnderstoodError("the restart pages of $LogFile contradict each other")
    # Both are written in turn. Where neither is newer, both have to say so.
    newest = max(first.current_lsn, second.current_lsn)
    if not all(area.is_clean for area in (first, second) if area.current_lsn == newest):
        raise NotUnderstoodError(
            "windows did not shut the volume down: $LogFile holds changes not yet made"
        )


def _restart_area(head: bytes, offset: int, log_size: int) -> tuple[RestartArea, int]:
    """The restart area of the page at `offset`, and the size of the page."""
    if offset + _RESTART_PAGE.size > len(head):
        raise NotUnderstoodError("$LogFile is too short")
    page = RestartPageHeader._make(_RESTART_PAGE.unpack_from(head, offset))
    if page.magic != b"RSTR":
        raise NotUnderstoodError("$LogFile has no restart page where one should be")
    if (page.major_ver, page.minor_ver) == (2, 0):
        # Windows 8 and later change back to 1.1 when they let go of a volume.
        raise NotUnderstoodError(
            "windows has not let go of the volume (fast startup?): $LogFile is of version 2.0"
        )
    if (page.major_ver, page.minor_ver) != (1, 1):
        raise NotUnderstoodError(f"$LogFile version {page.major_ver}.{page.minor_ver} is not known")
    size = page.system_page_size
    if size not in (STRIDE << shift for shift in range(8)) or offset + size > len(head):
        raise NotUnderstoodError("$LogFile has a damaged restart page")
    data = apply_fixups(head[offset : offset + size], "a restart page of $LogFile")
    start = page.restart_area_offset
    if start & 7 or start < page.usa_ofs + 2 * page.usa_count or start + _RESTART_AREA.size > size:
        raise NotUnderstoodError("$LogFile has a damaged restart page")
    area = RestartArea._make(_RESTART_AREA.unpack_from(data, start))
    clients_end = area.client_array_offset + area.log_clients * _CLIENT_SIZE
    if (
        area.client_array_offset < _RESTART_AREA.size
        or clients_end > area.restart_area_length
        or start + area.restart_area_length > size
        or not 0 < area.file_size <= log_size
        or area.seq_number_bits != 67 - area.file_size.bit_length()
        or area.client_in_use_list not in (*range(area.log_clients), _NO_CLIENT)
        or area.client_free_list not in (*range(area.log_clients), _NO_CLIENT)
    ):
        raise NotUnderstoodError("$LogFile has a damaged restart area")
    return area, size
