"""The ISO's layout, what is refused before anything is built, and what goes along."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from bootmedia import host
from bootmedia.build import BuildOptions, build, default_name
from bootmedia.iso import list_contents
from bootmedia.layer import read_ssh_key
from bootmedia.recipe import EPOCH, SUITE
from imager.disk import programs
from imager.errors import MissingToolError, UsageError
from tests.bootmedia.iso_parts import small_iso
from tests.command import failure
from tests.comparing import digest, gpt_is_sound
from tests.small_disk import Small

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx nobody@nowhere\n"


class TestIso:
    """What starts from the ISO is where firmware looks for it."""

    def test_the_same_from_the_same(self, tmp_path: Path) -> None:
        one = small_iso(tmp_path)
        # FAT counts in two seconds.
        time.sleep(2.1)
        assert digest(one) == digest(small_iso(tmp_path, name="n.iso"))

    def test_another_content_is_another_medium(self, tmp_path: Path) -> None:
        one = small_iso(tmp_path, options={"imager.keymap": "de"}, name="a.iso")
        other = small_iso(tmp_path, options={"imager.keymap": "fr"}, name="b.iso")
        assert uuid(one) != uuid(other)

    def test_partitions(self, tmp_path: Path) -> None:
        iso = small_iso(tmp_path)
        assert gpt_is_sound(iso)
        with iso.open("rb") as file:
            record = file.read(512)
        # BIOSes want one record marked as active; UEFI wants the protective one.
        assert [record[446 + 16 * n] for n in range(4)] == [0, 0x80, 0, 0]
        assert record[450] == 0xEE

    def test_boot_images(self, tmp_path: Path) -> None:
        report = subprocess.run(
            ["xorriso", "-indev", small_iso(tmp_path), "-report_el_torito", "plain"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "BIOS" in report and "UEFI" in report

    def test_contents(self, tmp_path: Path) -> None:
        found = [line.rpartition(" ")[0] for line in list_contents(small_iso(tmp_path))]
        assert {"live/vmlinuz", "live/initrd.img", "boot/grub/grub.cfg"} <= set(found)
        assert {"live/00-base.squashfs", "live/10-imager.squashfs"} <= set(found)


class TestRefused:
    """What cannot be is said in a line, before minutes are spent."""

    def refused(self, folder: Path, *words: str | Path, status: int = 2) -> str:
        options = ("--cache", folder / "cache", "--output", folder / "out.iso")
        message = failure("bootmedia", "build", *options, *words, status=status)
        assert not (folder / "out.iso").exists() and not (folder / "cache").exists()
        return message

    def test_config(self, tmp_path: Path) -> None:
        (tmp_path / "config").write_text("imager.restore=yes\n")
        assert "imager.restore" in self.refused(tmp_path, "--config", tmp_path / "config")

    def test_keymap_twice(self, tmp_path: Path) -> None:
        (tmp_path / "config").write_text("imager.keymap=de\n")
        words = ("--keymap", "fr", "--config", tmp_path / "config")
        assert "given twice" in self.refused(tmp_path, *words)

    def test_ssh_key(self, tmp_path: Path) -> None:
        key = tmp_path / "id"
        key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        assert "ends in .pub" in self.refused(tmp_path, "--ssh-key", key)
        assert "cannot be read" in self.refused(tmp_path, "--ssh-key", tmp_path / "none")
        key.write_text(f"# mine\n{KEY}")
        assert read_ssh_key(key) == KEY

    def test_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "manifest").write_text("bash\n")
        assert "line 1" in self.refused(tmp_path, "--manifest", tmp_path / "manifest")

    def test_damaged_image(self, small: Small, tmp_path: Path) -> None:
        image = tmp_path / "pc.img"
        shutil.copy(small.image, image)
        os.truncate(image, image.stat().st_size // 2)
        assert "pc.img" in self.refused(tmp_path, "--with-images", tmp_path, status=4)

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("none\n")
        assert "holds no images" in self.refused(tmp_path, "--with-images", tmp_path)

    def test_missing_programs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(programs, "_ADMIN_DIRECTORIES", ())
        with pytest.raises(MissingToolError, match=r"apt-get install mmdebstrap squashfs-tools"):
            build(BuildOptions(output=tmp_path / "out.iso", cache=tmp_path))

    def test_time_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
        with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
            host.epoch()
        monkeypatch.delenv("SOURCE_DATE_EPOCH")
        assert host.epoch() == EPOCH


class TestSources:
    """Packages come from where this machine gets its own, whatever release it runs."""

    def test_of_another_release(self) -> None:
        lines = host.translate(
            "bookworm http://mirror/debian/\n"
            "bookworm http://second/debian/\n"
            "bookworm-updates http://mirror/debian/\n"
            "bookworm-security http://mirror/security/\n"
            "nodistro http://other/\n"
        )
        assert [line.partition("] ")[2] for line in lines] == [
            f"http://mirror/debian/ {SUITE} main non-free-firmware",
            f"http://mirror/debian/ {SUITE}-updates main non-free-firmware",
            f"http://mirror/security/ {SUITE}-security main non-free-firmware",
        ]

    def test_of_another_system(self) -> None:
        assert host.translate("noble http://other/ubuntu/\n") == ()
        assert host.translate("") == ()


def test_names_say_the_variant() -> None:
    assert default_name("ci") == default_name("full").replace(".iso", "-ci.iso")


def uuid(iso: Path) -> str:
    return subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "UUID", iso],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
