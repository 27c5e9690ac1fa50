"""The record of writes: its pages, what it sees of a real disk, and that it says when it has gaps."""

from __future__ import annotations

import base64
import json
import mmap
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.errors import RefusedError
from imager.extents import Extents
from imager.live.dirty import PAGE, DirtyMap
from imager.live.pages import PageFormat, TraceFormatError, page_format, parse_page
from imager.live.tracefs import Instance, TracingError, buffer_size, remove_abandoned, tracefs
from imager.live.tracing import LostWritesError, Recorder, recorded_disk
from tests.command import ROOT
from tests.disks import MIB
from tests.loop import LoopDevice, sparse_file

EVENT = 77
FORMAT = PageFormat(commit=8, data=16, event=EVENT, sector=16, count=24)


def recorded() -> Any:
    """Pages of a real kernel, and the writes that made them (first sector, sectors)."""
    return json.loads((ROOT / "tests/recorded/block_rq_complete.json").read_text())


def test_recorded_pages_give_the_writes_that_made_them() -> None:
    record = recorded()
    layout = page_format(record["header_page"], record["event_format"])
    found = []
    for text in record["pages"]:
        writes, lost = parse_page(zlib.decompress(base64.b64decode(text)), layout)
        assert not lost
        found += writes
    assert sorted(found) == sorted(tuple(write) for write in record["writes"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sector_t sector;\toffset:16;\tsize:8", "sector_t sector;\toffset:16;\tsize:4"),
        ("unsigned int nr_sector", "unsigned int number"),
        ("ID: ", "Id: "),
        ("common_type", "common_kind"),
    ],
)
def test_a_kernel_that_records_otherwise_is_not_believed(old: str, new: str) -> None:
    record = recorded()
    changed = record["event_format"].replace(old, new)
    assert changed != record["event_format"]
    with pytest.raises(TraceFormatError, match="unmount the disk"):
        page_format(record["header_page"], changed)


# One event as it stands in a page: what it must give, and its bytes.
writes = st.tuples(st.integers(0, 2**63), st.integers(0, 2**32 - 1))


def _payload(kind: int, sector: int, count: int, rest: int) -> bytes:
    return struct.pack("<H14xQI", kind, sector, count) + bytes(rest)


@st.composite
def events(draw: st.DrawFn) -> tuple[list[tuple[int, int]], bytes]:
    shape = draw(st.sampled_from(["short", "long", "other", "time", "padding"]))
    difference = draw(st.integers(0, 2**27 - 1)) << 5
    sector, count = draw(writes)
    rest = 4 * draw(st.integers(0, 5))
    payload = _payload(EVENT, sector, count, rest)
    if shape == "short":
        return [(sector, count)], struct.pack("<I", difference | len(payload) // 4) + payload
    if shape == "long":
        return [(sector, count)], struct.pack("<II", difference, len(payload) + 4) + payload
    if shape == "other":
        payload = _payload(EVENT + 1, sector, count, rest)
        return [], struct.pack("<I", difference | len(payload) // 4) + payload
    if shape == "time":
        return [], struct.pack("<II", difference | draw(st.sampled_from([30, 31])), 12345)
    size = 4 * draw(st.integers(1, 6))
    return [], struct.pack("<II", 1 << 5 | 29, size + 4) + bytes(size)


def page_of(data: bytes, size: int, lost: bool) -> bytes:
    head = struct.pack("<QQ", 1, len(data) | (1 << 31 if lost else 0))
    return (head + data).ljust(size, b"\xee")


@settings(deadline=None)
@given(st.lists(events(), max_size=60), st.booleans(), st.booleans())
def test_any_page_of_events_is_read(
    made: list[tuple[list[tuple[int, int]], bytes]], lost: bool, full: bool
) -> None:
    data = b"".join(one for _, one in made)
    data += b"" if full else struct.pack("<II", 29, 0)  # padding up to the end of the page
    expected = [write for found, _ in made for write in found]
    assert parse_page(page_of(data, 8192, lost), FORMAT) == (expected, lost)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_page_does_more_than_raise(data: bytes) -> None:
    try:
        found, _ = parse_page(data, FORMAT)
    except TraceFormatError:
        return
    assert len(found) <= len(data)


def test_a_truncated_event_is_not_passed_over() -> None:
    payload = _payload(EVENT, 1, 2, 0)
    data = struct.pack("<I", len(payload) // 4) + payload
    for size in range(len(data) - 1, 10, -1):
        with pytest.raises(TraceFormatError):
            parse_page(page_of(data[:size], 4096, False), FORMAT)


# Sectors on a disk of 40 MiB whose record begins 1 MiB before it.
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 3000)), max_size=40))
def test_dirty_map_has_every_page_written_and_no_other(made: list[tuple[int, int]]) -> None:
    start, size = MIB, 40 * MIB + 512
    ignored = Extents.span(3 * MIB, 4 * MIB)
    dirty = DirtyMap(start, size, ignored)
    dirty.mark(made)
    pages = set()
    for sector, count in made:
        for one in range(sector, sector + count):
            at = one * 512 - start
            if 0 <= at < size:
                pages.add(at // PAGE)
    expected = Extents.of((page * PAGE, (page + 1) * PAGE) for page in pages)
    expected = expected.clip(0, size) - ignored
    assert dirty.peek() == expected
    assert dirty.take() == expected
    assert dirty.take() == Extents()


def test_dirty_map_of_a_huge_disk_stays_small() -> None:
    dirty = DirtyMap(0, 1 << 46)
    assert dirty.page == 1 << 18
    dirty.mark([(0, 1), ((1 << 46) // 512 - 1, 1)])
    assert list(dirty.take()) == [(0, 1 << 18), ((1 << 46) - (1 << 18), 1 << 46)]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[LoopDevice]:
    with LoopDevice(sparse_file(tmp_path / "disk", 64 * MIB)) as device:
        yield device


def write(path: Path, offsets: list[int], size: int = 4096) -> None:
    """Write past the cache: each is one request, and complete when this returns."""
    buffer = memoryview(mmap.mmap(-1, size))
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        for offset in offsets:
            os.pwrite(fd, buffer, offset)
    finally:
        os.close(fd)


def test_all_writes_and_no_reads_are_recorded(loop: LoopDevice) -> None:
    dirty = DirtyMap(0, 64 * MIB)
    with Recorder(loop.path, dirty) as recorder:
        loop.path.read_bytes()
        assert recorder.take() == Extents()
        write(loop.path, [0, MIB, 63 * MIB], 8192)
        expected = Extents.of((at, at + 8192) for at in (0, MIB, 63 * MIB))
        assert recorder.waiting() == recorder.take() == expected
        assert recorder.take() == Extents()
        assert recorder.written == 3 * 8192
        assert recorder.idle()
        recorder.verify()


def test_discards_and_writes_of_zeros_are_recorded(loop: LoopDevice) -> None:
    with Recorder(loop.path, DirtyMap(0, 64 * MIB)) as recorder:
        subprocess.run(["blkdiscard", "-o", "1M", "-l", "1M", loop.path], check=True)
        subprocess.run(["blkdiscard", "-z", "-o", "5M", "-l", "1M", loop.path], check=True)
        assert recorder.take() == Extents.of([(MIB, 2 * MIB), (5 * MIB, 6 * MIB)])


def test_a_partition_is_recorded_from_its_own_start(loop: LoopDevice) -> None:
    subprocess.run(
        ["sfdisk", "-q", loop.path], input="start=4MiB size=8MiB\n", text=True, check=True
    )
    loop.scan()
    with Recorder(loop.path, DirtyMap(4 * MIB, 8 * MIB)) as recorder:
        write(loop.partition(1), [MIB])
        write(loop.path, [0, 20 * MIB])
        assert recorder.take() == Extents.span(MIB, MIB + 4096)


def test_lost_events_are_never_passed_over(loop: LoopDevice) -> None:
    """A buffer of two pages, and nobody who looks while it is overrun."""
    dirty = DirtyMap(0, 64 * MIB)
    with Recorder(loop.path, dirty, buffer=8192) as recorder:
        with recorder._lock:
            write(loop.path, [4096 * (number % 1000) for number in range(2000)])
        with pytest.raises(LostWritesError, match="nothing of this capture is kept"):
            recorder.verify()


def test_an_event_switched_off_by_others_is_noticed(loop: LoopDevice) -> None:
    with Recorder(loop.path, DirtyMap(0, 64 * MIB)) as recorder:
        recorder.verify()
        directory = recorder._instance.directory
        (directory / "events/block/block_rq_complete/enable").write_text("0")
        with pytest.raises(LostWritesError, match="somebody switched off"):
            recorder.verify()


def instances(root: Path) -> set[str]:
    return {path.name for path in (root / "instances").iterdir() if "imager" in path.name}


def test_instances_vanish_whatever_happens(loop: LoopDevice) -> None:
    with tracefs() as root:
        before = instances(root)
        with pytest.raises(ZeroDivisionError), Recorder(loop.path, DirtyMap(0, 64 * MIB)):
            assert len(instances(root)) == len(before) + 1
            raise ZeroDivisionError
        assert instances(root) <= before


def test_what_a_killed_process_left_is_removed(loop: LoopDevice) -> None:
    script = (
        "import os, sys\n"
        "from imager.live.tracefs import Instance, tracefs\n"
        "with tracefs() as root:\n"
        "    made = Instance(root, os.stat(sys.argv[1]).st_rdev, 1 << 20)\n"
        "    print(made.directory.name, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    mounts = Path("/proc/mounts").read_text()
    with tracefs() as root:
        assert Path("/proc/mounts").read_text() == mounts
        words = [sys.executable, "-c", script, str(loop.path)]
        killed = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
        name = killed.stdout.strip()
        assert killed.returncode == -9 and name in instances(root)
        alive = Instance(root, os.stat(loop.path).st_rdev, 1 << 20)
        try:
            assert name not in instances(root)
            remove_abandoned(root)
            assert alive.directory.name in instances(root)
        finally:
            alive.close()


def test_a_device_that_cannot_be_traced_is_an_error_and_leaves_nothing(loop: LoopDevice) -> None:
    with tracefs() as root:
        before = instances(root)
        with pytest.raises(TracingError, match="cannot be followed"):
            Instance(root, os.stat(loop.path).st_rdev, -(1 << 20))
        assert instances(root) <= before


def test_buffers_stay_within_bounds_on_large_machines() -> None:
    assert buffer_size(2) == 8 << 20
    assert buffer_size(64) == 2 << 20
    assert buffer_size(1024) == 1 << 20


def test_stacked_and_zoned_disks_are_refused(tmp_path: Path) -> None:
    for name in ("dm-0", "zoned", "plain"):
        (tmp_path / "class/block" / name / "queue").mkdir(parents=True)
    for name in ("zoned", "plain"):
        (tmp_path / "class/block" / name / "mq").mkdir()
    (tmp_path / "class/block/zoned/queue/zoned").write_text("host-managed\n")
    (tmp_path / "class/block/plain/queue/zoned").write_text("none\n")
    recorded_disk("plain", tmp_path)
    with pytest.raises(RefusedError, match="dm-0 is made of other devices"):
        recorded_disk("dm-0", tmp_path)
    with pytest.raises(RefusedError, match="zoned disk"):
        recorded_disk("zoned", tmp_path)
