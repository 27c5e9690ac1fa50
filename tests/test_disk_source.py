"""Reading real loop devices, and what happens where a disk cannot be read."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from imager.disk import abi
from imager.disk.device import DeviceReadError
from imager.disk.source import SourceDevice
from imager.errors import ReadFailedError, UsageError
from tests.loop import LoopDevice, run, sparse_file

SIZE = 8 << 20


@pytest.fixture
def random_file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_loop_device_reads_as_its_file(random_file: Path, sector_size: int) -> None:
    content = random_file.read_bytes()
    with LoopDevice(random_file, sector_size=sector_size) as loop:
        with SourceDevice(loop.path) as source:
            assert source.size == int(run("blockdev", "--getsize64", loop.path)) == SIZE
            assert source.sector_size == int(run("blockdev", "--getss", loop.path)) == sector_size
            assert source.physical_sector_size == int(run("blockdev", "--getpbsz", loop.path))
            assert source.identity.kind == "loop"
            assert source.read(0, SIZE) == content
            assert source.read(SIZE - 1, 1) == content[-1:]
            assert source.read(4095, 4099) == content[4095 : 4095 + 4099]
            assert source.read(SIZE, 0) == b""
        assert run("sha256sum", loop.path).split()[0] == run("sha256sum", random_file).split()[0]


def test_source_is_opened_for_reading_only(random_file: Path) -> None:
    with LoopDevice(random_file) as loop, SourceDevice(loop.path):
        links = [
            Path(f"/proc/self/fdinfo/{fd.name}").read_text()
            for fd in Path("/proc/self/fd").iterdir()
            if fd.is_symlink() and os.readlink(fd) == str(loop.path)
        ]
    assert len(links) == 2  # one of them past the page cache
    for link in links:
        flags = int(link.split("flags:")[1].split()[0], 8)
        assert flags & os.O_ACCMODE == os.O_RDONLY
        assert flags & os.O_CLOEXEC


def test_read_only_loop_device_and_file_can_be_read(random_file: Path) -> None:
    with LoopDevice(random_file, read_only=True) as loop, SourceDevice(loop.path) as source:
        assert source.identity.read_only
        assert source.read(512, 512) == random_file.read_bytes()[512:1024]


def test_what_a_partition_wrote_is_seen_through_the_disk(tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "disk.img", SIZE)
    run("sfdisk", file, stdin="label: dos\nstart=1MiB, size=1MiB\n")
    with LoopDevice(file) as loop:
        loop.scan()
        with loop.path.open("rb") as other:  # keeps the disk's cache alive, with the old content
            assert os.pread(other.fileno(), 512, 1 << 20) == bytes(512)
            loop.partition(1).write_bytes(b"x" * 512)
            with SourceDevice(loop.path) as source:
                assert source.read(1 << 20, 512) == b"x" * 512


def test_plain_file_takes_the_sector_size_it_is_given(random_file: Path) -> None:
    with SourceDevice(random_file) as source:
        assert (source.sector_size, source.physical_sector_size) == (512, 512)
    with SourceDevice(random_file, sector_size=4096) as source:
        assert (source.sector_size, source.size) == (4096, SIZE)
    with pytest.raises(UsageError, match="not supported"):
        SourceDevice(random_file, sector_size=513)


def test_device_keeps_its_own_sector_size(random_file: Path) -> None:
    with (
        LoopDevice(random_file, sector_size=4096) as loop,
        pytest.raises(UsageError, match="has sectors of 4096 bytes, not 512"),
    ):
        SourceDevice(loop.path, sector_size=512)


@pytest.mark.parametrize(("offset", "size"), [(SIZE - 10, 11), (SIZE + 1, 0), (-1, 1), (0, -1)])
def test_range_outside_is_an_error(random_file: Path, offset: int, size: int) -> None:
    with SourceDevice(random_file) as source, pytest.raises(ReadFailedError, match="outside"):
        source.read(offset, size)


def test_real_io_error_says_where(tmp_path: Path) -> None:
    """The kernel answers EIO where the file behind a loop device has become too short."""
    file = sparse_file(tmp_path / "disk.img", SIZE)
    with LoopDevice(file, sector_size=4096) as loop, SourceDevice(loop.path) as source:
        os.truncate(file, SIZE // 2)
        start = SIZE // 2 - (64 << 10)
        with pytest.raises(DeviceReadError) as caught:
            source.read(start, 128 << 10)
        error = caught.value
        assert start <= error.offset <= SIZE // 2
        assert error.offset + error.size == start + (128 << 10)
        assert not error.gone
        assert str(error) == (
            f"{loop.path}: cannot read {error.size} bytes at byte {error.offset} "
            f"(LBA {error.offset // 4096}): input/output error"
        )
        assert source.read(SIZE // 2 - 4096, 4096) == bytes(4096)


def test_device_that_ends_early_is_an_error(tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "disk.img", SIZE)
    with LoopDevice(file) as loop, SourceDevice(loop.path) as source:
        os.truncate(file, SIZE // 2)
        run("losetup", "--set-capacity", loop.path)
        with pytest.raises(DeviceReadError, match="it ends there") as caught:
            source.read(SIZE // 2 - 512, 1024)
        assert (caught.value.offset, caught.value.size) == (SIZE // 2, 512)


def test_short_reads_are_continued(random_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return original(fd, [buffers[0][:1000]], offset)

    monkeypatch.setattr(os, "preadv", short)
    with SourceDevice(random_file) as source:
        assert source.read(7, 12345) == random_file.read_bytes()[7 : 7 + 12345]


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENXIO])
def test_vanished_device_is_told_from_a_bad_sector(
    random_file: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_fd: int, _buffers: Sequence[memoryview], _offset: int) -> int:
        raise OSError(number, os.strerror(number))

    with SourceDevice(random_file) as source:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(
            DeviceReadError, match=r"byte 1024 \(LBA 2\): the device is gone"
        ) as caught:
            source.read(1024, 512)
        assert caught.value.gone


def test_unplugged_disk_answers_as_if_its_sectors_were_bad(
    random_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int, _buffers: Sequence[memoryview], _offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with LoopDevice(random_file) as loop, SourceDevice(loop.path) as source:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(DeviceReadError, match="input/output error") as caught:
            source.read(0, 512)
        assert not caught.value.gone
        monkeypatch.setattr(abi, "size", lambda _fd: 0)  # what the kernel makes of a dead disk
        with pytest.raises(DeviceReadError, match="the device is gone") as caught:
            source.read(0, 512)
        assert caught.value.gone


def cached(path: Path) -> int:
    """How many of a device's bytes are in the page cache (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    resident = (ctypes.c_ubyte * (SIZE // mmap.PAGESIZE))()
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, type(resident)]
    fd = os.open(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, SIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        assert libc.mincore(address, SIZE, resident) == 0
        assert libc.munmap(address, SIZE) == 0
    finally:
        os.close(fd)
    return sum(page & 1 for page in resident) * mmap.PAGESIZE


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_content_is_not_left_in_the_page_cache(random_file: Path, sector_size: int) -> None:
    content = random_file.read_bytes()
    with (
        LoopDevice(random_file, sector_size=sector_size) as loop,
        SourceDevice(loop.path) as source,
    ):
        found = bytearray(SIZE)
        for offset, size in ((0, 3 << 20), (3 << 20, 12345), ((3 << 20) + 12345, 1)):
            source.stream_into(offset, memoryview(found)[offset : offset + size])
        source.stream_into((3 << 20) + 12346, memoryview(found)[(3 << 20) + 12346 :])
        assert found == content
        assert cached(loop.path) < SIZE // 4
        source.read(0, SIZE)
        assert cached(loop.path) > SIZE // 2
        with pytest.raises(DeviceReadError, match="lie outside"):
            source.stream_into(SIZE - 5, memoryview(found)[:6])


def test_what_was_just_written_is_seen_past_the_page_cache(random_file: Path) -> None:
    with LoopDevice(random_file) as loop, SourceDevice(loop.path) as source:
        with loop.path.open("r+b", buffering=0) as device:
            device.write(b"new")
            found = memoryview(bytearray(512))
            source.stream_into(0, found)
        assert bytes(found[:3]) == b"new"


def test_threads_share_a_source(random_file: Path) -> None:
    content = random_file.read_bytes()
    wrong: list[int] = []
    with SourceDevice(random_file) as source:

        def read_all(first: int) -> None:
            view = memoryview(bytearray(10007))
            for offset in range(first, SIZE - len(view), 4 * len(view)):
                source.readinto(offset, view)
                if view != content[offset : offset + len(view)]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read_all, args=(n * 10007,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("path", ["/dev/null", "/tmp", "/proc/self/fd"])
def test_what_is_no_disk_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="neither a block device nor a plain file"):
        SourceDevice(Path(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such device or file"):
        SourceDevice(tmp_path / "none")


def test_close_twice(random_file: Path) -> None:
    source = SourceDevice(random_file)
    source.close()
    source.close()
    with pytest.raises(ReadFailedError):
        source.read(0, 1)
