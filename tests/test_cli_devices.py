"""`imager devices` against what util-linux, e2fsprogs and gdisk say of the same loop devices."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imager.cli import devices
from imager.cli.text import format_size
from imager.disk.inventory import Contents, Disk, Partition, list_disks
from imager.disk.source import SourceDevice
from imager.errors import EXIT_OK, NotUnderstoodError, ReadFailedError
from imager.extents import Extents
from imager.filesystems import Allocation, Volume, read_allocation
from tests.fake_sysfs import FakeSystem
from tests.loop import LoopDevice, mounted, run, sparse_file, swapped_on
from tests.ordinary_user import as_nobody
from tests.test_disk_identity import SAMSUNG

TABLE = 'label: gpt\nsize=16MiB, type=U, name="EFI $x \'y"\nsize=16MiB, type=S\n-\n'


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="imager")
    devices.add_parser(parser.add_subparsers())
    return parser.parse_args(["devices", *words])


def output(*words: str) -> str:
    """What the command prints."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        args = parse(*words)
        assert args.run(args) == EXIT_OK
    return stdout.getvalue()


def section(text: str, path: Path) -> list[str]:
    """The lines about one disk."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return next(block for block in blocks if block[0].split()[0] == str(path))


@pytest.fixture(autouse=True)
def only_own_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loop devices of whatever else runs on the machine come and go."""

    def own() -> tuple[Disk, ...]:
        disks = [(disk, disk.identity.backing_file) for disk in list_disks()]
        return tuple(disk for disk, file in disks if file is None or str(tmp_path) in file)

    monkeypatch.setattr(devices, "list_disks", own)


@pytest.fixture(params=[512, 4096])
def loop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopDevice]:
    """A disk with an ESP, swap and ext4."""
    with LoopDevice(tmp_path / "disk.img", 96 << 20, sector_size=request.param) as device:
        run("sfdisk", "--no-reread", "--no-tell-kernel", device.path, stdin=TABLE)
        device.scan()
        run("mkfs.vfat", "-n", "ESP", device.partition(1))
        run("mkswap", "-L", "nap", device.partition(2))
        run("mkfs.ext4", "-q", "-L", "root", device.partition(3))
        yield device


def find(loop: LoopDevice) -> Disk:
    return next(disk for disk in list_disks() if disk.identity.path == str(loop.path))


def test_facts_agree_with_other_tools(loop: LoopDevice) -> None:
    disk = find(loop)
    assert disk.table == "gpt"
    assert disk.contents.kind is None
    assert not disk.is_system
    assert disk.in_use == ()
    assert [part.number for part in disk.partitions] == [1, 2, 3]
    told = json.loads(run("sfdisk", "--json", loop.path))["partitiontable"]
    for part, entry in zip(disk.partitions, told["partitions"], strict=True):
        assert part.path == entry["node"]
        assert part.start == entry["start"] * told["sectorsize"]
        assert part.size == entry["size"] * told["sectorsize"]
        assert part.size == int(run("blockdev", "--getsize64", part.path))
        assert (part.type or "").upper() == entry["type"]
        assert (part.uuid or "").upper() == entry["uuid"]
        assert part.label == entry.get("name")
        assert (
            part.contents.uuid == run("blkid", "-p", "-s", "UUID", "-o", "value", part.path).strip()
        )
        assert part.contents.used is None
    found = [(part.contents.kind, part.contents.label) for part in disk.partitions]
    assert found == [("vfat", "ESP"), ("swap", "nap"), ("ext4", "root")]


def test_mounted_and_swapped_on(loop: LoopDevice, tmp_path: Path) -> None:
    with (
        mounted(loop.partition(3), tmp_path / "with blank") as place,
        swapped_on(loop.partition(2)),
    ):
        (place / "file").write_bytes(os.urandom(5 << 20))
        disk = find(loop)
        assert disk.partitions[2].contents.mount_points == (str(place),)
        assert disk.partitions[1].contents.mount_points == ("[SWAP]",)
        assert disk.partitions[0].contents.mount_points == ()
        total, free = map(int, run("stat", "-f", "-c", "%b %f", place).split())
        unit = int(run("stat", "-f", "-c", "%S", place))
        assert disk.partitions[2].contents.used == (total - free) * unit > 5 << 20
        assert disk.in_use == (
            f"{loop.partition(3).name} is mounted on {place}",
            f"{loop.partition(2)} is swapped on",
        )


def test_table_for_a_person(
    loop: LoopDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with mounted(loop.partition(3), tmp_path / "m"):
        lines = section(output(), loop.path)
    assert lines[0] == str(loop.path)
    about = " ".join(lines[1:])
    assert f"loop device, 101 MB, {loop.sector_size}-byte sectors" in about
    name = loop.path.name
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(f"    {name}p")}
    for number, kind, label in ((1, "vfat", "ESP"), (2, "swap", "nap")):
        row = rows[f"{name}p{number}"]
        with SourceDevice(loop.partition(number)) as volume:
            used = format_size(read_allocation(kind, volume).allocated.total).split()
        assert row == [f"{name}p{number}", kind, label, "16.8", "MB", *used, "-"]
    assert rows[f"{name}p3"][1:3] == ["ext4", "root"]
    assert re.fullmatch(r"/tmp.*", rows[f"{name}p3"][-1])
    assert all(len(line) <= 80 for line in lines)


def test_json(loop: LoopDevice) -> None:
    report = json.loads(output("--json"))
    assert report["complete"] is True
    by_path = {disk["identity"]["path"]: disk for disk in report["disks"]}
    found: dict[str, Any] = by_path[str(loop.path)]
    assert found["identity"]["logical_sector"] == loop.sector_size
    assert [part["contents"]["kind"] for part in found["partitions"]] == ["vfat", "swap", "ext4"]
    listed = json.loads(run("lsblk", "--json", "--bytes", "--nodeps", "-o", "PATH,SIZE"))
    sizes = {entry["path"]: entry["size"] for entry in listed["blockdevices"]}
    assert all(sizes[path] == disk["identity"]["size"] for path, disk in by_path.items())


def test_this_systems_disk_is_marked() -> None:
    root = run("findmnt", "--noheadings", "--output", "SOURCE", "/").strip()
    marked = [disk for disk in list_disks() if disk.is_system]
    assert [disk.identity.path for disk in marked] == [root] or any(
        part.path == root for disk in marked for part in disk.partitions
    )
    line = section(output(), Path(marked[0].identity.path))[0]
    assert line.endswith("<- this system runs from here")


def test_file_system_on_a_whole_disk(tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "disk.img", 16 << 20)
    run("mkfs.ext4", "-q", "-L", "bare", file)
    with LoopDevice(file) as loop:
        disk = find(loop)
        assert (disk.contents.kind, disk.contents.label, disk.partitions) == ("ext4", "bare", ())
        assert "    (whole disk)  ext4         bare" in "\n".join(section(output(), loop.path))


def test_empty_disk(tmp_path: Path) -> None:
    with LoopDevice(tmp_path / "disk.img", 16 << 20) as loop:
        assert section(output(), loop.path)[-1] == "    no partitions"
        run("sfdisk", "--no-reread", "--no-tell-kernel", loop.path, stdin="label: dos\n")
        assert section(output(), loop.path)[-1] == "    no partitions in the table"


def test_what_is_no_disk_is_left_out(tmp_path: Path) -> None:
    fake = FakeSystem(tmp_path)
    for minor, name in enumerate(
        ("sr0", "ram0", "zram0", "dm-0", "md0", "fd0", "nbd0", "nvme0c0n1")
    ):
        fake.add_disk(name, os.makedev(240, minor))
    fake.add_disk("nvme0n1", os.makedev(240, 99))
    (fake.sys / "class/block/nbd0/size").write_text("0\n")
    (fake.sys / "class/block/nvme0c0n1/hidden").write_text("1\n")
    assert [disk.identity.name for disk in list_disks(fake.system)] == ["nvme0n1"]
    detached = {p.name for p in Path("/sys/block").glob("loop*") if not (p / "loop").exists()}
    assert not detached & {disk.identity.name for disk in list_disks()}


def test_layers_of_a_live_system_are_no_disks(tmp_path: Path) -> None:
    fake = FakeSystem(tmp_path)
    fake.add_disk("sda", os.makedev(240, 0))
    for number, read_only in ((900, 1), (901, 1), (902, 0)):
        directory = fake.add_disk(f"loop{number}", os.makedev(7, number))
        (directory / "ro").write_text(f"{read_only}\n")
    live = fake.mount_line("loop900", "/run/live/rootfs/00-base", "ro")
    fake.add_process("self", [live, fake.mount_line("loop902", "/")])
    assert [disk.identity.name for disk in list_disks(fake.system)] == ["loop901", "loop902", "sda"]


def test_volumes_on_top_count_as_the_partitions(tmp_path: Path) -> None:
    fake = FakeSystem(tmp_path)
    fake.add_disk("sda", os.makedev(240, 0))
    fake.add_partition("sda", "sda1", os.makedev(240, 1))
    fake.add_disk("dm-0", os.makedev(241, 0), made_of=("sda1",))
    fake.add_process("self", [fake.mount_line("dm-0", "/nowhere/at/all")])
    (disk,) = list_disks(fake.system)
    contents = disk.partitions[0].contents
    assert (contents.mount_points, contents.used) == (("/nowhere/at/all",), None)


def test_used_bytes_of_what_is_not_mounted(
    loop: LoopDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def read_allocation(kind: str, volume: Volume) -> Allocation:
        seen[kind] = (volume.size, volume.sector_size)
        if kind == "vfat":
            raise NotUnderstoodError("odd")
        if kind == "swap":
            raise ReadFailedError("bad sector")
        return Allocation(Extents.of([(0, 1_500_000), (2_000_000, 2_500_000)]), volume.size)

    monkeypatch.setattr(devices, "read_allocation", read_allocation)
    lines = section(output(), loop.path)
    size = int(run("blockdev", "--getsize64", loop.partition(3)))
    assert seen["ext4"] == (size, loop.sector_size)
    assert set(seen) == {"vfat", "swap", "ext4"}
    used = [line for line in lines if line.startswith(f"    {loop.path.name}p")]
    assert [line.split()[5] for line in used] == ["-", "-", "2.0"]


def made_up(partitions: tuple[Partition, ...], is_system: bool = False) -> Disk:
    return Disk(SAMSUNG, "gpt", Contents(None, None, None, (), None), partitions, is_system, ())


def test_documented_form() -> None:
    contents = Contents("ext4", "root", "1234", ("/", "/home"), 25_300_000_000)
    part = Partition("/dev/sdb2", "sdb2", 2, 1 << 20, 10**12, None, None, "system", None, contents)
    assert devices.describe_disk(made_up((part,), is_system=True), 100) == [
        "/dev/sdb  <- this system runs from here",
        "  Samsung SSD 870, 1.0 TB, 512/4096-byte sectors, SATA, serial S6P1NX0R,"
        " WWN 0x5002538f31234567,",
        "  gpt partition table",
        "    PARTITION  FILE SYSTEM  LABEL    SIZE     USED  MOUNTED ON",
        "    sdb2       ext4         root   1.0 TB  25.3 GB  /, /home",
    ]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_too_long_and_nothing_reaches_the_terminal_raw(width: int) -> None:
    evil = Contents("ntfs", "\x1b[31m" + "label" * 30, None, ("/very/long" * 20,), 10**15)
    part = Partition("/dev/sdb1", "sdb1", 1, 0, 10**15, None, None, None, None, evil)
    lines = devices.describe_disk(made_up((part,)), width)
    assert all(len(line) <= width and line.isprintable() for line in lines)
    assert "1.0 PB" in lines[-1]


def test_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "Größe.img", 16 << 20)
    run("mkfs.ext4", "-q", "-L", "Größe", file)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with LoopDevice(file) as loop:
        args = parse()
        assert args.run(args) == EXIT_OK
        sys.stdout.flush()
        assert "Gr??e" in "\n".join(section(raw.getvalue().decode("ascii"), loop.path))


def test_ordinary_user_gets_less_and_is_told(loop: LoopDevice) -> None:
    def look() -> str:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            return output() + "\0" + errors.getvalue() + "\0" + output("--json")

    mode = loop.path.stat().st_mode
    paths = [loop.path, *(loop.partition(number) for number in (1, 2, 3))]
    for path in paths:
        path.chmod(0o600)
    try:
        told, warned, report = as_nobody(look).split("\0")
    finally:
        for path in paths:
            path.chmod(mode)
    assert f"{loop.sector_size}-byte sectors" in section(told, loop.path)[1]
    assert warned == f"imager: {devices._NOT_ROOT}\n"
    assert json.loads(report)["complete"] is False


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    assert "examples:" in capsys.readouterr().out
