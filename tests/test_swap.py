"""Swap spaces as mkswap makes them, hibernation images, and headers that make no sense."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.filesystems import Allocation, read_allocation
from tests.volumes import BytesVolume, FileVolume

KEPT = 65536
PAGE_SIZES = [4096, 8192, 16384, 32768, 65536]
IMAGES = [
    b"S1SUSPEND",
    b"S2SUSPEND",
    b"ULSUSPEND",
    b"LINHIB0001",
    b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c",
]


def mkswap(path: Path, size: int, *options: str) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkswap", "-q", *options, str(path)], check=True, capture_output=True)
    return path


def blkid(path: Path) -> str:
    """The type that blkid gives it."""
    command = ["blkid", "-p", "-o", "value", "-s", "TYPE", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def read(data: bytes | bytearray, kind: str = "swap") -> Allocation:
    return read_allocation(kind, BytesVolume(data))


@pytest.fixture
def swap(tmp_path: Path) -> bytearray:
    return bytearray(mkswap(tmp_path / "swap", 1 << 20).read_bytes())


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("endianness", ["little", "big"])
def test_only_the_first_64_kib_are_kept(tmp_path: Path, page_size: int, endianness: str) -> None:
    size = (40 << 20) + 512
    path = mkswap(tmp_path / "swap", size, "-p", str(page_size), "-L", "swap")
    if endianness == "big":
        with path.open("r+b") as file:
            file.seek(1024)
            header = struct.unpack("<3I", file.read(12))
            file.seek(1024)
            file.write(struct.pack(">3I", *header))
    assert blkid(path) == "swap"
    allocation = read_allocation("swap", FileVolume(path))
    assert list(allocation.allocated) == [(0, KEPT)]
    assert allocation.size == 40 << 20, "what lies behind the last whole page is not the space's"
    assert allocation.notes == ()


def test_the_smallest_space(tmp_path: Path) -> None:
    path = mkswap(tmp_path / "swap", 65536, "-p", "4096")
    allocation = read_allocation("swap", FileVolume(path))
    assert list(allocation.allocated) == [(0, 65536)]
    with pytest.raises(NotUnderstoodError, match="too small"):
        read(bytes(65535))


def test_a_header_of_less_than_64_kib_keeps_what_there_is(swap: bytearray) -> None:
    struct.pack_into("<I", swap, 1028, 9)
    allocation = read(swap)
    assert allocation.size == 40960
    assert list(allocation.allocated) == [(0, 40960)]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("signature", IMAGES)
def test_a_hibernation_image_is_kept_whole(
    tmp_path: Path, page_size: int, signature: bytes
) -> None:
    path = mkswap(tmp_path / "swap", 1 << 20, "-p", str(page_size))
    data = bytearray(path.read_bytes())
    data[page_size - 10 : page_size] = signature.ljust(10, b"\0")
    path.write_bytes(data)
    if signature[0] < 0x80:
        assert blkid(path) == "swsuspend"
    for kind in ("swap", "swsuspend"):
        with pytest.raises(NotUnderstoodError, match="holds a hibernation image"):
            read(data, kind)


def test_an_image_of_tuxonice_that_left_the_swap_signature_alone(
    tmp_path: Path, swap: bytearray
) -> None:
    swap[:8] = IMAGES[-1]
    path = tmp_path / "tuxonice"
    path.write_bytes(swap)
    assert blkid(path) == "swsuspend"
    with pytest.raises(NotUnderstoodError, match="holds a hibernation image"):
        read(swap)


def test_an_image_beside_an_ordinary_signature(swap: bytearray) -> None:
    swap[65526:65535] = b"S1SUSPEND"
    with pytest.raises(NotUnderstoodError, match="holds a hibernation image"):
        read(swap)


def test_boot_code_and_remains_of_a_resumed_image_do_not_matter(swap: bytearray) -> None:
    swap[:1024] = random.Random(1).randbytes(1024)
    swap[4096 - 20 : 4096 - 10] = b"SWAPSPACE2"  # the kernel's copy of the signature
    assert list(read(swap).allocated) == [(0, KEPT)]


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (4086, b"SWAP-SPACE", "version 0"),
        (4086, b"SWAPSPACE3", "no swap signature"),
        (4086, bytes(10), "no swap signature"),
        (65526, b"SWAPSPACE2", "more than one"),
        (1024, struct.pack("<I", 0), "unknown version"),
        (1024, struct.pack("<I", 2), "unknown version"),
        (1028, struct.pack("<I", 0), "makes no sense"),
        (1028, struct.pack("<I", 256), "larger than its volume"),
        (1028, b"\xff\xff\xff\xff", "larger than its volume"),
        (1032, struct.pack("<I", 256), "makes no sense"),
        (1032, b"\xff\xff\xff\xff", "makes no sense"),
    ],
)
def test_a_field_that_makes_no_sense(
    swap: bytearray, offset: int, content: bytes, reason: str
) -> None:
    swap[offset : offset + len(content)] = content
    with pytest.raises(NotUnderstoodError, match=reason):
        read(swap)


def test_more_bad_pages_than_the_header_has_room_for(tmp_path: Path) -> None:
    data = bytearray(mkswap(tmp_path / "swap", 4 << 20).read_bytes())
    struct.pack_into("<I", data, 1032, 637)
    assert read(data).size == len(data)
    struct.pack_into("<I", data, 1032, 638)
    with pytest.raises(NotUnderstoodError, match="makes no sense"):
        read(data)


def test_bad_pages_are_in_the_header(swap: bytearray) -> None:
    struct.pack_into("<4I", swap, 1032, 3, 0, 0, 0)
    struct.pack_into("<3I", swap, 1536, 20, 30, 40)
    assert list(read(swap).allocated) == [(0, KEPT)]


def test_flipped_bytes_never_skip_the_header_nor_fail_otherwise(swap: bytearray) -> None:
    chance = random.Random(20)
    places = [*range(1024, 1560), *range(4080, 4096), *range(8), 8186, 65526]
    refused = 0
    for _ in range(2000):
        data = swap[:]
        for _ in range(chance.choice((1, 1, 3))):
            data[chance.choice(places)] ^= 1 << chance.randrange(8)
        try:
            allocation = read(data)
        except NotUnderstoodError:
            refused += 1
            continue
        assert list(allocation.allocated) == [(0, min(KEPT, allocation.size))]
        assert allocation.size <= len(data)
    assert 0 < refused < 2000


def test_garbage_is_refused() -> None:
    chance = random.Random(21)
    for _ in range(20):
        with pytest.raises(NotUnderstoodError):
            read(chance.randbytes(1 << 17))
