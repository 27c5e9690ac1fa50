"""Appending past the page cache, and through it: the same bytes, whatever the file system can."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from imager.image import append
from imager.image.append import BUFFER, AppendFile
from tests.loop import LoopDevice, mounted, run, sparse_file


@pytest.fixture(params=["ext4", "xfs", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on file systems that know O_DIRECT, and on one that keeps all in memory."""
    where = tmp_path / "where"
    where.mkdir()
    with ExitStack() as stack:
        if request.param == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", "size=100M", "none", where)
            stack.callback(run, "umount", where)
        else:
            loop = stack.enter_context(LoopDevice(sparse_file(tmp_path / "disk", 320 << 20)))
            run(f"mkfs.{request.param}", "-q", loop.path)
            stack.enter_context(mounted(loop.path, where, fs_type=request.param))
        yield where


def created(path: Path) -> AppendFile:
    return AppendFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def pieces(sizes: Sequence[int]) -> list[bytes]:
    return [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [1],
        [512, 4096, 100],
        [BUFFER],
        [BUFFER - 1, 2, BUFFER],
        [3 * BUFFER + 12345, 7],
        [1 << 20] * 30 + [99],
    ],
)
def test_what_is_appended_is_there(folder: Path, sizes: list[int]) -> None:
    data = pieces(sizes)
    file = created(folder / "file")
    for piece in data:
        file.append(piece)
    assert file.size == sum(sizes)
    file.sync()
    file.close()
    assert (folder / "file").read_bytes() == b"".join(data)


def test_goes_on_where_a_cut_file_ends(folder: Path) -> None:
    first, second, opening = pieces([BUFFER + 5000, 2 * BUFFER, 512])
    file = created(folder / "file")
    file.append(first)
    file.close()
    file = created(folder / "file")
    file.truncate(BUFFER + 777)
    file.append(second)
    file.overwrite(0, opening)
    file.append(b"more")
    file.close()
    wanted = opening + first[512 : BUFFER + 777] + second + b"more"
    assert (folder / "file").read_bytes() == wanted


def test_full_disk(tmp_path: Path) -> None:
    where = tmp_path / "where"
    with LoopDevice(sparse_file(tmp_path / "disk", 24 << 20)) as loop:
        run("mkfs.ext4", "-q", loop.path)
        with mounted(loop.path, where):
            file = created(where / "file")
            with pytest.raises(OSError, match="No space left"):
                for _ in range(40):
                    file.append(b"x" * (1 << 20))
                file.sync()
            file.close()
            assert set((where / "file").read_bytes()) == {ord("x")}


def test_a_file_system_that_only_says_that_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.pwrite
    refused: list[int] = []

    def pwrite(fd: int, view: memoryview, offset: int) -> int:
        if len(view) == BUFFER and not refused:
            refused.append(offset)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(append, "WRITE_BACK", BUFFER)
    (data,) = pieces([5 * BUFFER + 1])
    file = created(tmp_path / "file")
    file.append(data)
    file.sync()
    file.close()
    assert refused == [0]
    assert (tmp_path / "file").read_bytes() == data


def test_an_earlier_failure_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, view: memoryview, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file = created(tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        file.append(bytes(BUFFER))
        with pytest.raises(OSError, match="Input/output error"):
            file.sync()
    file.append(b"behind")
    file.close()
    assert (tmp_path / "file").read_bytes() == b""
