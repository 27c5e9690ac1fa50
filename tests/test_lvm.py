"""LVM2: file systems in logical volumes, read by what LVM's metadata say; all doubt is kept whole."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.layout.analyse import Analysis, analyse
from imager.layout.lvm.group import read_group
from imager.layout.lvm.label import checksum, read_label
from imager.layout.lvm.text import parse
from imager.layout.model import DiskLayout, NestedVolume, VolumeLayout
from tests import sample_disk
from tests.command import imager, info
from tests.comparing import Tree, files_of
from tests.disks import clone, get, put
from tests.loop import LoopDevice, run
from tests.lvm_volumes import EXTENT, MIB, Lvm, make_ext4
from tests.small_disk import garbage
from tests.volumes import FileVolume

TABLE = "label: gpt\nstart=17MiB,size=160MiB\nsize=60MiB\n"
SIZE = 256 * MIB
STARTS = {1: 17 * MIB, 2: 177 * MIB}
FREE = 13
"""Extents of the first physical volume that no logical volume has."""


class Lab:
    """A disk with two physical volumes, a third one elsewhere, and what their volumes hold.

    vg/root     in two pieces, with vg/swap between them
    vg/span     on both partitions
    vg/striped  on both partitions by turns
    vg/away     partly on another disk
    """

    def __init__(self, folder: Path) -> None:
        self.disk, self.other = folder / "disk", folder / "other"
        self.folder = folder
        self.trees: dict[str, Tree] = {}
        with LoopDevice(self.disk, SIZE) as disk, LoopDevice(self.other, 40 * MIB) as other:
            run("sfdisk", disk.path, stdin=TABLE)
            disk.scan()
            lvm = self.lvm(disk, other)
            one, two = disk.partition(1), disk.partition(2)
            lvm.run("pvcreate", "--metadatacopies", "2", one)
            lvm.run("pvcreate", two, other.path)
            lvm.run("vgcreate", "-s", "1m", "vg", one, two, other.path)
            lvm.create("vg", "root", 20, one)
            lvm.create("vg", "swap", 12, one)
            lvm.extend("vg", "root", 40, one)
            lvm.create("vg", "span", 20, one)
            lvm.extend("vg", "span", 16, two)
            words = ("-y", "-an", "-Zn", "-Wn", "-n", "striped", "-l", 32, "-i", 2, "-I", "64k")
            lvm.run("lvcreate", *words, "vg", one, two)
            lvm.create("vg", "away", 10, two)
            lvm.extend("vg", "away", 20, other.path)
            self.volumes = self._fill(lvm)
            self.pieces = {name: lvm.pieces("vg", name) for name in (*self.volumes, "swap")}
            self.nodes = {one: STARTS[1], two: STARTS[2]}

    def _fill(self, lvm: Lvm) -> dict[str, Path]:
        found = {}
        files = self.folder / "files"
        sample_disk.write_tree(files, 3 * MIB, 1)
        (files / "deleted").write_bytes(random.Random(2).randbytes(6 * MIB))
        for name in ("root", "span", "striped", "away"):
            size = lvm.size("vg", name)
            found[name] = make_ext4(self.folder / name, size, files, "-L", f"fs-{name}")
            lvm.write("vg", name, found[name])
            with LoopDevice(found[name], read_only=True) as device:
                self.trees[name] = files_of(device.path, "ext4", self.folder)
        swap = self.folder / "swap"
        swap.touch()
        with swap.open("r+b") as file:
            file.truncate(lvm.size("vg", "swap"))
        run("mkswap", "-L", "swap", swap)
        lvm.write("vg", "swap", swap)
        return found

    def lvm(self, disk: LoopDevice, other: LoopDevice) -> Lvm:
        return Lvm(self.folder, (disk.partition(1), disk.partition(2), other.path))

    def used_by_oracle(self, name: str) -> Extents:
        """Bytes of the disk that a volume's file system uses, by dumpe2fs and lvs."""
        said = run("dumpe2fs", self.volumes[name])
        count = int(re.findall(r"Block count: +(\d+)", said)[0])
        free = [
            (int(first), int(last or first) + 1)
            for line in re.findall(r"Free blocks: ([\d, -]+)$", said, re.MULTILINE)
            for first, last in re.findall(r"(\d+)(?:-(\d+))?", line)
        ]
        used = Extents.of((a * 4096, b * 4096) for a, b in free).complement(0, count * 4096)
        return self.on_disk(name, used)

    def on_disk(self, name: str, extents: Extents) -> Extents:
        """Bytes of a logical volume as bytes of the disk, by lvs."""
        return Extents.of(
            (start - piece.logical + at, end - piece.logical + at)
            for piece in self.pieces[name]
            if piece.device in self.nodes
            for at in [self.nodes[piece.device] + piece.offset]
            for start, end in extents.clip(piece.logical, piece.logical + piece.size)
        )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lvm"))


def look(path: Path) -> Analysis:
    """Analyse a disk; its layout survives being written down."""
    found = analyse(FileVolume(path), path)
    assert DiskLayout.from_json(found.layout.to_json()) == found.layout
    return found


def nested(volume: VolumeLayout | NestedVolume) -> dict[str, NestedVolume]:
    return {child.name or "": child for child in volume.children}


def test_all_is_read_through_the_mapping(lab: Lab) -> None:
    found = look(lab.disk)
    first, second = found.layout.volumes
    assert {first.stored, second.stored} == {"used"}
    inside = nested(first)
    assert {*inside} == {"vg/root", "vg/swap", "vg/span", "vg/striped"}
    assert {(each.stored, each.reason) for each in inside.values()} == {("used", None)}
    assert [(each.kind, each.label) for each in inside.values()] == [
        ("ext4", "fs-root"), ("swap", "swap"), ("ext4", "fs-span"), ("ext4", "fs-striped"),
    ]  # fmt: skip
    (away,) = second.children
    assert (away.name, away.stored, away.used) == ("vg/away", "raw", 10 * EXTENT)
    assert away.reason == "part of it lies on another disk"
    for name in ("root", "span", "striped"):
        oracle = lab.used_by_oracle(name)
        assert not oracle - found.used
        stored = lab.on_disk(name, Extents.span(0, 1 << 40)) & found.used
        assert inside[f"vg/{name}"].used <= 1.02 * oracle.total
        # What is stored beyond it are the disk's first and last 16 MiB.
        assert not (stored - oracle).clip(16 * MIB, SIZE - 16 * MIB).total > 0.02 * oracle.total
    away_here = lab.on_disk("away", Extents.span(0, 1 << 40))
    assert away_here.total == 10 * EXTENT and not away_here - found.used
    swap = lab.on_disk("swap", Extents.span(0, 1 << 40)) & found.used
    assert swap == lab.on_disk("swap", Extents.span(0, 65536))


def test_metadata_and_what_is_around_the_extents_are_kept(lab: Lab) -> None:
    found = look(lab.disk)
    for number, start in STARTS.items():
        volume = FileVolume(lab.disk, start, found.layout.volumes[number - 1].size)
        label = read_label(volume)
        group = read_group(label.metadata[0])
        (member,) = (each for each in group.members.values() if each.uuid == label.uuid)
        end = member.start + member.extents * EXTENT
        assert found.used.covers(start, start + member.start)
        assert found.used.covers(start + end, start + volume.size)
    # Extents of no logical volume are not stored.
    taken = Extents.union(lab.on_disk(name, Extents.span(0, 1 << 40)) for name in lab.pieces)
    free = Extents.span(STARTS[1] + EXTENT, STARTS[1] + 150 * MIB) - taken
    assert free.total >= FREE * EXTENT and not free & found.used


def test_restored_volumes_are_what_they_were(lab: Lab, tmp_path: Path) -> None:
    imager("capture", lab.disk, tmp_path / "image")
    layout = info(tmp_path / "image")["head"]["layout"]
    assert layout["volumes"][0]["children"][0]["name"] == "vg/root"
    garbage(tmp_path / "target", SIZE)
    with LoopDevice(tmp_path / "target") as disk, LoopDevice(lab.other) as other:
        imager("restore", "--yes", tmp_path / "image", disk.path)
        disk.scan()
        lvm = lab.lvm(disk, other)
        lvm.run("vgck", "vg")
        for name, tree in lab.trees.items():
            with LoopDevice(lvm.read("vg", name, tmp_path / name), read_only=True) as device:
                assert files_of(device.path, "ext4", tmp_path) == tree
        swap = lvm.read("vg", "swap", tmp_path / "swap")
        assert run("swaplabel", swap).count("LABEL: swap") == 1


def test_it_is_shown_as_a_tree(lab: Lab, tmp_path: Path) -> None:
    said = imager("capture", "--dry-run", lab.disk).out
    assert re.search(r"^  1 +LVM +- ", said, re.MULTILINE)
    assert re.search(r"^ +  ext4 +vg/root \(fs-root\) +62\.9 MB", said, re.MULTILINE)
    assert "vg/away in partition 2 is stored whole: part of it lies on another disk" in said
    assert "partition 1: member of the LVM group vg" in said


Edit = Callable[[str], str]


def rewrite(disk: Path, number: int, edit: Edit) -> None:
    """Change the text of a partition's LVM metadata, in every copy, with right checksums."""
    start = STARTS[number]
    volume = FileVolume(disk, start, 160 * MIB if number == 1 else 60 * MIB)
    text = edit(read_label(volume).metadata[0]).encode() + b"\0"
    sector = next(at for at in range(0, 2048, 512) if get(disk, start + at, 8) == b"LABELONE")
    areas = get(disk, start + sector + 32 + 40 + 32, 64)
    for at in range(0, len(areas), 16):
        offset, size = (int.from_bytes(areas[at + n : at + n + 8], "little") for n in (0, 8))
        if not offset:
            break
        header = bytearray(get(disk, start + offset, 512))
        header[40:56] = (512).to_bytes(8, "little") + len(text).to_bytes(8, "little")
        header[56:60] = checksum(text).to_bytes(4, "little")
        header[:4] = checksum(bytes(header[4:])).to_bytes(4, "little")
        assert len(text) < size - 512
        put(disk, start + offset, bytes(header) + text)


def edited(lab: Lab, folder: Path, edit: Edit) -> Path:
    """A copy of the disk whose metadata are changed in both partitions."""
    disk = clone(lab.disk, folder / "disk")
    for number in STARTS:
        rewrite(disk, number, edit)
    return disk


def replaced(old: str, new: str, count: int = 1) -> Edit:
    """An edit that must find something."""

    def edit(text: str) -> str:
        assert re.search(old, text)
        return re.sub(old, new, text, count=count)

    return edit


WHOLE = {
    "exported": (replaced(r'"RESIZEABLE"', '"EXPORTED"'), "its LVM group is exported"),
    "shared": (replaced(r"max_lv = 0", 'lock_type = "sanlock"'), "shared with other machines"),
    "unknown group flag": (replaced(r"flags = \[\]", 'flags = ["NEW"]'), "state that is not known"),
    "unknown type": (replaced('"striped"', '"quantum"'), "segment is of a kind that is not known"),
    "overlap": (replaced(r'"pv0", 20\b', '"pv0", 19'), "two LVM volumes overlap"),
    "past the end": (replaced(r'"pv0", 20\b', '"pv0", 4000000000'), "reaches past the end"),
    "huge": (replaced(r'"pv0", 20\b', '"pv0", 99999999999999999999'), "reaches past the end"),
    "negative": (replaced(r'"pv0", 20\b', '"pv0", -1'), "reaches past the end"),
    "gap": (replaced("start_extent = 20", "start_extent = 21"), "an LVM volume has gaps"),
    "no extents": (replaced(r"extent_size = \d+", "extent_size = 0"), "make no sense"),
    "2^64 extents": (replaced(r"pe_count = \d+", f"pe_count = {1 << 64}"), "make no sense"),
    "many stripes": (replaced("stripe_count = 1", "stripe_count = 4000000000"), "make no sense"),
    "odd chunk": (replaced("stripe_size = 128", "stripe_size = 127"), "makes no sense"),
    "other start": (replaced("pe_start = [0-9]+", "pe_start = 4096"), "contradict each other"),
    "missing": (replaced(r'(pv0 \{[^}]*?)flags = \[\]', r'\1flags = ["MISSING"]'), "as missing"),
    "move": (
        replaced(r'type = "striped"(\s+stripe_count = 1\s+)stripes', r'type = "mirror"\1mirrors'),
        "LVM is moving extents of its group",
    ),
    "said twice": (replaced("max_lv = 0", "max_lv = 0\nmax_lv = 0"), "say something twice"),
    "long name": (replaced(r"root \{", "r" * 200 + " {"), "make no sense"),
    "deep": (lambda text: "a {\n" * 100_000 + text, "nested too deeply"),
    "cut": (lambda text: text[: text.index("swap {")], "cut short"),
    "no text": (lambda text: text.replace("{", "(", 1), "not well formed"),
    "list in a list": (replaced(r'\["pv0"|\[\n"pv0"', '[["pv0"'), "not well formed"),
    "comments": (lambda text: text + "#" * 60_000 + "\n(", "not well formed"),
    "strings": (lambda text: text + '"' + "\\\\" * 30_000, "not well formed"),
    "two groups": (lambda text: text + "more {\n}\n", "more than one group"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_metadata_that_prove_nothing(lab: Lab, tmp_path: Path, name: str) -> None:
    edit, reason = WHOLE[name]
    disk = edited(lab, tmp_path, edit)
    found = look(disk)
    first = found.layout.volumes[0]
    assert first.stored == "raw" and reason in (first.reason or "")
    assert not look(lab.disk).used.clip(0, first.end) - found.used
    assert found.used.covers(first.start, first.end)


SNAPSHOT = """{
id = "axyioC-eFWW-wQdJ-xqNL-LvMK-lhIJ-cXQuVd"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
segment_count = 1
segment1 {
start_extent = 0
extent_count = 60
type = "snapshot"
chunk_size = 8
origin = "root"
cow_store = "swap"
}
}
"""


def snapshot(text: str) -> str:
    """A snapshot of vg/root, whose changed blocks are where vg/swap is."""
    hidden = replaced(r"(swap \{\s+id = .*\s+status = )\[.*\]", r'\1["READ", "WRITE"]')(text)
    return hidden.replace("logical_volumes {\n", f"logical_volumes {{\nsnapshot0 {SNAPSHOT}")


def thin(text: str) -> str:
    """vg/root as the data of a thin pool, vg/swap as its metadata."""
    hidden = replaced(r"((?:root|swap) \{\s+id = .*\s+status = )\[.*\]", r'\1["READ", "WRITE"]', 2)
    pool = """
pool {
id = "axyioC-eFWW-wQdJ-xqNL-LvMK-lhIJ-cXQuVd"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
segment_count = 1
segment1 {
start_extent = 0
extent_count = 60
type = "thin-pool"
metadata = "swap"
pool = "root"
transaction_id = 1
chunk_size = 128
discards = "passdown"
zero_new_blocks = 1
}
}
"""
    return hidden(text).replace("logical_volumes {\n", "logical_volumes {\n" + pool)


@pytest.mark.parametrize("edit", [snapshot, thin])
def test_what_others_are_built_upon_is_whole(lab: Lab, tmp_path: Path, edit: Edit) -> None:
    disk = edited(lab, tmp_path, edit)
    found = look(disk)
    inside = nested(found.layout.volumes[0])
    for name in ("root", "swap"):
        assert inside[f"vg/{name}"].stored == "raw"
        assert inside[f"vg/{name}"].reason == "other LVM volumes are built upon it"
        assert not lab.on_disk(name, Extents.span(0, 1 << 40)) - found.used
    assert (inside["vg/root"].kind, inside["vg/root"].label) == ("ext4", "fs-root")
    assert inside["vg/span"].stored == "used"
    assert any("stored with what they are built" in note for note in found.layout.volumes[0].notes)


def test_one_volume_in_a_state_that_is_not_known(lab: Lab, tmp_path: Path) -> None:
    edit = replaced(r"(root \{\s+id = .*\s+status = )\[(.*)\]", r'\1[\2, "LOCKED"]')
    disk = edited(lab, tmp_path, edit)
    inside = nested(look(disk).layout.volumes[0])
    assert inside["vg/root"].reason == "LVM has work to do on it"
    assert inside["vg/span"].stored == "used"


def test_very_many_volumes(lab: Lab, tmp_path: Path) -> None:
    """More than anybody has would make an image's description too large."""
    for count, stored in ((900, "used"), (1100, "raw")):
        many = "".join(f"snapshot{number} {SNAPSHOT}" for number in range(count))
        edit = replaced("logical_volumes {\n", "logical_volumes {\n" + many)
        disk = edited(lab, tmp_path, edit)
        first = look(disk).layout.volumes[0]
        assert first.stored == stored and len(first.notes) == (stored == "used")
        assert len("".join(first.notes)) < 200


def test_volume_that_refers_to_itself(lab: Lab, tmp_path: Path) -> None:
    edit = replaced(r'(root \{[^\0]*?stripes = \[\s*)"pv0"', r'\1"root"')
    disk = edited(lab, tmp_path, edit)
    inside = nested(look(disk).layout.volumes[0])
    assert inside["vg/root"].stored == "raw"


def test_text_wraps_around_in_its_area(lab: Lab, tmp_path: Path) -> None:
    """The metadata lie in a ring: LVM's own writes get there after some changes."""
    path = tmp_path / "pv"
    with LoopDevice(path, 32 * MIB) as device:
        lvm = Lvm(tmp_path, (device.path,))
        lvm.run("pvcreate", "--metadatasize", "60k", "--dataalignment", "64k", device.path)
        lvm.run("vgcreate", "-s", "1m", "ring", device.path)
        wrapped = 0
        for number in range(29):
            lvm.create("ring", f"a-volume-with-a-long-name-{number}" + "x" * 60, 1)
            volume = FileVolume(path)
            group = read_group(read_label(volume).metadata[0])
            assert len(group.volumes) == number + 1
            header = get(path, 4096, 512)
            offset, size = (int.from_bytes(header[at : at + 8], "little") for at in (40, 48))
            area = int.from_bytes(header[32:40], "little")
            wrapped += offset + size > area
        assert wrapped


def damaged(disk: Path, at: int) -> Iterator[None]:
    """Flip one bit of a byte, and back."""
    old = get(disk, at, 1)
    put(disk, at, bytes((old[0] ^ 4,)))
    yield
    put(disk, at, old)


def test_single_flipped_bits(lab: Lab, tmp_path: Path) -> None:
    """In label, headers and text: whole, or the same map."""
    disk = clone(lab.disk, tmp_path / "disk")
    start = STARTS[1]
    sound = look(disk).used
    chance = random.Random(3)
    places = [start + 512 + n for n in range(0, 140, 3)]
    places += [start + 4096 + n for n in range(0, 140, 5)]
    header = get(disk, start + 4096, 512)
    text = int.from_bytes(header[40:48], "little")
    places += [start + 4096 + text + chance.randrange(2000) for _ in range(20)]
    for at in places:
        for _ in damaged(disk, at):
            found = look(disk)
            assert not sound - found.used
    assert look(disk).used == sound


@pytest.mark.parametrize(
    "text",
    ["", "{", "}", "a", "a =", "a = [", 'a = "', "a = 1 2", "= 1", "a = -", "a { b = [1,,2] }"],
)
def test_text_that_is_none(text: str) -> None:
    if text:
        with pytest.raises(NotUnderstoodError):
            parse(text)
    with pytest.raises(NotUnderstoodError):
        read_group(text)


def test_metadata_changed_at_random(lab: Lab) -> None:
    """Words and signs of the text moved, lost, doubled, exchanged: an answer, or a clear no."""
    text = read_label(FileVolume(lab.disk, STARTS[1], 160 * MIB)).metadata[0]
    tokens = re.findall(r'"[^"]*"|[\w.]+|[^\w"]', text)
    numbers = ("0", "-1", "1", "20", "4294967296", "18446744073709551616", '"pv0"', "[", "}", "{")
    chance = random.Random(11)
    understood = 0
    for _ in range(400):
        changed = [*tokens]
        for _ in range(chance.randint(1, 3)):
            at, other = chance.randrange(len(changed)), chance.randrange(len(changed))
            match chance.randrange(4):
                case 0:
                    changed[at] = chance.choice(numbers)
                case 1:
                    del changed[at]
                case 2:
                    changed[at] = changed[other]
                case _:
                    changed[at:at] = changed[other : other + chance.randrange(20)]
        try:
            group = read_group("".join(changed))
        except NotUnderstoodError:
            continue
        understood += 1
        for volume in group.volumes:
            for run_ in volume.runs:
                for area in run_.areas:
                    assert area.extent + area.extents <= group.members[area.member].extents
    assert 0 < understood < 400
