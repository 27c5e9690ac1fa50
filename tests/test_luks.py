"""LUKS: what is in use of an encrypted file system is stored, as ciphertext; without a key, all."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imager.cli.passphrase import read_passphrases
from imager.disk.sysfs import BlockTree
from imager.errors import NotUnderstoodError, UsageError
from imager.extents import Extents
from imager.layout.analyse import Analysis, analyse
from imager.layout.blkid import identify
from imager.layout.luks.header import read_header
from imager.layout.luks.keys import Keys
from tests import sample_disk
from tests.command import IMAGER, failure, imager, info
from tests.comparing import files_of
from tests.disks import MIB, clone, copy_into, get, make_disk, put
from tests.fake_mapper import Kernel
from tests.fake_sysfs import FakeSystem
from tests.loop import LoopDevice, run
from tests.luks_volumes import HEADER, PASSPHRASE, decrypt, encrypt, key_file
from tests.lvm_volumes import make_ext4
from tests.small_disk import garbage
from tests.volumes import FileVolume

INNER = 16 * MIB
SIZE = 148 * MIB
PARTS = {1: (20 * MIB, 2, 512), 2: (56 * MIB, 2, 4096), 3: (92 * MIB, 1, 512)}
"""Start, version and sector size of each LUKS volume."""
MARK = b"This is the plain text that nobody may ever find. "


class Lab:
    """A disk with three LUKS volumes that hold the same ext4."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = folder / "files"
        sample_disk.write_tree(files, MIB // 2, 1)
        (files / "marked").write_bytes(MARK * 4000)
        (files / "deleted").write_bytes(random.Random(2).randbytes(2 * MIB))
        self.plain = make_ext4(folder / "plain", INNER, files, "-L", "inner")
        self.used = analyse(FileVolume(self.plain), self.plain).layout.volumes[0].used
        self.disk = make_disk(folder / "disk", SIZE)
        lines = [
            f"start={start // 512}, size={(INNER + HEADER) // 512}" for start, *_ in PARTS.values()
        ]
        run("sfdisk", self.disk, stdin="label: gpt\n" + "\n".join(lines) + "\n")
        for number, (start, version, sector_size) in PARTS.items():
            luks = encrypt(self.plain, folder / f"luks{number}", sector_size, version)
            copy_into(luks, self.disk, start)
        self.key = key_file(folder)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("luks"))


def look(path: Path, passphrases: dict[int | None, bytes] | None = None) -> Analysis:
    return analyse(FileVolume(path), path, keys=Keys(passphrases))


def test_closed_it_is_stored_whole(lab: Lab) -> None:
    found = look(lab.disk)
    for volume in found.layout.volumes:
        assert (volume.kind, volume.stored, volume.children) == ("crypto_LUKS", "raw", ())
        assert "--unlock" in (volume.reason or "")
        assert found.used.covers(volume.start, volume.end)


def test_with_its_passphrase_what_is_in_use(lab: Lab) -> None:
    found = look(lab.disk, dict.fromkeys(PARTS, PASSPHRASE.encode()))
    for volume in found.layout.volumes:
        (inside,) = volume.children
        assert (inside.kind, inside.label, inside.stored) == ("ext4", "inner", "used")
        assert (inside.size, inside.used) == (INNER, lab.used)
        assert volume.used == HEADER + lab.used
        assert found.used.covers(volume.start, volume.start + HEADER)


def test_restored_it_holds_what_it_held(lab: Lab, tmp_path: Path) -> None:
    """Judged by cryptsetup, which decrypts all of it; no plain text is anywhere in the image."""
    image, target = tmp_path / "image", tmp_path / "target"
    words = [word for number in PARTS for word in ("--unlock", number)]
    said = imager("capture", *words, "--key-file", lab.key, lab.disk, image).out
    assert "partition 1: LUKS2, stored encrypted; read with its passphrase" in said
    assert len(info(image)["head"]["layout"]["volumes"][2]["children"]) == 1
    raw = tmp_path / "raw"
    imager("export", "--raw", image, raw)
    assert MARK not in raw.read_bytes() and MARK in lab.plain.read_bytes()
    assert image.stat().st_size < 3 * (lab.used + HEADER)
    garbage(target, SIZE)
    imager("restore", "--yes", image, target)
    with LoopDevice(lab.plain, read_only=True) as device:
        expected = files_of(device.path, "ext4", tmp_path)
    luks = tmp_path / "luks"  # of the others see test_nest
    luks.write_bytes(get(target, PARTS[3][0], INNER + HEADER))
    with LoopDevice(decrypt(luks, tmp_path / "inside")) as device:
        assert files_of(device.path, "ext4", tmp_path) == expected


def test_passphrases_that_do_not_fit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imager.live.abi.lock_memory", lambda: None)
    wrong = tmp_path / "wrong"
    wrong.write_text(PASSPHRASE.strip())
    image = tmp_path / "image"
    words = ("capture", "--key-file", wrong, lab.disk, image)
    assert failure(*words, "--unlock", 2, status=2) == "the passphrase does not open partition 2"
    assert failure(*words, "--unlock", 9, status=2).endswith("unlock in partition 9")
    with pytest.raises(UsageError, match="--key-file is for --unlock"):
        read_passphrases([], wrong)
    assert "asks for a passphrase on a terminal" in failure(
        *("capture", "--unlock", 2, lab.disk, image), status=2, program=("setsid", *IMAGER)
    )
    for text in (b"", bytes((8 << 20) + 1)):
        wrong.write_bytes(text)
        with pytest.raises(UsageError, match="holds no key"):
            read_passphrases([2], wrong)
    with pytest.raises(UsageError, match="cannot be read"):
        read_passphrases([2], tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("image")]


def test_no_passphrase_is_no_question() -> None:
    assert read_passphrases([], None) == {}


def test_a_disk_without_a_table(lab: Lab) -> None:
    luks = lab.folder / "luks1"
    (volume,) = look(luks, {None: PASSPHRASE.encode()}).layout.volumes
    assert [child.kind for child in volume.children] == ["ext4"]


def test_a_wrong_key_is_no_traceback(lab: Lab) -> None:
    with pytest.raises(UsageError, match="does not open partition 1"):
        look(lab.disk, {1: b"no"})


Json = dict[str, Any]


def seal(header: bytes, area: bytes, offset: int) -> bytes:
    """A LUKS2 header of 16 KiB with another JSON area and a right checksum."""
    block = bytearray(header[:4096] + area.ljust(12288, b"\0"))
    block[:6] = b"SKUL\xba\xbe" if offset else b"LUKS\xba\xbe"
    struct.pack_into(">Q", block, 256, offset)
    block[448:512] = bytes(64)
    block[448:480] = hashlib.sha256(block).digest()
    return bytes(block)


def with_json(luks: Path, area: bytes) -> None:
    header = get(luks, 0, 4096)
    put(luks, 0, seal(header, area, 0))
    put(luks, 16384, seal(header, area, 16384))


def at(*path: str, value: object) -> Callable[[Json], None]:
    def edit(area: Json) -> None:
        for key in path[:-1]:
            area = area[key]
        area[path[-1]] = value

    return edit


EDITS: dict[str, Callable[[Json], None]] = {
    "being encrypted": at("config", "requirements", value={"mandatory": ["online-reencrypt-v2"]}),
    "unknown requirement": at("config", "requirements", value={"mandatory": ["x"]}),
    "two segments": at("segments", "1", value={}),
    "no segment": at("segments", value={}),
    "no object": at("segments", value=[]),
    "linear": at("segments", "0", "type", value="linear"),
    "backup": at("segments", "0", "flags", value=["backup-final"]),
    "integrity": at("segments", "0", "integrity", value={"type": "hmac(sha256)"}),
    "no offset": at("segments", "0", "offset", value=0),
    "offset in the header": at("segments", "0", "offset", value="4096"),
    "odd offset": at("segments", "0", "offset", value="16777217"),
    "offset at the end": at("segments", "0", "offset", value="999999999999"),
    "2^64": at("segments", "0", "offset", value="9" * 40),
    "negative": at("segments", "0", "offset", value="-16777216"),
    "large": at("segments", "0", "size", value="999999999999"),
    "odd size": at("segments", "0", "size", value="777"),
    "sector of 3": at("segments", "0", "sector_size", value=3),
    "sector of text": at("segments", "0", "sector_size", value="512"),
    "no cipher": at("segments", "0", "encryption", value=None),
    "tweak of a number": at("segments", "0", "iv_tweak", value=0),
}


@pytest.mark.parametrize("name", EDITS)
def test_headers_that_prove_nothing(lab: Lab, tmp_path: Path, name: str) -> None:
    luks = clone(lab.folder / "luks1", tmp_path / "luks")
    area = json.loads(get(luks, 4096, 12288).rstrip(b"\0"))
    EDITS[name](area)
    with_json(luks, json.dumps(area).encode())
    with pytest.raises(NotUnderstoodError):
        read_header(FileVolume(luks))


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"{", b'{"segments": {}}', b"[" * 12000, b'{"config":' * 1200, b"\xff"],
)
def test_json_that_is_none(lab: Lab, tmp_path: Path, text: bytes) -> None:
    luks = clone(lab.folder / "luks1", tmp_path / "luks")
    with_json(luks, text)
    with pytest.raises(NotUnderstoodError):
        read_header(FileVolume(luks))


def test_another_size_and_tweak_are_followed(lab: Lab, tmp_path: Path) -> None:
    luks = clone(lab.folder / "luks1", tmp_path / "luks")
    area = json.loads(get(luks, 4096, 12288).rstrip(b"\0"))
    at("segments", "0", "size", value=f"{INNER - MIB}")(area)
    with_json(luks, json.dumps(area).encode())
    assert read_header(FileVolume(luks)).size == INNER - MIB
    # What lies behind the ciphertext is kept.
    found = look(luks, {None: PASSPHRASE.encode()})
    assert found.used.covers(HEADER + INNER - MIB, HEADER + INNER)


def test_other_ciphers_are_read_only_where_open(lab: Lab, tmp_path: Path) -> None:
    luks = clone(lab.folder / "luks1", tmp_path / "luks")
    area = json.loads(get(luks, 4096, 12288).rstrip(b"\0"))
    at("segments", "0", "encryption", value="serpent-xts-plain64")(area)
    with_json(luks, json.dumps(area).encode())
    (volume,) = look(luks, {None: PASSPHRASE.encode()}).layout.volumes
    assert volume.reason == "its cipher serpent-xts-plain64 is only read where it is open"


def test_single_flipped_bits_of_version_2(lab: Lab, tmp_path: Path) -> None:
    luks = clone(lab.folder / "luks1", tmp_path / "luks")
    sound = read_header(FileVolume(luks))
    for offset in range(0, 32768, 173):
        byte = get(luks, offset, 1)
        put(luks, offset, bytes((byte[0] ^ 32,)))
        with pytest.raises(NotUnderstoodError):
            read_header(FileVolume(luks))
        put(luks, offset, byte)
    assert read_header(FileVolume(luks)) == sound


def test_single_flipped_bits_of_version_1(lab: Lab, tmp_path: Path) -> None:
    """It has no checksum: the passphrase does not fit, or nothing less is stored."""
    luks = clone(lab.folder / "luks3", tmp_path / "luks")
    sound = look(luks, {None: PASSPHRASE.encode()}).used
    for offset in (*range(0, 80, 8), *range(104, 112), 112, 140, 167, 170, 208, 215, 240, 251, 255):
        byte = get(luks, offset, 1)
        put(luks, offset, bytes((byte[0] ^ 32,)))
        try:
            assert not sound - look(luks, {None: PASSPHRASE.encode()}).used
        except UsageError as error:
            assert re.search("passphrase does not open|cryptsetup cannot|no LUKS", str(error))
        put(luks, offset, byte)
    assert look(luks, {None: PASSPHRASE.encode()}).used == sound


def test_header_that_is_cut_off(lab: Lab, tmp_path: Path) -> None:
    for number in PARTS:
        whole = get(lab.folder / f"luks{number}", 0, HEADER)
        for size in (0, 6, 512, 4096, 16384, 20480, 32768, HEADER):
            path = tmp_path / f"{number}-{size}"
            path.write_bytes(whole[:size])
            with pytest.raises(NotUnderstoodError):
                read_header(FileVolume(path))


@pytest.fixture
def opened(
    lab: Lab, tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> tuple[FakeSystem, str]:
    """A kernel that has partition 1 open as dm-0, which the file `plain` stands for."""
    fake = FakeSystem(tmp_path / "fake")
    fake.add_disk("sda", 0x800)
    fake.add_partition("sda", "sda1", 0x801)
    part = fake.sys / "class/block/sda1"
    (part / "start").write_text(f"{PARTS[1][0] // 512}\n")
    (part / "size").write_text(f"{(INNER + HEADER) // 512}\n")
    dm = fake.add_disk("dm-0", 0xFD00, made_of=("sda1",))
    uuid = read_header(FileVolume(lab.folder / "luks1")).uuid.replace("-", "")
    (dm / "dm").mkdir()
    (dm / "dm/uuid").write_text(f"CRYPT-LUKS2-{uuid}-cryptroot\n")
    (dm / "dm/name").write_text("cryptroot\n")
    (dm / "dm/suspended").write_text("0\n")
    table = f"0 {INNER // 512} crypt aes-xts-plain64 :64:logon:x 0 8:1 {HEADER // 512}"
    kernel.tell(0xFD00, table)
    monkeypatch.setattr(BlockTree, "node", lambda tree, name: lab.plain)
    return fake, table


def look_open(lab: Lab, fake: FakeSystem) -> Analysis:
    return analyse(
        FileVolume(lab.disk),
        fake.node("sda"),
        identify=lambda path, start, size: identify(lab.disk, start, size),
        system=fake.system,
    )


def test_open_it_is_read_where_the_kernel_shows_it(
    lab: Lab, opened: tuple[FakeSystem, str]
) -> None:
    fake, _ = opened
    first, second, _ = look_open(lab, fake).layout.volumes
    (inside,) = first.children
    assert (inside.name, inside.kind, inside.used) == ("cryptroot", "ext4", lab.used)
    assert first.used == HEADER + lab.used
    assert second.stored == "raw"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" crypt ", " linear "),
        ("8:1 ", "8:2 "),
        (f"8:1 {HEADER // 512}", "8:1 4096"),
        ("0 32768", "0 32760"),
        ("0 32768", "8 32768"),
        (f"8:1 {HEADER // 512}", f"8:1 {HEADER // 512} 1 integrity:28:aead"),
        ("0 32768", "0 8 zero\n8 32768"),
        ("aes-xts-plain64 :64:logon:x 0 8:1", ""),
    ],
)
def test_what_is_open_must_be_just_this(
    lab: Lab, opened: tuple[FakeSystem, str], kernel: Kernel, old: str, new: str
) -> None:
    fake, text = opened
    assert old in text
    kernel.tell(0xFD00, text.replace(old, new))
    assert look_open(lab, fake).layout.volumes[0].stored == "raw"


def test_open_with_another_size(
    lab: Lab, opened: tuple[FakeSystem, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, _ = opened
    monkeypatch.setattr(BlockTree, "node", lambda tree, name: lab.disk)
    first = look_open(lab, fake).layout.volumes[0]
    assert first.reason == "it is open, but with another size"


def test_extents_are_whole_pieces_of_ciphertext(lab: Lab) -> None:
    """With 4 KiB encrypted in one piece, half of it would be of no use."""
    found = look(lab.disk, {2: PASSPHRASE.encode()})
    start = PARTS[2][0] + HEADER
    inside = found.used.clip(start, start + INNER)
    assert inside == Extents.of((a, b) for a, b in inside if a % 4096 == b % 4096 == 0)
