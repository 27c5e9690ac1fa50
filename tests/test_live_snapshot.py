"""LVM and LUKS below what is frozen: where volumes lie, swap on them, and snapshots of them.

The test machine's kernel has no device-mapper: its answers, and LVM's tools, are stood in for. With the
real ones a machine captures itself in `tests/boot/test_live.py`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from imager.capture import CaptureOptions, capture
from imager.check import check
from imager.disk.mapper import Piece, pieces
from imager.errors import RefusedError
from imager.extents import Extents
from imager.image.reader import ImageReader
from imager.live import snapshot, swap
from imager.live.patches import Patches
from imager.live.precopy import Limits, Precopy, Speed, TooBusyError
from imager.live.snapshot import SnapshotError, Snapshots, remove_abandoned
from imager.live.superblocks import Superblock, _on_disk
from imager.live.tracefs import start_time
from tests.fake_mapper import Kernel
from tests.fake_sysfs import FakeSystem
from tests.live_disk import LiveDisk, by_zstd, require_same
from tests.loop import LoopDevice
from tests.test_live_precopy import PAGE, PAGES, Disk

MIB = 1 << 20
SDA, SDA2, SDB, OPENED, ROOT, HOME, PLAIN = (
    os.makedev(*number)
    for number in ((8, 0), (8, 2), (8, 16), (254, 0), (254, 1), (254, 2), (254, 3))
)


@pytest.fixture
def stack(tmp_path: Path, kernel: Kernel) -> FakeSystem:
    """sda2 is LUKS; in it LVM with root in two segments, home partly on sdb; PLAIN lies on sda2."""
    fake = FakeSystem(tmp_path)
    fake.add_disk("sda", SDA)
    fake.add_partition("sda", "sda2", SDA2)
    fake.add_disk("sdb", SDB)
    (fake.sys / "class/block/sda2/start").write_text("4096\n")
    for name, number, below, mib, uuid in (
        ("dm-0", OPENED, ("sda2",), 100, "CRYPT-LUKS2-x"),
        ("dm-1", ROOT, ("dm-0",), 12, "LVM-a"),
        ("dm-2", HOME, ("dm-0", "sdb"), 8, "LVM-b"),
        ("dm-3", PLAIN, ("sda2",), 16, "LVM-c"),
    ):
        directory = fake.add_disk(name, number, below)
        (directory / "size").write_text(f"{mib * 2048}\n")
        (directory / "dm").mkdir()
        (directory / "dm/uuid").write_text(f"{uuid}\n")
    kernel.tables = {
        OPENED: [(0, 100 * 2048, "crypt", f"aes-xts-plain64 {'0f' * 64} 0 8:2 32768")],
        ROOT: [
            (0, 8 * 2048, "linear", "254:0 2048"),
            (8 * 2048, 4 * 2048, "linear", "254:0 40960"),
        ],
        HOME: [
            (0, 4 * 2048, "linear", "8:16 2048"),
            (4 * 2048, 4 * 2048, "linear", "254:0 20480"),
        ],
        PLAIN: [(0, 16 * 2048, "linear", "8:2 2048")],
    }
    return fake


def test_a_volume_is_found_through_all_layers(stack: FakeSystem) -> None:
    luks = (2 + 16) * MIB  # where the partition, and in it the encrypted part, begins
    assert pieces(stack.system, "dm-1", "sda") == (
        Piece(0, luks + 1 * MIB, 8 * MIB, True),
        Piece(8 * MIB, luks + 20 * MIB, 4 * MIB, True),
    )
    assert pieces(stack.system, "dm-2", "sda") == (Piece(4 * MIB, luks + 10 * MIB, 4 * MIB, True),)
    assert pieces(stack.system, "dm-2", "sdb") == (Piece(0, 1 * MIB, 4 * MIB, False),)
    assert pieces(stack.system, "dm-3", "sda") == (Piece(0, 3 * MIB, 16 * MIB, False),)
    assert pieces(stack.system, "dm-3", "sdb") == ()
    assert pieces(stack.system, "sda2", "sda") == (Piece(0, 2 * MIB, MIB, False),)


def test_stripes_and_origins(stack: FakeSystem, kernel: Kernel) -> None:
    kernel.tables[PLAIN] = [(0, 4 * 128, "striped", "2 128 8:16 0 8:2 2048")]
    assert pieces(stack.system, "dm-3", "sda") == (
        Piece(65536, 3 * MIB, 65536, False),
        Piece(3 * 65536, 3 * MIB + 65536, 65536, False),
    )
    kernel.tables[PLAIN] = [(0, 16 * 2048, "snapshot-origin", "254:2")]
    assert pieces(stack.system, "dm-3", "sdb") == (Piece(0, 1 * MIB, 4 * MIB, False),)


@pytest.mark.parametrize("kind", ["thin", "cache", "raid", "snapshot", "striped", "linear"])
def test_what_shuffles_its_bytes_has_no_place(stack: FakeSystem, kernel: Kernel, kind: str) -> None:
    kernel.tables[PLAIN] = [(0, 16 * 2048, kind, "what nobody understands")]
    assert pieces(stack.system, "dm-3", "sda") is None


def test_a_device_that_lies_on_itself(stack: FakeSystem, kernel: Kernel) -> None:
    kernel.tables[PLAIN] = [(0, 16 * 2048, "linear", "254:3 0")]
    assert pieces(stack.system, "dm-3", "sda") is None


def test_the_key_in_a_table_is_wiped(stack: FakeSystem, kernel: Kernel) -> None:
    assert pieces(stack.system, "dm-0", "sda")
    assert kernel.buffers and not any(any(buffer) for buffer in kernel.buffers)


def test_long_tables_get_more_room(stack: FakeSystem, kernel: Kernel) -> None:
    kernel.tables[PLAIN] = [(n, 1, "linear", f"8:2 {n}") for n in range(1000)]
    found = pieces(stack.system, "dm-3", "sda")
    assert found is not None and len(found) == 1000
    kernel.tables[PLAIN] = [(0, 1, "linear", " " * (1 << 25))]
    assert pieces(stack.system, "dm-3", "sda") is None


def test_file_systems_above_are_found_below(stack: FakeSystem) -> None:
    """Through LVM and LUKS; those of volumes that are not on the disk are none of its."""
    lines = [stack.mount_line(name, place) for name, place in (("dm-1", "/"), ("dm-2", "/home"))]
    stack.add_process("self", [*lines, stack.mount_line("dm-3", "/read-only", "ro")])
    found = _on_disk(stack.system, stack.node("sda"))
    assert [(mounts[0].place, own, devices) for _, mounts, own, devices in found] == [
        ("/", frozenset(["dm-1"]), frozenset(["dm-1", "dm-0", "sda2"])),
        ("/home", frozenset(["dm-2"]), frozenset(["dm-2", "dm-0", "sda2", "sdb"])),
    ]
    assert [mounts[0].place for _, mounts, _, _ in _on_disk(stack.system, stack.node("sdb"))] == [
        "/home"
    ]


def test_swap_above_device_mapper(stack: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    area = stack.node("dm-1")
    (stack.proc / "swaps").write_text(f"Filename Type Size\n{area} partition 1 2 3\n")
    monkeypatch.setattr(swap, "System", lambda: stack.system)
    (stack.sys / "class/block/sda/size").write_text(f"{200 * 2048}\n")
    luks = 18 * MIB
    expected = Extents.of(((luks + MIB + 4096, luks + 9 * MIB), (luks + 20 * MIB, luks + 24 * MIB)))
    assert swap.swap_in_use(stack.node("sda"), 0) == expected
    assert swap.swap_in_use(stack.node("sdb"), 0) == Extents()


def tool(folder: Path, name: str, script: str) -> None:
    """One of LVM's programs, which also notes how it was called."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\n{script}\n')
    path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    notes = folder / "calls"
    return notes.read_text().splitlines() if notes.exists() else []


def row(name: str, number: int, **more: str) -> dict[str, str]:
    """A logical volume of the group "vg", as lvs reports it."""
    return {
        **{"vg_name": "vg", "vg_free_count": "10", "lv_name": name, "lv_size": str(8 * MIB)},
        **{"lv_kernel_major": str(os.major(number)), "lv_kernel_minor": str(os.minor(number))},
        **{"lv_tags": "", "origin": ""},
        **more,
    }


@pytest.fixture
def lvm(
    stack: FakeSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Has LVM report rows; its programs do nothing but note that they were called."""

    def report(*rows: dict[str, str]) -> None:
        (tmp_path / "report").write_text(json.dumps({"report": [{"lv": rows}]}))

    tool(tmp_path, "lvs", f"cat {tmp_path}/report")
    tool(tmp_path, "lvcreate", "")
    tool(tmp_path, "lvremove", "")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(snapshot, "System", lambda: stack.system)
    monkeypatch.setattr(snapshot, "_KERNEL", (0, 0))
    report(row("plain", PLAIN))
    yield report


def held(*devices: str) -> list[Superblock]:
    return [Superblock(-1, 0, "/", frozenset(devices[:1]), frozenset(devices))]


def test_what_is_plain_is_read_from_snapshots(lvm: Callable[..., None], tmp_path: Path) -> None:
    lvm(row("root", ROOT), row("plain", PLAIN), row("unused", 0, lv_kernel_major="-1"))
    devices = ("dm-1", "dm-0", "dm-3", "sda2")
    with Snapshots(held(*devices), "sda", MIB, 10 * MIB) as found:
        # What is encrypted cannot come from a snapshot, which is not.
        assert found.ranges == Extents.span(2 * MIB, 10 * MIB)
        found.take()
    own = os.getpid()
    name = f"imager-{own}-{start_time(own)}-0"
    created, removed = calls(tmp_path)[1:]
    assert (
        f"--snapshot --permission r --addtag imager_snapshot --name {name} --extents 10" in created
    )
    assert created.endswith(" vg/plain") and removed.startswith("lvremove --yes")
    assert removed.endswith(f" vg/{name}")


def test_free_space_is_shared(lvm: Callable[..., None], stack: FakeSystem, kernel: Kernel) -> None:
    kernel.tables[ROOT] = [(0, 12 * 2048, "linear", "8:2 65536")]
    for free, shares in ((100, [74, 25]), (2, [1, 1])):
        group = {"vg_free_count": str(free)}
        lvm(row("root", ROOT, lv_size="300", **group), row("plain", PLAIN, lv_size="100", **group))
        found = Snapshots(held("dm-1", "dm-3", "sda2"), "sda", 0, 100 * MIB)
        assert found._extents == shares
        assert sum(shares) <= free
    lvm(row("root", ROOT, vg_free_count="0"))
    with pytest.raises(RefusedError, match="vg has no free space for snapshots of root"):
        Snapshots(held("dm-1"), "sda", 0, 100 * MIB)


def test_no_volume_is_refused(lvm: Callable[..., None], tmp_path: Path) -> None:
    lvm(row("root", ROOT))
    for devices in (("dm-1", "dm-0", "sda2"), ("sda2",)):
        with pytest.raises(RefusedError, match="plain LVM volume"):
            Snapshots(held(*devices), "sda", 0, 100 * MIB)


@pytest.mark.parametrize("release", ["6.1.0-40-amd64", "5.10", "6.7.12"])
def test_older_kernels(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list(os.uname())
    fields[2] = release
    monkeypatch.setattr("imager.live.snapshot.os.uname", lambda: os.uname_result(fields))
    with pytest.raises(RefusedError, match=r"need Linux 6\.8"):
        Snapshots(held("dm-3"), "sda", 0, MIB)


def test_one_that_fails_is_removed_all_the_same(lvm: Callable[..., None], tmp_path: Path) -> None:
    tool(tmp_path, "lvcreate", "echo '  WARNING: so' >&2; echo '  No room at all.' >&2; exit 5")
    found = Snapshots(held("dm-3", "sda2"), "sda", 0, 100 * MIB)
    with pytest.raises(SnapshotError, match=r"lvcreate failed \(No room at all\)"), found:
        found.take()
    assert [line.split()[0] for line in calls(tmp_path)] == ["lvs", "lvcreate", "lvremove"]


def test_a_volume_that_was_moved(lvm: Callable[..., None], kernel: Kernel, tmp_path: Path) -> None:
    found = Snapshots(held("dm-3", "sda2"), "sda", 0, 100 * MIB)
    kernel.tables[PLAIN] = [(0, 16 * 2048, "linear", "8:2 4096")]
    with pytest.raises(SnapshotError, match="vg/plain was moved or resized"), found:
        found.take()
    assert [line.split()[0] for line in calls(tmp_path)] == ["lvs"]


def test_its_tools_are_never_killed(lvm: Callable[..., None], tmp_path: Path) -> None:
    """Not by a signal that ends us, either: a volume would stay suspended."""
    tool(tmp_path, "lvcreate", f"sleep 0.7; echo whole >> {tmp_path}/calls")

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    found = Snapshots(held("dm-3", "sda2"), "sda", 0, 100 * MIB)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt), found:
            found.take()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [line.split()[0] for line in calls(tmp_path)][-2:] == ["whole", "lvremove"]


@pytest.mark.parametrize(
    ("state", "lasts"),
    [("16/2048 16", True), ("Invalid", False), ("Overflow", False), ("Merge failed", False)],
)
def test_what_was_written_is_read_there_while_it_lasts(
    state: str, lasts: bool, lvm: Callable[..., None], kernel: Kernel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with LoopDevice(tmp_path / "snapshot", 16 * MIB) as device:
        device.file.write_bytes(os.urandom(16 * MIB))
        kernel.tables[device.path.stat().st_rdev] = [(0, 16 * 2048, "snapshot", state)]
        # Two places that touch, and change places.
        kernel.tables[PLAIN] = [
            (0, 6 * 2048, "linear", f"8:2 {12 * 2048}"),
            (6 * 2048, 10 * 2048, "linear", "8:2 4096"),
        ]
        monkeypatch.setattr(snapshot, "_DEVICES", tmp_path / "dev")
        found = Snapshots(held("dm-3", "sda2"), "sda", 2 * MIB, 100 * MIB)
        found.take()
        (tmp_path / "dev/vg").mkdir(parents=True)
        (tmp_path / "dev" / found._made[0]).symlink_to(device.path)
        patches = Patches(lambda offset, view: None, None)
        ranges = Extents.of(((2 * MIB + 8192, 2 * MIB + 12288), (11 * MIB, 13 * MIB)))
        if lasts:
            found.read(patches, ranges)
            content = device.file.read_bytes()
            for start, data in patches.within(0, 100 * MIB):
                for place in range(0, len(data), 4096):
                    at = start + place - 2 * MIB
                    at = at + 6 * MIB if at < 10 * MIB else at - 10 * MIB
                    assert data[place : place + 4096] == content[at : at + 4096]
            assert patches.covered == ranges
        else:
            with pytest.raises(SnapshotError, match="ran over while it was read"):
                found.read(patches, ranges)
        patches.close()


def test_what_a_killed_process_left_is_removed(lvm: Callable[..., None], tmp_path: Path) -> None:
    own = os.getpid()
    ours = {"lv_tags": "other,imager_snapshot", "origin": "root"}
    gone = f"imager-{own}-{(start_time(own) or 0) + 1}-0"
    lvm(
        row(gone, ROOT, **ours),
        row(f"imager-{own}-{start_time(own)}-0", ROOT, **ours),
        row("imager-home", ROOT, **ours),
        row("imager-1-1-1", ROOT, **{**ours, "origin": ""}),
        row("imager-1-1-2", ROOT, **{**ours, "lv_tags": "imager"}),
    )
    remove_abandoned()
    assert [line.split()[-1] for line in calls(tmp_path)[1:]] == [f"vg/{gone}"]


def test_without_lvm_there_is_nothing_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imager.disk.programs.shutil.which", lambda name, path: None)
    remove_abandoned()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_deferred_is_read_as_it_was_at_the_instant(seed: int) -> None:
    """The second half of the disk comes from a snapshot, while the writer goes on."""
    disk = Disk(seed, 0.5)
    patches = Patches(disk.readinto, None, threads=1)
    disk.take()
    looked_at = disk.allocated()
    first = {page: disk.pages[page] for page in disk.used}
    half = Extents.span(PAGES // 2 * PAGE, PAGES * PAGE)
    limits = Limits(0.02, 5.0)
    precopy = Precopy(disk, patches, limits, Speed(PAGE * 1e3, 0.0), 0.0, disk.clock, deferred=half)
    precopy.run()
    if seed % 2:  # a first attempt without them is given up
        precopy.deferred, precopy.limits = Extents(), Limits(0.0001, 0.0002)
        disk.freeze()
        with pytest.raises(TooBusyError):
            precopy.instant(lambda: disk.allocated() - looked_at - patches.covered)
        disk.frozen = False
        precopy.deferred, precopy.limits = half, limits
        precopy.round()
    disk.freeze()
    before = patches.covered
    precopy.instant(lambda: disk.allocated() - looked_at - patches.covered)
    assert not (patches.covered - before) & half
    frozen, used = list(disk.pages), set(disk.used)
    disk.frozen = False
    for _ in range(200):
        disk.step()

    def readinto(offset: int, view: memoryview) -> None:
        pages = frozen[offset // PAGE : (offset + len(view)) // PAGE]
        view[:] = b"".join(pages)

    patches.read(precopy.later, readinto=readinto)
    found = dict(first)
    for page in range(PAGES):
        for _, data in patches.within(page * PAGE, (page + 1) * PAGE):
            found[page] = data
    patches.close()
    assert all(found[page] == frozen[page] for page in used)


class Copied:
    """Stands in for snapshots of the second partition: a copy of the disk, made when they are."""

    def __init__(self, live: LiveDisk, copy: Path) -> None:
        self._live, self._copy = live, copy
        self.ranges = Extents.span(97 * MIB, 193 * MIB)
        self.closed = False

    def __len__(self) -> int:
        return 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def take(self) -> None:
        self._live.copy(self._copy)

    def read(self, patches: Patches, ranges: Extents) -> None:
        assert ranges and not ranges - self.ranges
        with self._copy.open("rb") as file:

            def readinto(offset: int, view: memoryview) -> None:
                view[:] = os.pread(file.fileno(), len(view), offset)

            patches.read(ranges, readinto=readinto)

    def close(self) -> str:
        self.closed = True
        return ""


def test_an_image_by_snapshots_is_the_disk_at_the_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which `auto` makes where a freeze would take too long, and `frozen` never."""
    image, copy = tmp_path / "image", tmp_path / "copy"
    planned: list[Copied] = []
    with LiveDisk(tmp_path, ("ext4", "ext4"), 96) as live, live.workload(0.002):

        def plan(*_: object) -> Copied:
            planned.append(Copied(live, copy))
            return planned[-1]

        expect = Speed.expect
        monkeypatch.setattr("imager.live.disk.uses_lvm", lambda held: True)
        monkeypatch.setattr("imager.live.disk.remove_abandoned", lambda: None)
        monkeypatch.setattr("imager.live.disk.Snapshots", plan)
        monkeypatch.setattr(
            Speed, "expect", lambda self, ranges: expect(self, ranges) if planned else 1e3
        )
        options = CaptureOptions(max_pause=50.0)
        with pytest.raises(TooBusyError, match="are left, a pause of about"):
            capture(live.path, image, replace(options, consistency="frozen"))
        assert not planned
        result = capture(live.path, image, options)
    assert result.consistency == "snapshot"
    assert len(planned) == 1 and planned[0].closed
    reader = ImageReader(image)
    assert reader.head.facts["consistency"] == "snapshot"
    reader.file.close()
    assert check(image).verdict == "ok"
    require_same(live, by_zstd(image, tmp_path), copy, image)
