"""LVM, LUKS and RAID in each other, to a sane depth; in the image, and as a person sees them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imager.errors import ReadFailedError
from imager.extents import Extents
from imager.layout.analyse import Analysis, analyse
from imager.layout.luks.keys import Keys
from imager.layout.model import (
    DiskLayout,
    NestedVolume,
    PartitionTable,
    VolumeLayout,
    all_volumes,
)
from imager.layout.slice import Slice
from imager.layout.view import Segment, Stripe, View, mapped
from imager.words.layout import layout_lines
from tests import sample_disk
from tests.command import imager, info
from tests.comparing import files_of
from tests.disks import MIB, copy_into, get, make_disk, put
from tests.loop import LoopDevice, mounted, run
from tests.luks_volumes import HEADER, PASSPHRASE, decrypt, encrypt, key_file
from tests.lvm_volumes import Lvm, make_ext4, small_group
from tests.md_volumes import Array, write_superblock
from tests.small_disk import garbage
from tests.volumes import BytesVolume, FileVolume

ROOT = 10
"""Extents (MiB) of the file system."""


class Lab:
    """1: RAID1 > LUKS > LVM > ext4 in two pieces.   2: LVM > LUKS > ext4."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = folder / "files"
        sample_disk.write_tree(files, MIB, 1)
        (files / "deleted").write_bytes(random.Random(2).randbytes(2 * MIB))
        self.root = make_ext4(folder / "root", ROOT * MIB, files, "-L", "root", "-m", "0")
        group = self.group = small_group(folder / "group", self.root)
        self.array = Array("1.2")
        outer = encrypt(group, folder / "outer", 4096)
        self.size1 = outer.stat().st_size + MIB
        inner = encrypt(self.root, folder / "inner")
        self.size2 = inner.stat().st_size + 8 * MIB
        self.start1 = 17 * MIB
        self.start2 = self.start1 + self.size1
        self.size = self.start2 + self.size2 + 17 * MIB
        self.disk = make_disk(folder / "disk", self.size)
        lines = (
            f"start={start // 512}, size={size // 512}\n"
            for start, size in ((self.start1, self.size1), (self.start2, self.size2))
        )
        run("sfdisk", self.disk, stdin="label: gpt\n" + "".join(lines))
        copy_into(outer, self.disk, self.start1 + MIB)
        write_superblock(self.disk, self.array, self.start1, self.size1)
        with LoopDevice(self.disk) as device:
            device.scan()
            self.fill_second(device, inner)
        self.key = key_file(folder)

    def fill_second(self, device: LoopDevice, inner: Path) -> None:
        lvm = Lvm(self.folder, (device.partition(2),))
        lvm.run("pvcreate", device.partition(2))
        lvm.run("vgcreate", "-s", "1m", "plain", device.partition(2))
        lvm.create("plain", "crypt", inner.stat().st_size // MIB, device.partition(2))
        lvm.write("plain", "crypt", inner)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("nest"))


def look(path: Path, passphrases: dict[int | None, bytes] | None = None) -> Analysis:
    found = analyse(FileVolume(path), path, keys=Keys(passphrases))
    assert DiskLayout.from_json(json.loads(json.dumps(found.layout.to_json()))) == found.layout
    return found


def kinds(layout: DiskLayout) -> list[tuple[str | None, str]]:
    return [(volume.kind, volume.stored) for volume in all_volumes(layout)]


def test_each_is_read_through_the_others(lab: Lab) -> None:
    found = look(lab.disk, dict.fromkeys((1, 2), PASSPHRASE.encode()))
    assert kinds(found.layout) == [
        ("linux_raid_member", "used"), ("crypto_LUKS", "used"), ("LVM2_member", "used"),
        ("ext4", "used"), (None, "raw"),
        ("LVM2_member", "used"), ("crypto_LUKS", "used"), ("ext4", "used"),
    ]  # fmt: skip
    alone = look(lab.root).layout.volumes[0].used
    roots = [volume for volume in all_volumes(found.layout) if volume.label == "root"]
    assert [volume.used for volume in roots] == [alone, alone]
    first, second = found.layout.volumes
    # Around it: the RAID's MiB, the LUKS header, LVM's first MiB, and crypt/left.
    assert first.used == MIB + HEADER + MIB + 2 * MIB + alone
    assert second.used == MIB + HEADER + alone


def test_closed_is_whole(lab: Lab) -> None:
    found = look(lab.disk)
    assert kinds(found.layout) == [
        ("linux_raid_member", "used"), ("crypto_LUKS", "raw"),
        ("LVM2_member", "used"), ("crypto_LUKS", "raw"),
    ]  # fmt: skip
    assert found.used.covers(lab.start1, lab.start1 + lab.size1)


def test_restored_they_hold_what_they_held(lab: Lab, tmp_path: Path) -> None:
    image, target = tmp_path / "image", garbage(tmp_path / "target", lab.size)
    words = ("--unlock", 1, "--unlock", 2, "--key-file", lab.key)
    said = imager("capture", *words, lab.disk, image).out
    rows = [line[5:] for line in said.splitlines()[2:10]]
    assert [len(row) - len(row.lstrip()) for row in rows] == [0, 2, 4, 6, 6, 0, 2, 4]
    imager("restore", "--yes", image, target)
    with LoopDevice(lab.root, read_only=True) as device:
        expected = files_of(device.path, "ext4", tmp_path)
    luks = tmp_path / "luks"
    luks.write_bytes(get(target, lab.start1 + MIB, lab.size1 - MIB))
    group = decrypt(luks, tmp_path / "group")
    with LoopDevice(group) as device:
        lvm = Lvm(tmp_path, (device.path,))
        root = lvm.read("crypt", "root", tmp_path / "root")
    with LoopDevice(root, read_only=True) as device:
        assert files_of(device.path, "ext4", tmp_path) == expected
    with LoopDevice(target) as device:
        device.scan()
        lvm = Lvm(tmp_path, (device.partition(2),))
        inner = lvm.read("plain", "crypt", tmp_path / "inner")
    with LoopDevice(decrypt(inner, tmp_path / "ext4")) as device:
        assert files_of(device.path, "ext4", tmp_path) == expected
    tree: list[Any] = info(image)["head"]["layout"]["volumes"]
    for kind in ("linux_raid_member", "crypto_LUKS", "LVM2_member", "ext4"):
        assert tree[0]["kind"] == kind and tree[0]["stored"] == "used"
        tree = tree[0]["children"]


def test_the_tree_of_devices(lab: Lab) -> None:
    with LoopDevice(lab.disk) as device:
        device.scan()
        said = imager("devices").out
        name = device.path.name
        lines = [line.split() for line in said.splitlines()]
        assert [f"{name}p2", "LVM2_member"] in [line[:2] for line in lines]
        assert ["plain/crypt", "crypto_LUKS"] in [line[:2] for line in lines]
        facts = json.loads(imager("devices", "--json").out)
        (disk,) = (disk for disk in facts["disks"] if disk["identity"]["name"] == name)
        (inside,) = disk["partitions"][1]["contents"]["inside"]
        assert (inside["name"], inside["contents"]["kind"]) == ("plain/crypt", "crypto_LUKS")


def test_too_deep_is_whole(tmp_path: Path) -> None:
    for levels in (3, 40):
        size = 4 * MIB + levels * 65536
        path = make_disk(tmp_path / f"{levels}", size)
        for level in range(levels):
            array = replace(Array("1.1"), data_offset=65536)
            write_superblock(path, array, level * 65536, size - level * 65536)
        found = look(path)
        assert found.used == Extents.span(0, size)
        volumes = [*all_volumes(found.layout)]
        assert len(volumes) == min(levels, 9) + 1
        reason = "no file system recognised" if levels == 3 else "too many volumes in volumes"
        assert volumes[-1].reason == reason


def test_two_copies_of_a_physical_volume(tmp_path: Path, lab: Lab) -> None:
    """Which of them LVM would take is not known."""
    disk = make_disk(tmp_path / "disk", 80 * MIB)
    run("sfdisk", disk, stdin="label: gpt\nsize=26MiB\nsize=26MiB\n")
    for start in (1, 27):
        copy_into(lab.group, disk, start * MIB)
    for volume in look(disk).layout.volumes:
        assert (volume.stored, volume.reason) == ("raw", "there is a copy of it on the disk")


@contextmanager
def two_members(disk: Path) -> Iterator[tuple[Lvm, tuple[Path, Path]]]:
    """A disk with the group vg on both of its partitions, while these can be used."""
    make_disk(disk, 80 * MIB)
    run("sfdisk", disk, stdin="label: gpt\nsize=26MiB\nsize=26MiB\n")
    with LoopDevice(disk) as device:
        device.scan()
        nodes = device.partition(1), device.partition(2)
        lvm = Lvm(disk.parent, nodes)
        lvm.run("pvcreate", *nodes)
        lvm.run("vgcreate", "-s", "1m", "vg", *nodes)
        yield lvm, nodes


def test_a_group_whose_members_disagree(tmp_path: Path, lab: Lab) -> None:
    disk = tmp_path / "disk"
    with two_members(disk) as (lvm, nodes):
        old = get(nodes[1], 0, MIB)
        lvm.create("vg", "new", 2, nodes[0])
    assert {volume.stored for volume in look(disk).layout.volumes} == {"used"}
    put(disk, 27 * MIB, old)
    for volume in look(disk).layout.volumes:
        assert (volume.stored, volume.reason) == ("raw", "the LVM metadata on its disk differ")


def test_a_member_without_metadata_of_its_own(tmp_path: Path) -> None:
    """The other member's tell of it; without that one, nothing does."""
    disk = tmp_path / "disk"
    with two_members(disk) as (lvm, nodes):
        lvm.run("pvchange", "-y", "--metadataignore", "y", nodes[1])
        lvm.create("vg", "new", 2, nodes[1])
    first, second = look(disk).layout.volumes
    assert (first.stored, second.stored) == ("used", "used")
    assert [child.name for child in second.children] == ["vg/new"]
    alone = analyse(FileVolume(disk), disk, exclude=(1,)).layout.volumes[1]
    assert alone.stored == "raw" and "belongs to no LVM group" in (alone.reason or "")


def test_a_member_of_no_group_is_whole(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", 26 * MIB)
    with LoopDevice(path) as device:
        Lvm(tmp_path, (device.path,)).run("pvcreate", device.path)
    (volume,) = look(path).layout.volumes
    assert volume.stored == "raw" and "belongs to no LVM group" in (volume.reason or "")


def test_beside_a_file_system_in_use(tmp_path: Path, lab: Lab) -> None:
    """A live capture reads the maps again in the freeze, those in LVM and LUKS too."""
    path = make_disk(tmp_path / "disk", 92 * MIB)
    run("sfdisk", path, stdin="label: gpt\nsize=20MiB\nsize=26MiB\nsize=26MiB\n")
    copy_into(lab.group, path, 21 * MIB)
    copy_into(lab.folder / "inner", path, 47 * MIB)
    with LoopDevice(path) as device:
        device.scan()
        run("mkfs.ext4", "-q", device.partition(1))
        with mounted(device.partition(1), tmp_path / "at") as place:
            (place / "file").write_text("in use")
            words = ("--unlock", 3, "--key-file", lab.key)
            imager("capture", *words, device.path, tmp_path / "image")
    found = info(tmp_path / "image")
    assert found["head"]["consistency"] == "frozen"
    layout = DiskLayout.from_json(found["head"]["layout"])
    assert kinds(layout) == [
        ("ext4", "used"), ("LVM2_member", "used"), ("ext4", "used"), (None, "raw"),
        ("crypto_LUKS", "used"), ("ext4", "used"),
    ]  # fmt: skip
    raw = tmp_path / "raw"
    imager("export", "--raw", tmp_path / "image", raw)
    still = look(path, {3: PASSPHRASE.encode()})
    for start, end in still.used.clip(21 * MIB, 73 * MIB):
        assert get(raw, start, end - start) == get(path, start, end - start)


def test_a_bad_sector_in_what_lies_inside(lab: Lab) -> None:
    class BadSector(FileVolume):
        def read(self, offset: int, size: int) -> bytes:
            bad = lab.start2 + 3 * MIB  # in the second LUKS header
            if offset <= bad < offset + size:
                raise ReadFailedError("bad sector")
            return super().read(offset, size)

    found = analyse(BadSector(lab.disk), lab.disk, keys=Keys({2: PASSPHRASE.encode()}))
    second = found.layout.volumes[1]
    assert second.stored == "used" and second.children[0].stored == "raw"
    assert second.children[0].reason == "its metadata cannot be read"


def striped(sizes: tuple[int, ...], chunk: int) -> tuple[View, bytes]:
    """A mapped volume, and its bytes put together one by one."""
    disk = bytes(random.Random(sum(sizes)).randbytes(1 << 16))
    view = View(BytesVolume(disk), lambda extents: extents, 0)
    segments, wanted, position, at = [], bytearray(), 0, 512
    for count, size in enumerate(sizes, 1):
        each = size // count
        stripes = tuple(Stripe(view, at + number * (each + 64)) for number in range(count))
        segments.append(Segment(position, size, chunk, stripes))
        for row in range(each // chunk if count > 1 else 1):
            length = chunk if count > 1 else size
            for stripe in stripes:
                start = stripe.offset + row * chunk
                wanted += disk[start : start + length]
        position += size
        at += size + 64 * count
    return mapped(segments, 512), bytes(wanted)


def test_mapped_volumes_byte_by_byte() -> None:
    view, wanted = striped((512, 1024, 1536, 2048), 128)
    assert view.volume.size == len(wanted)
    chance = random.Random(5)
    whole = view.whole
    assert whole.total == len(wanted)
    disk = random.Random(512 + 1024 + 1536 + 2048).randbytes(1 << 16)
    for _ in range(300):
        start = chance.randrange(len(wanted))
        end = chance.randrange(start, len(wanted) + 1)
        assert view.volume.read(start, end - start) == wanted[start:end]
        placed = view.place(Extents.span(start, end))
        assert placed.total == end - start and not placed - whole
        found = b"".join(disk[a:b] for a, b in placed)
        assert sorted(found) == sorted(wanted[start:end])
    with pytest.raises(ReadFailedError):
        view.volume.read(len(wanted), 1)


def test_parts_of_views() -> None:
    disk = View(BytesVolume(bytes(range(256)) * 4), lambda extents: extents, 0)
    part = disk.part(100, 500).part(50, 100)
    assert (part.start, part.volume.read(3, 2)) == (150, bytes((153, 154)))
    assert part.place(Extents.span(0, 10)) == Extents.span(150, 160)
    assert isinstance(part.volume, Slice)


def nested(depth: int) -> dict[str, Any]:
    volume = NestedVolume(None, 1, None, None, None, None, None, "raw", "x", 1, None).to_json()
    for _ in range(depth):
        volume = {**volume, "children": [volume]}
    return volume


def test_an_image_may_not_nest_without_end() -> None:
    assert NestedVolume.from_json(nested(5)).children[0].children
    with pytest.raises(ValueError, match="too deeply"):
        NestedVolume.from_json(nested(5000))


def test_old_images_have_no_children() -> None:
    volume = VolumeLayout(None, 0, 512, None, None, None, None, None, None, "raw", "x", 512, None)
    old = volume.to_json()
    del old["children"]
    assert VolumeLayout.from_json(old) == volume


def test_names_from_outside_are_printed_safely() -> None:
    inner = NestedVolume(
        "v\x1b[2J/x", 512, "ext4", "l\n", None, None, None, "raw", "r\r", 512, None
    )
    volume = VolumeLayout(None, 0, 512, None, None, None, None, None, None, "used", None, 512, None,
                          children=(inner,))  # fmt: skip
    layout = DiskLayout(512, 512, PartitionTable("none", None, (), Extents()), (volume,), ())
    assert all(line.isprintable() for line in layout_lines(layout))
