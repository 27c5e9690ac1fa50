"""The ISO image: one file that starts as a CD and as a disk, by BIOS, UEFI and Secure Boot.

sectors 0..   GPT and GRUB's BIOS boot code for disks
partition 1   the ISO 9660 file system, El Torito boot images inside
partition 2   the EFI system partition: Debian's signed shim and GRUB
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootmedia import grub, host
from bootmedia.recipe import LIVE_LABEL

_ESP_SIZE = 8 << 20
_ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
_BASIC_DATA_TYPE = "a2a0d0ebe5b9334487c068b6b72699c7"
_LISTED = re.compile(r"[-e][rwx-]{9}\s+\d+\s+\S+\s+\S+\s+(?P<size>\d+)\s.*'/(?P<path>.*)'")
_UUID_BASE = datetime.datetime(2000, 1, 1)
_UUID_SPAN = 25 * 365 * 24 * 3600 * 100
"""Hundredths of a second: an ISO's UUID is a time, and ours names its content instead."""


@dataclass(frozen=True)
class Content:
    """What goes onto the ISO."""

    boot: Path
    """The base's folder of kernel, initramfs and GRUB's images."""
    layers: tuple[Path, ...]
    texts: Mapping[str, bytes]
    """Further small files, by their path on the ISO."""
    images: tuple[Path, ...]
    options: Mapping[str, str]


def make_iso(content: Content, output: Path, work: Path, epoch: int) -> str:
    """Write the ISO; returns its UUID. `work` is an empty folder for intermediate files."""
    stamp = _stamp(content)
    uuid = stamp.strftime("%Y-%m-%d-%H-%M-%S-") + f"{stamp.microsecond // 10000:02}"
    files = {
        "live/vmlinuz": content.boot / "vmlinuz",
        "live/initrd.img": content.boot / "initrd.img",
        "boot/grub/bios.img": content.boot / "bios.img",
        **{
            f"live/{number:02}-{layer.name}": layer
            for number, layer in zip(range(0, 100, 10), content.layers, strict=False)
        },
        **{f"images/{image.name}": image for image in content.images},
    }
    texts = {**content.texts, "boot/grub/grub.cfg": grub.menu(uuid, content.options).encode()}
    for number, (path, text) in enumerate(sorted(texts.items())):
        files[path] = work / f"text-{number}"
        files[path].write_bytes(text)
    esp = work / "esp.img"
    _make_esp(content.boot, esp, work, uuid, epoch)
    arguments = [
        *("-quiet", "-no-pad", "-r", "-iso-level", "3", "-V", LIVE_LABEL, "-o", output),
        f"--modification-date={uuid.replace('-', '')}",
        *("--set_all_file_dates", f"={epoch}"),
        *("--grub2-mbr", content.boot / "boot_hybrid.img"),
        *("-partition_offset", "16", "--mbr-force-bootable"),
        *("-append_partition", "2", _ESP_TYPE, esp, "-appended_part_as_gpt"),
        *("-iso_mbr_part_type", _BASIC_DATA_TYPE),
        *("-c", "boot/boot.cat", "-b", "boot/grub/bios.img", "-no-emul-boot"),
        *("-boot-load-size", "4", "-boot-info-table", "--grub2-boot-info"),
        *("-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot"),
        "-graft-points",
        *(f"/{_escaped(path)}={_escaped(str(source))}" for path, source in sorted(files.items())),
    ]
    output.unlink(missing_ok=True)
    host.run(
        ("xorriso", "-as", "mkisofs", *map(str, arguments)),
        "writing the ISO",
        environment={"SOURCE_DATE_EPOCH": str(epoch)},
    )
    return uuid


def list_contents(iso: Path) -> list[str]:
    """Path and size of each file on an ISO, sorted."""
    listing = host.run(
        ("xorriso", "-indev", iso, "-find", "/", "-not", "-type", "d", "-exec", "lsdl", "--"),
        "listing the ISO",
    )
    found = []
    for line in listing.splitlines():
        match = _LISTED.fullmatch(line.strip())
        if match:
            found.append(f"{match['path']} {match['size']}")
    return sorted(found)


def _stamp(content: Content) -> datetime.datetime:
    """A time that stands for the content: two media that differ never pass for each other."""
    digest = hashlib.sha256()
    for path in (content.boot / "vmlinuz", content.boot / "initrd.img", *content.layers):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for name, text in sorted(content.texts.items()):
        digest.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    for image in content.images:
        digest.update(f"{image.name} {image.stat().st_size}\n".encode())
    digest.update(grub.menu("", content.options).encode())
    hundredths = int.from_bytes(digest.digest()[:8], "big") % _UUID_SPAN
    return _UUID_BASE + datetime.timedelta(milliseconds=10 * hundredths)


def _make_esp(boot: Path, esp: Path, work: Path, uuid: str, epoch: int) -> None:
    """The EFI system partition as a FAT image."""
    config = work / "esp.cfg"
    config.write_text(grub.finder(uuid))
    with esp.open("wb") as file:
        file.truncate(_ESP_SIZE)
    environment = {"SOURCE_DATE_EPOCH": str(epoch)}

    def mtools(program: str, *arguments: str | Path) -> None:
        host.run(
            (program, "-i", esp, *arguments), "making the EFI partition", environment=environment
        )

    mtools("mformat", "-v", "IMAGER_EFI", "-N", "1a9e5001", "::")
    mtools("mmd", "::/EFI", "::/EFI/BOOT", "::/boot", "::/boot/grub")
    mtools("mcopy", *sorted((boot / "efi").iterdir()), "::/EFI/BOOT/")
    mtools("mcopy", config, "::/boot/grub/grub.cfg")


def _escaped(path: str) -> str:
    """A path in xorriso's graft points, where "=" and "\\" have a meaning."""
    return path.replace("\\", "\\\\").replace("=", "\\=")
