"""Whether Windows sleeps on the volume: hiberfil.sys in the root directory.

A hibernated Windows, and one shut down with fast startup, goes on with the metadata and the
file-system cache in its memory image. Clusters that count as free on the disk may hold data that
only the image knows to be in use, so no map of the disk alone proves anything.

Format: "NTFS Documentation" of the Linux-NTFS project, concepts "Index Record" and "File Name";
the signatures of hiberfil.sys: libntfs-3g (hibr), J. Sylve et al., "Modern Windows hibernation
file analysis" (2016).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct, unpack_from

from imager.errors import NotUnderstoodError
from imager.filesystems.ntfs import record as rec
from imager.filesystems.ntfs.mft import ROOT, Mft

_HIBERFIL = "hiberfil.sys"
_PATTERN = re.compile(re.escape(_HIBERFIL.encode("utf-16-le")), re.IGNORECASE)
_INDEX_ROOT = Struct("<III")
_INDEX_ENTRY_SIZE = 16
_FILE_NAME_AT = 66
"""Where the name itself starts in a $FILE_NAME attribute; its length is two bytes before it."""

_MAX_ROOT_INDEX = 256 << 20
_IMAGE_HEADER = 4096


def check_not_hibernated(mft: Mft) -> None:
    """Raise NotUnderstoodError where hiberfil.sys may hold a memory image.

    After a proper shutdown its first page is zeros (or there is no such file). Any other signature
    counts: hibr and HIBR are images to resume from, RSTR and wake those of a resume that began,
    and nothing on the disk says whether it came to an end.
    """
    for reference in set(_candidates(mft)):
        number = reference & 0xFFFFFFFFFFFF
        if number >= mft.records or not _is_hiberfil(mft, reference):
            continue
        stream = mft.find_stream(mft.attributes(number), rec.DATA)
        # A short one marks, says libntfs-3g, a volume other than the system's.
        if (
            stream is None
            or stream.data_size < _IMAGE_HEADER
            or any(stream.read(0, min(_IMAGE_HEADER, stream.size)))
        ):
            raise NotUnderstoodError("windows is hibernated or was shut down with fast startup")


def _candidates(mft: Mft) -> Iterator[int]:
    """File references beside the name in the root directory, also from entries no longer valid.

    Searching the index for the name, instead of descending its tree, needs no collation rules and
    no trust in the tree. A removed entry's file is told apart by its sequence number.
    """
    root = mft.attributes(ROOT)
    index_root = [
        attribute
        for attribute in root
        if attribute.header.type == rec.INDEX_ROOT and attribute.name == "$I30"
    ]
    if len(index_root) != 1 or len(index_root[0].value) < _INDEX_ROOT.size:
        raise NotUnderstoodError("the root directory is damaged")
    value = index_root[0].value
    yield from _references(value)
    stream = mft.find_stream(root, rec.INDEX_ALLOCATION, "$I30")
    if stream is None:
        return
    _, _, block_size = _INDEX_ROOT.unpack_from(value)
    if block_size not in (rec.STRIDE << shift for shift in range(13)):
        raise NotUnderstoodError("the root directory is damaged")
    if stream.size > _MAX_ROOT_INDEX:
        raise NotUnderstoodError("the root directory is too large to look for hiberfil.sys")
    whole = stream.size // block_size * block_size
    for _, piece in stream.pieces(whole, block_size):
        for at in range(0, len(piece), block_size):
            block = piece[at : at + block_size]
            if block.startswith(b"INDX"):
                yield from _references(rec.apply_fixups(block, "the root directory"))


def _references(data: bytes) -> Iterator[int]:
    for match in _PATTERN.finditer(data):
        entry = match.start() - _FILE_NAME_AT - _INDEX_ENTRY_SIZE
        if entry >= 0:
            (reference,) = unpack_from("<Q", data, entry)
            yield reference


def _is_hiberfil(mft: Mft, reference: int) -> bool:
    """Whether the file of this number is in use, still the same, and of this name in the root."""
    number = reference & 0xFFFFFFFFFFFF
    found = mft.find_record(number)
    if found is None or found.reference != reference:
        return False
    for attribute in mft.attributes(number):
        value = attribute.value
        if attribute.header.type == rec.FILE_NAME and len(value) >= _FILE_NAME_AT:
            (parent,) = unpack_from("<Q", value)
            name = value[_FILE_NAME_AT : _FILE_NAME_AT + 2 * value[_FILE_NAME_AT - 2]]
            if parent & 0xFFFFFFFFFFFF == ROOT and _PATTERN.fullmatch(name):
                return True
    return False
