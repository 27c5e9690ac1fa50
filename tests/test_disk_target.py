"""Writing real loop devices and files: exactly, zeroed for certain, proven by direct reads."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from imager.disk import abi
from imager.disk.device import DeviceReadError
from imager.disk.source import SourceDevice
from imager.disk.target import DeviceWriteError, TargetDevice
from imager.errors import RefusedError, UsageError, WriteFailedError
from tests.loop import LoopDevice, mounted, run, sparse_file
from tests.ordinary_user import as_nobody

SIZE = 16 << 20
KINDS = ["file", "loop512", "loop4096", "partition"]


@pytest.fixture(params=KINDS)
def stale(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A target of each kind that is full of old data."""
    file = tmp_path / "disk.img"
    file.write_bytes(b"\xaa" * SIZE)
    if request.param == "partition":
        run("sfdisk", file, stdin="label: gpt\nstart=1MiB, size=10MiB\n")
    with ExitStack() as stack:
        if request.param == "file":
            path = file
        else:
            sector_size = 4096 if request.param == "loop4096" else 512
            loop = stack.enter_context(LoopDevice(file, sector_size=sector_size))
            path = loop.path
            if request.param == "partition":
                loop.scan()
                path = loop.partition(1)
        yield path


def content(path: Path) -> bytes:
    """What others read there, past any cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def direct(target: TargetDevice, offset: int, size: int) -> bytes:
    """What `read_direct` gives."""
    view = memoryview(bytearray(size))
    target.read_direct(offset, view)
    return bytes(view)


def test_written_is_read_back_by_all_ways(stale: Path) -> None:
    data = os.urandom(3_000_001)
    with TargetDevice(stale) as target:
        target.write(12_345, memoryview(data))
        target.sync()
        assert target.reads_directly
        assert direct(target, 12_345, len(data)) == data
        assert target.read(12_345, len(data)) == data
        assert direct(target, target.size - 100, 100) == b"\xaa" * 100
    now = content(stale)
    assert now[12_345 : 12_345 + len(data)] == data
    assert set(now[:12_345]) == set(now[12_345 + len(data) :]) == {0xAA}


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 10 << 20), (4096, 8192), (1, 4095), (511, 2), (1000, 5_000_000), (700, 10), (0, 0)],
)
def test_zero_really_zeroes_and_nothing_else(stale: Path, offset: int, size: int) -> None:
    with TargetDevice(stale) as target:
        target.zero(offset, size)
        target.sync()
    now = content(stale)
    assert now[offset : offset + size] == bytes(size)
    assert set(now[:offset]) <= {0xAA}
    assert set(now[offset + size :]) <= {0xAA}


def test_zero_overrides_what_is_not_yet_on_the_disk(stale: Path) -> None:
    with TargetDevice(stale) as target:
        target.write(8192, b"\x55" * 16384)
        target.zero(8192, 8192)
        assert target.read(8192, 16384) == bytes(8192) + b"\x55" * 8192
        target.sync()
    assert content(stale)[8192 : 8192 + 16384] == bytes(8192) + b"\x55" * 8192


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_zero_without_help_of_the_kernel(
    stale: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("zero_out", "punch_hole", "zero_range"):
        monkeypatch.setattr(abi, name, refuse)
    with TargetDevice(stale) as target:
        target.zero(1 << 20, 3_000_000)
        target.zero(5 << 20, 4096)
        target.sync()
    now = content(stale)
    assert now[1 << 20 : (1 << 20) + 3_000_000] == bytes(3_000_000)
    assert now[5 << 20 : (5 << 20) + 4096] == bytes(4096)
    assert now[(1 << 20) + 3_000_000] == 0xAA


def test_zero_range_is_used_where_holes_are_not_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xaa" * SIZE)

    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes")

    monkeypatch.setattr(abi, "punch_hole", refuse)
    with TargetDevice(path) as target:
        target.zero(4096, 8192)
    assert content(path)[:16384] == b"\xaa" * 4096 + bytes(8192) + b"\xaa" * 4096


def test_zeroing_and_discarding_keep_a_file_sparse(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with TargetDevice(path, size=1 << 40) as target:
        target.write(0, b"x" * 4096)
        target.zero(0, 1 << 40)
        assert target.discard(0, 1 << 40)
        target.sync()
    status = path.stat()
    assert (status.st_size, status.st_blocks) == (1 << 40, 0)


def test_discard_gives_back_whole_granules_only(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(b"\xaa" * SIZE)
    with LoopDevice(file) as loop:
        granule = int(Path(f"/sys/block/{loop.path.name}/queue/discard_granularity").read_text())
        before = file.stat().st_blocks
        with TargetDevice(loop.path) as target:
            assert not target.discard(100, granule)
            assert target.discard(100, 4 << 20)
            target.sync()
            assert target.read(0, 100) == b"\xaa" * 100
            assert target.read(100 + (4 << 20), 100) == b"\xaa" * 100
        freed = (before - file.stat().st_blocks) * 512
        assert (4 << 20) - 2 * granule <= freed <= 4 << 20


def test_discard_of_a_device_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no discard")

    monkeypatch.setattr(abi, "discard", refuse)
    with LoopDevice(tmp_path / "disk.img", SIZE) as loop, TargetDevice(loop.path) as target:
        assert target.discard(0, SIZE) is False


def test_read_direct_sees_the_disk_and_not_the_cache(tmp_path: Path) -> None:
    """The file behind the loop device is changed behind the back of the loop device's cache."""
    file = sparse_file(tmp_path / "disk.img", SIZE)
    with LoopDevice(file) as loop, TargetDevice(loop.path) as target:
        target.write(4096, b"good" * 1024)
        target.sync()
        assert target.read(4096, 4) == b"good"
        with file.open("r+b") as raw:
            os.pwrite(raw.fileno(), b"flip", 4096)
        assert target.read(4096, 4) == b"good"
        assert direct(target, 4096, 8) == b"flipgood"
        target.drop_cache()
        assert target.read(4096, 4) == b"flip"


def test_sync_leaves_no_cache_of_a_device(tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "disk.img", SIZE)
    with LoopDevice(file) as loop, TargetDevice(loop.path) as target:
        target.write(4096, b"good" * 1024)
        target.sync()
        with file.open("r+b") as raw:
            os.pwrite(raw.fileno(), b"flip", 4096)
        assert target.read(4096, 4) == b"flip"


def test_read_direct_falls_back_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def no_direct(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return original(path, flags, mode)

    monkeypatch.setattr(os, "open", no_direct)
    with TargetDevice(tmp_path / "disk.img", size=SIZE) as target:
        assert not target.reads_directly
        target.write(100, b"data")
        assert direct(target, 100, 4) == b"data"


def test_read_direct_falls_back_where_the_file_system_refuses_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.preadv

    with TargetDevice(tmp_path / "disk.img", size=SIZE) as target:

        def refuse(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            if fd == target._direct_fd:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return original(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", refuse)
        target.write(100, b"data")
        assert target.reads_directly
        assert direct(target, 100, 4) == b"data"
        assert not target.reads_directly


def test_threads_read_directly(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    wrong: list[int] = []
    with TargetDevice(tmp_path / "disk.img", size=SIZE) as target:
        target.write(0, data)
        target.sync()

        def compare(first: int) -> None:
            view = memoryview(bytearray(300_007))
            for offset in range(first, SIZE - len(view), 3 * len(view)):
                target.read_direct(offset, view)
                if view != data[offset : offset + len(view)]:
                    wrong.append(offset)

        threads = [threading.Thread(target=compare, args=(n * 300_007,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("operation", ["write", "zero", "discard"])
@pytest.mark.parametrize(("offset", "size"), [(SIZE - 1, 2), (-1, 1), (SIZE + 1, 0)])
def test_nothing_is_written_outside(tmp_path: Path, operation: str, offset: int, size: int) -> None:
    path = sparse_file(tmp_path / "disk.img", SIZE)
    with TargetDevice(path) as target, pytest.raises(WriteFailedError, match="outside"):
        if operation == "write":
            target.write(offset, bytes(size))
        else:
            getattr(target, operation)(offset, size)
    assert path.stat().st_size == SIZE


def test_new_file_is_sparse_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    with TargetDevice(path, size=SIZE) as target:
        assert target.size == SIZE
    status = path.stat()
    assert (status.st_size, status.st_blocks, status.st_mode & 0o777) == (SIZE, 0, 0o600)


def test_existing_file_keeps_its_size_and_content(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"old" * 1000)
    with TargetDevice(path, size=SIZE) as target:
        assert target.size == 3000
    assert path.read_bytes() == b"old" * 1000


@pytest.mark.parametrize("name", ["/dev/sdzz", "/dev/disk/none"])
def test_a_mistyped_device_is_not_made_as_a_file(name: str) -> None:
    with pytest.raises(UsageError, match="there is no such device"):
        TargetDevice(Path(name), size=SIZE)
    assert not Path(name).exists()


def test_file_too_large_for_its_file_system_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge.img"
    with pytest.raises(WriteFailedError, match="cannot be made that large: file too large"):
        TargetDevice(path, size=1 << 62)
    assert not path.exists()


def test_read_only_device_is_refused(tmp_path: Path) -> None:
    with (
        LoopDevice(tmp_path / "disk.img", SIZE, read_only=True) as loop,
        pytest.raises(RefusedError, match="is read-only"),
    ):
        TargetDevice(loop.path)


def test_device_held_exclusively_is_refused(tmp_path: Path) -> None:
    with LoopDevice(tmp_path / "disk.img", SIZE) as loop:
        with (
            TargetDevice(loop.path),
            pytest.raises(RefusedError, match="another program has it open exclusively"),
        ):
            TargetDevice(loop.path)
        TargetDevice(loop.path).close()


def test_loop_device_on_a_full_file_system(tmp_path: Path) -> None:
    """The lost write shows only when it is synced."""
    with (
        mounted(Path("none"), tmp_path / "small", "size=4M", fs_type="tmpfs") as small,
        LoopDevice(small / "disk.img", SIZE) as loop,
        TargetDevice(loop.path) as target,
    ):
        target.write(0, memoryview(b"x" * (8 << 20)))
        with pytest.raises(DeviceWriteError, match="did not take all") as caught:
            target.sync()
        assert (caught.value.offset, caught.value.gone) == (None, False)


def test_file_on_a_full_file_system(tmp_path: Path) -> None:
    with (
        mounted(Path("none"), tmp_path / "small", "size=4M", fs_type="tmpfs") as small,
        TargetDevice(small / "disk.img", size=SIZE) as target,
    ):
        with pytest.raises(DeviceWriteError, match="no space left on device") as caught:
            target.write(0, b"x" * (8 << 20))
        assert 0 < (caught.value.offset or 0) <= 4 << 20
        target.zero(0, SIZE)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENODEV, errno.ENXIO])
def test_write_error_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def half_then_fail(fd: int, data: memoryview, offset: int) -> int:
        if offset == 1536:
            raise OSError(number, os.strerror(number))
        return len(data) // 2

    with TargetDevice(tmp_path / "disk.img", size=SIZE) as target:
        monkeypatch.setattr(os, "pwrite", half_then_fail)
        with pytest.raises(DeviceWriteError, match=r"at byte 1536 \(LBA 3\)") as caught:
            target.write(1024, bytes(1024))
    assert caught.value.offset == 1536
    assert caught.value.gone is (number in (errno.ENODEV, errno.ENXIO))


def test_error_at_close_is_told_but_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.close

    def failing_close(fd: int) -> None:
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        original(fd)
        if writable:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    first = TargetDevice(tmp_path / "first.img", size=SIZE)
    second = TargetDevice(tmp_path / "second.img", size=SIZE)
    monkeypatch.setattr(os, "close", failing_close)
    with pytest.raises(WriteFailedError, match="did not take all that was written"), first:
        pass
    with pytest.raises(KeyError), second:
        raise KeyError


def test_zeroing_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(abi, "punch_hole", full)
    with (
        TargetDevice(tmp_path / "disk.img", size=SIZE) as target,
        pytest.raises(DeviceWriteError, match=r"cannot be zeroed at byte 4096 \(LBA 8\)"),
    ):
        target.zero(4096, 8192)


def nodes(loop: LoopDevice) -> set[str]:
    return {
        path.name.removeprefix(loop.path.name) for path in Path("/dev").glob(f"{loop.path.name}p*")
    }


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_kernel_learns_of_the_new_table(tmp_path: Path, sector_size: int) -> None:
    first = "label: gpt\nsize=8MiB\nsize=8MiB\n-\n"
    second = "label: gpt\n2: size=16MiB\n"  # overlaps all three
    with LoopDevice(tmp_path / "disk.img", 64 << 20, sector_size=sector_size) as loop:
        for script, expected in ((first, {"p1", "p2", "p3"}), (second, {"p2"})):
            run("sfdisk", "--no-reread", "--no-tell-kernel", loop.path, stdin=script)
            with TargetDevice(loop.path) as target:
                assert target.reread_partition_table()
                assert nodes(loop) == expected
        assert int(run("blockdev", "--getsize64", loop.partition(2))) == 16 << 20
        with TargetDevice(loop.path) as target:
            target.zero(0, target.size)
            target.sync()
            assert target.reread_partition_table()
            assert nodes(loop) == set()


def test_kernel_learns_of_logical_partitions(tmp_path: Path) -> None:
    script = "label: dos\nsize=8MiB\nsize=32MiB, type=5\nsize=4MiB\n5: size=4MiB\n6: size=4MiB\n"
    file = sparse_file(tmp_path / "disk.img", 64 << 20)
    run("sfdisk", file, stdin=script)
    with LoopDevice(file) as loop, TargetDevice(loop.path) as target:
        assert target.reread_partition_table()
        assert nodes(loop) == {"p1", "p2", "p3", "p5", "p6"}


def test_kernel_keeps_the_old_table_while_a_partition_is_in_use(tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "disk.img", 64 << 20)
    run("sfdisk", file, stdin="label: gpt\nsize=8MiB\n")
    with LoopDevice(file) as loop:
        loop.scan()
        with TargetDevice(loop.path) as target, loop.partition(1).open("rb"):
            target.zero(0, target.size)
            target.sync()
            assert not target.reread_partition_table()


def test_files_and_partitions_have_no_table_to_reread(tmp_path: Path) -> None:
    with TargetDevice(tmp_path / "file.img", size=SIZE) as target:
        assert target.reread_partition_table()
    file = sparse_file(tmp_path / "disk.img", SIZE)
    run("sfdisk", file, stdin="label: gpt\n-\n")
    with LoopDevice(file) as loop:
        loop.scan()
        with TargetDevice(loop.partition(1)) as target:
            assert target.reread_partition_table()
        assert nodes(loop) == {"p1"}


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    path = sparse_file(tmp_path / "disk.img", SIZE)
    before = count()
    for opener in (SourceDevice, TargetDevice):
        with opener(path):
            pass
        with pytest.raises(UsageError):
            opener(path, sector_size=1000)
    assert count() == before


def test_ordinary_user_gets_one_clear_line(tmp_path: Path) -> None:
    with LoopDevice(tmp_path / "disk.img", SIZE) as loop:
        mode = loop.path.stat().st_mode
        loop.path.chmod(0o600)
        try:
            read = as_nobody(lambda: str(SourceDevice(loop.path)))
            write = as_nobody(lambda: str(TargetDevice(loop.path)))
        finally:
            loop.path.chmod(mode)
    denied = "permission denied; run as root"
    assert read == f"ReadFailedError: {loop.path} cannot be opened: {denied}"
    assert write == f"WriteFailedError: {loop.path} cannot be opened for writing: {denied}"


def test_read_back_that_fails(tmp_path: Path) -> None:
    """The kernel answers EIO where the file behind a loop device has become too short."""
    file = sparse_file(tmp_path / "disk.img", SIZE)
    with LoopDevice(file) as loop, TargetDevice(loop.path) as target:
        os.truncate(file, SIZE // 2)
        with pytest.raises(DeviceReadError, match="input/output error"):
            direct(target, SIZE - 4096, 4096)
