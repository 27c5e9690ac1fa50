"""Whether the firmware will start what was restored: every answer, and what is changed for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from imager.disk.inventory import Contents, Disk, Partition
from imager.rescue import boot
from imager.rescue.boot import try_the_boot
from imager.rescue.journal import Journal
from imager.rescue.media import MediaVolume
from imager.rescue.session import Machine, Session
from tests.scripted_screen import Scripted, ScriptedScreen
from tests.test_disk_identity import SAMSUNG

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
PART = "5b6a0b6c-1111-2222-3333-444455556666"
KNOWN = (
    f"Boot0003* debian\tHD(1,GPT,{PART.upper()},0x800,0x100000)/File(\\EFI\\debian\\shimx64.efi)\n"
)
OTHER = "Boot0000* UEFI Floppy\tPciRoot(0x0)\n"


class Firmware:
    """Boot entries, as efibootmgr keeps them."""

    def __init__(self, *entries: str) -> None:
        self.entries = list(entries)
        self.calls: list[tuple[str, ...]] = []
        self.refuses = False

    def run(self, program: str, package: str, *words: str) -> CompletedProcess[str]:
        assert program == "efibootmgr"
        if words == ("-v",):
            return CompletedProcess(words, 0, "".join(self.entries), "")
        self.calls.append(words)
        if self.refuses:
            return CompletedProcess(words, 1, "", "Could not prepare Boot variable: No space left")
        if words[0] == "--create":
            self.entries.append("Boot0007* Restored by imager\tHD(1,GPT)\n")
        return CompletedProcess(words, 0, "", "")


@pytest.fixture
def esp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the restored EFI system partition."""
    root = tmp_path / "esp"
    root.mkdir()

    @contextmanager
    def mounted(volume: MediaVolume) -> Iterator[Path]:
        assert (volume.path, volume.kind) == ("/dev/sdb1", "vfat")
        yield root

    monkeypatch.setattr(boot, "mounted_read_only", mounted)
    return root


def told(
    tmp_path: Path, firmware: Firmware, *steps: Scripted, kind: str = ESP, efi: bool = True
) -> str:
    """What the person reads at last."""
    contents = Contents("vfat", "ESP", None, (), None)
    partition = Partition(
        "/dev/sdb1", "sdb1", 1, 1 << 20, 1 << 29, kind, None, None, PART, contents
    )
    disk = Disk(SAMSUNG, "gpt", Contents(None, None, None, (), None), (partition,), False, ())
    if efi:
        (tmp_path / "sys/firmware/efi").mkdir(parents=True, exist_ok=True)
    machine = replace(
        Machine(), state=tmp_path / "run", disks=lambda: (disk,), run=firmware.run,
        sys=tmp_path / "sys",
    )  # fmt: skip
    screen = ScriptedScreen(*steps, "Try the boot")
    session = Session(screen, machine, Journal(tmp_path / "run/log"))
    try_the_boot(session, SAMSUNG)
    assert screen.finished()
    return screen.last


def loader(esp: Path, name: str) -> None:
    (esp / name).parent.mkdir(parents=True, exist_ok=True)
    (esp / name).touch()


def test_bios(tmp_path: Path) -> None:
    firmware = Firmware()
    assert "started by a BIOS" in told(tmp_path, firmware, efi=False)
    assert not firmware.calls


def test_an_entry_that_is_there_is_started_next(tmp_path: Path, esp: Path) -> None:
    loader(esp, "EFI/debian/shimx64.efi")
    firmware = Firmware(OTHER, KNOWN)
    assert "entry Boot0003" in told(tmp_path, firmware)
    assert firmware.calls == [("--bootnext", "0003")]


def test_the_fallback_needs_nothing(tmp_path: Path, esp: Path) -> None:
    loader(esp, "EFI/BOOT/BOOTX64.EFI")
    firmware = Firmware(OTHER)
    assert "Nothing was changed." in told(tmp_path, firmware)
    assert not firmware.calls


@pytest.mark.parametrize("answer", [True, False, None])
def test_an_entry_is_added_after_asking(tmp_path: Path, esp: Path, answer: bool | None) -> None:
    loader(esp, "EFI/debian/shimx64.efi")
    firmware = Firmware(OTHER)
    text = told(tmp_path, firmware, ("\\EFI\\debian\\shimx64.efi", answer))
    if not answer:
        assert "Nothing was changed." in text and not firmware.calls
        return
    assert "Boot0007 was added" in text
    created, started = firmware.calls
    assert created[:5] == ("--create", "--disk", SAMSUNG.path, "--part", "1")
    assert created[-1] == "\\EFI\\debian\\shimx64.efi"
    assert started == ("--bootnext", "0007")


def test_what_cannot_be_helped(tmp_path: Path, esp: Path) -> None:
    assert "no loader" in told(tmp_path, Firmware())
    assert "started by BIOS" in told(tmp_path, Firmware(), kind="0x83")
    loader(esp, "EFI/debian/shimx64.efi")
    firmware = Firmware(OTHER)
    firmware.refuses = True
    assert "No space left" in told(tmp_path, firmware, ("has no entry", True))
