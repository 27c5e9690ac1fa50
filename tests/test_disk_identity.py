"""Which disk it is: against util-linux, and through JSON that may come from anyone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imager.disk import identity as identity_module
from imager.disk import programs
from imager.disk.identity import Identity, identify, resolve
from imager.disk.lsblk import lsblk
from imager.errors import ImagerError, MissingToolError, RefusedError, UsageError
from tests.fake_sysfs import FakeSystem
from tests.loop import LoopDevice, run, sparse_file

SAMSUNG = Identity(
    path="/dev/sdb",
    name="sdb",
    kind="disk",
    model="Samsung SSD 870",
    serial="S6P1NX0R",
    wwn="0x5002538f31234567",
    transport="sata",
    size=1_000_204_886_016,
    logical_sector=512,
    physical_sector=4096,
    rotational=False,
    removable=False,
    read_only=False,
    backing_file=None,
)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_loop_device(tmp_path: Path, sector_size: int) -> None:
    with LoopDevice(tmp_path / "disk.img", 16 << 20, sector_size=sector_size) as loop:
        found = identify(loop.path)
        assert (found.path, found.name, found.kind) == (str(loop.path), loop.path.name, "loop")
        assert found.size == int(run("blockdev", "--getsize64", loop.path)) == 16 << 20
        assert found.logical_sector == int(run("blockdev", "--getss", loop.path)) == sector_size
        assert found.physical_sector == int(run("blockdev", "--getpbsz", loop.path))
        assert found.backing_file == str(tmp_path / "disk.img")
        assert not found.read_only
        assert found.describe() == f"{loop.path.name}: loop on {tmp_path}/disk.img, 16.8 MB"


def test_partition_takes_the_disks_properties(tmp_path: Path) -> None:
    file = sparse_file(tmp_path / "disk.img", 16 << 20)
    run("sfdisk", file, stdin="label: gpt\nsize=8MiB\n")
    with LoopDevice(file) as loop:
        loop.scan()
        found = identify(loop.partition(1))
        assert (found.kind, found.size) == ("partition", 8 << 20)
        assert found.backing_file == str(file)
        link = tmp_path / "by-id"
        link.symlink_to(loop.partition(1))
        assert identify(link).name == loop.partition(1).name


def test_read_only_loop_device(tmp_path: Path) -> None:
    with LoopDevice(tmp_path / "disk.img", 1 << 20, read_only=True) as loop:
        assert identify(loop.path).read_only


def test_plain_file(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "evil\x1b[2Jname.img", 5 << 20)
    found = identify(path)
    assert (found.kind, found.size, found.logical_sector) == ("file", 5 << 20, 512)
    assert found.describe() == "evil?[2Jname.img: disk-image file, 5.2 MB"
    assert Identity.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("path", ["/dev/null", "/tmp", "/nowhere"])
def test_what_has_no_identity(path: str) -> None:
    with pytest.raises(UsageError, match=path):
        identify(Path(path))


def test_sysfs_says_what_lsblk_does_not(tmp_path: Path) -> None:
    fake = FakeSystem(tmp_path)
    directory = fake.add_disk("xyz", os.makedev(259, 77))
    (directory / "queue").mkdir()
    for name, value in (
        ("serial", "NVME77\n"),
        ("queue/logical_block_size", "4096"),
        ("queue/rotational", "1"),
        ("removable", "1"),
        ("ro", "1"),
    ):
        (directory / name).write_text(value)
    found = identity_module.identity_of("xyz", Path("/dev/xyz"), {}, fake.system)
    assert found == Identity(
        "/dev/xyz",
        "xyz",
        "disk",
        None,
        "NVME77",
        None,
        None,
        1 << 20,
        4096,
        4096,
        True,
        True,
        True,
        None,
    )


def test_describe() -> None:
    assert SAMSUNG.describe() == "sdb: Samsung SSD 870 (S6P1NX0R), 1.0 TB, SATA"


def test_json_round_trip_ignores_what_later_versions_add() -> None:
    value = json.loads(json.dumps(SAMSUNG.to_json()))
    assert Identity.from_json({**value, "future": [1]}) == SAMSUNG


@pytest.mark.parametrize("field", list(SAMSUNG.to_json()))
def test_json_lacks_a_field(field: str) -> None:
    value = SAMSUNG.to_json()
    del value[field]
    with pytest.raises(ValueError, match=f"lacks {field}"):
        Identity.from_json(value)


@pytest.mark.parametrize("field", list(SAMSUNG.to_json()))
@pytest.mark.parametrize("value", [[], {}, 1.5, -1, 1 << 63, "\0", "x" * 5000, object()])
def test_json_has_a_wrong_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Identity.from_json({**SAMSUNG.to_json(), field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "\x1b]0;owned\x07"),
        ("name", "a\nb"),
        ("size", True),
        ("rotational", 1),
        ("logical_sector", 513),
        ("logical_sector", 0),
        ("physical_sector", 131072),
        ("path", None),
    ],
)
def test_json_has_a_subtly_wrong_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Identity.from_json({**SAMSUNG.to_json(), field: value})


@pytest.mark.parametrize("value", [None, [], "sdb", 3])
def test_json_is_no_mapping(value: object) -> None:
    with pytest.raises(ValueError, match="not a mapping"):
        Identity.from_json(value)


@pytest.fixture
def three_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    """Two disks in identical USB docks that tell the same serial number, and one SSD."""
    fake = FakeSystem(tmp_path)
    facts = {}
    for minor, (name, serial, wwn) in enumerate(
        [("sda", "DOCK01", "0x1"), ("sdb", "DOCK01", "0x2"), ("sdc", "S6P1", "eui.0025385")]
    ):
        fake.add_disk(name, os.makedev(8, 16 * minor))
        facts[name] = {"serial": serial, "wwn": wwn, "model": f"Model {name}"}
    fake.add_disk("sr0", os.makedev(11, 0))
    (fake.sys / "class/block/sr0/size").write_text("0\n")
    monkeypatch.setattr(identity_module, "lsblk", lambda: facts)
    return fake


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("serial:S6P1", "/dev/sdc"),
        ("serial: s6p1 ", "/dev/sdc"),
        ("wwn:0x2", "/dev/sdb"),
        ("wwn:0025385", "/dev/sdc"),
        ("/dev/sda", "/dev/sda"),
        ("new.img", "new.img"),
        ("./serial:S6P1", "serial:S6P1"),
    ],
)
def test_resolve(three_disks: FakeSystem, name: str, path: str) -> None:
    assert resolve(name, three_disks.system) == Path(path)


def test_resolve_refuses_two_of_the_same(three_disks: FakeSystem) -> None:
    with pytest.raises(RefusedError) as caught:
        resolve("serial:DOCK01", three_disks.system)
    message = str(caught.value)
    assert "more than one disk" in message
    assert "sda: Model sda (DOCK01)" in message
    assert "sdb: Model sdb (DOCK01)" in message
    assert "sdc" not in message


@pytest.mark.parametrize("name", ["serial:none", "wwn:0x3", "serial:S6P", "serial:S6P12"])
def test_resolve_refuses_what_is_not_there(three_disks: FakeSystem, name: str) -> None:
    with pytest.raises(RefusedError, match=f"no disk is {name}.*sda.*sdb.*sdc"):
        resolve(name, three_disks.system)


@pytest.mark.parametrize("name", ["serial:", "wwn: "])
def test_resolve_wants_a_value(name: str) -> None:
    with pytest.raises(UsageError, match="names no disk"):
        resolve(name)


def test_resolve_on_this_machine_gives_a_disk_by_its_serial() -> None:
    for name, facts in lsblk().items():
        if facts.get("serial") and facts["type"] == "disk":
            assert resolve(f"serial:{facts['serial']}") == Path("/dev") / name


def test_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_ADMIN_DIRECTORIES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingToolError, match="apt-get install util-linux"):
        lsblk()


def test_tool_is_found_outside_of_an_ordinary_users_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert programs.find("sfdisk", "fdisk").endswith("sbin/sfdisk")


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"blockdevices": [{}]}', "nonsense"])
def test_lsblk_that_makes_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    script = tmp_path / "lsblk"
    script.write_text(f"#!/bin/sh\necho '{answer}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ImagerError, match="lsblk failed"):
        lsblk()


def test_what_disks_call_themselves_is_made_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "lsblk"
    device = {"kname": "sda", "model": " Bad\x1b[31m Disk ", "serial": "", "wwn": None}
    (tmp_path / "answer").write_text(json.dumps({"blockdevices": [device]}))
    script.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert lsblk() == {"sda": {"kname": "sda", "model": "Bad?[31m Disk"}}
