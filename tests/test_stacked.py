"""What device-mapper says of an active logical volume, and what is then open on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from imager.disk.stacked import Target, table
from imager.disk.sysfs import BlockTree
from imager.extents import Extents
from imager.layout.analyse import Analysis, analyse
from imager.layout.blkid import identify
from imager.layout.luks.header import read_header
from imager.layout.model import all_volumes
from imager.live.metadata import RememberedVolume
from tests.disks import MIB, make_disk
from tests.fake_mapper import Kernel
from tests.fake_sysfs import FakeSystem
from tests.loop import LoopDevice, run
from tests.luks_volumes import HEADER, encrypt
from tests.lvm_volumes import Lvm
from tests.volumes import BytesVolume, FileVolume

INNER = 4 * MIB


class Active:
    """A whole-disk physical volume sdb; vg/vault on it is active as dm-0, and open as dm-1."""

    def __init__(self, folder: Path) -> None:
        self.plain = make_disk(folder / "plain", INNER)
        run("mkfs.ext4", "-q", "-F", "-b", "4096", "-L", "vault", self.plain)
        luks = encrypt(self.plain, folder / "luks")
        self.uuid = read_header(FileVolume(luks)).uuid
        self.disk = make_disk(folder / "disk", 32 * MIB)
        with LoopDevice(self.disk) as device:
            lvm = Lvm(folder, (device.path,))
            lvm.run("pvcreate", device.path)
            lvm.run("vgcreate", "-s", "1m", "vg", device.path)
            lvm.create("vg", "vault", 8, device.path)
            lvm.create("vg", "other", 2, device.path)
            lvm.extend("vg", "vault", 12, device.path)
            lvm.write("vg", "vault", luks)
            words = ("--noheadings", "-o", "vg_uuid,lv_uuid", "vg/vault")
            self.id = "".join(lvm.run("lvs", *words).split()).replace("-", "")
        self.fake = FakeSystem(folder / "fake")
        self.fake.add_disk("sdb", 0x810)
        mib = MIB // 512
        self.tables = {
            "0": f"0 {8 * mib} linear 8:16 {mib}\n{8 * mib} {12 * mib} linear 8:16 {11 * mib}",
            "1": f"0 {INNER // 512} crypt aes-xts-plain64 :64:logon:x 0 253:0 {HEADER // 512}",
        }
        self.add("dm-0", 0xFD00, "sdb", f"LVM-{self.id}")
        uuid = self.uuid.replace("-", "")
        self.add("dm-1", 0xFD01, "dm-0", f"CRYPT-LUKS2-{uuid}-vault")
        self.asleep = self.fake.sys / "class/block/dm-1/dm/suspended"

    def add(self, name: str, number: int, below: str, uuid: str) -> None:
        directory = self.fake.add_disk(name, number, made_of=(below,)) / "dm"
        directory.mkdir()
        for key, value in (("uuid", uuid), ("name", "vault"), ("suspended", "0")):
            (directory / key).write_text(f"{value}\n")

    def tell(self, kernel: Kernel) -> None:
        """Have the kernel answer with the tables."""
        for minor, text in self.tables.items():
            kernel.tell(os.makedev(253, int(minor)), text)

    def look(self) -> Analysis:
        return analyse(
            FileVolume(self.disk),
            self.fake.node("sdb"),
            identify=lambda path, start, size: identify(self.disk, start, size),
            system=self.fake.system,
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Active:
    return Active(tmp_path_factory.mktemp("mapper"))


@pytest.fixture
def active(made: Active, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Active:
    monkeypatch.setattr(made, "tables", {**made.tables})
    made.tell(kernel)
    made.asleep.write_text("0\n")
    monkeypatch.setattr(BlockTree, "node", lambda tree, name: made.plain)
    return made


def test_open_luks_in_an_active_logical_volume(active: Active) -> None:
    found = [(each.kind, each.stored) for each in all_volumes(active.look().layout)]
    assert found == [
        ("LVM2_member", "used"), ("crypto_LUKS", "used"), ("ext4", "used"), (None, "raw"),
    ]  # fmt: skip


CHANGES: dict[str, Callable[[Active], None]] = {
    "another mapping": lambda it: it.tables.update({"0": it.tables["0"].replace("2048", "4096")}),
    "another disk": lambda it: it.tables.update({"0": it.tables["0"].replace("8:16", "8:32")}),
    "one line": lambda it: it.tables.update({"0": it.tables["0"].splitlines()[0]}),
    "nothing": lambda it: it.tables.update({"0": ""}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_must_be_mapped_as_the_metadata_say(active: Active, kernel: Kernel, name: str) -> None:
    CHANGES[name](active)
    active.tell(kernel)
    kinds = [(each.kind, each.stored) for each in all_volumes(active.look().layout)]
    assert kinds[1] == ("crypto_LUKS", "raw")


def test_what_stands_still_is_not_asked(active: Active) -> None:
    active.asleep.write_text("1\n")
    tree = active.fake.system.tree
    assert table(tree, "dm-1") == ()
    assert table(tree, "sdb") == ()
    (target, _) = table(tree, "dm-0")
    assert target == Target(0, 8 * MIB, "linear", ("8:16", "2048"))


class Counting(BytesVolume):
    """Knows how often it was read."""

    reads = 0

    def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        return super().read(offset, size)


def test_what_is_open_is_remembered_until_it_is_written() -> None:
    """In the freeze of a live capture only what was written has to be read again."""
    data = bytearray(8192)
    inner = Counting(data)
    remembered = RememberedVolume(BytesVolume(bytes(65536)), ())

    def place(extents: Extents) -> Extents:
        return extents.shift(16384)

    for _ in range(3):  # opened anew for each look
        volume = remembered.remember(inner, place)
        assert (volume.size, volume.sector_size) == (8192, 512)
        assert volume.read(512, 1024) == bytes(1024)
    assert inner.reads == 1
    remembered.written(Extents.span(512, 1536))
    remembered.remember(inner, place).read(512, 1024)
    assert inner.reads == 1
    data[600] = 7
    remembered.written(Extents.span(16384 + 1024, 16384 + 1536))
    assert remembered.remember(inner, place).read(512, 1024)[88] == 7
    assert inner.reads == 2
    other = remembered.remember(Counting(bytes(4096)), lambda extents: extents.shift(32768))
    assert other.read(512, 1024) == bytes(1024)
    remembered.forget()
    remembered.remember(inner, place).read(512, 1024)
    assert inner.reads == 3
