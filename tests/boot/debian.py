"""A Debian system by mmdebstrap, and what starts it from a disk by BIOS, UEFI and Secure Boot."""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bootmedia import host
from bootmedia.recipe import SUITE
from tests.loop import run

MIB = 1 << 20
_KEPT = 2
"""Files of one name that stay in the cache."""
UUID = "6d1f0b5e-3c52-4f0e-9d0a-3f6a1c9b7e42"
"""Of the file system that has GRUB's files in its folder boot."""
TABLE = "label: gpt\nsize=1MiB,type=21686148-6449-6E6F-744E-656564454649\nsize=34MiB,type=U\n"
"""How every disk's table begins: GRUB for BIOS, the ESP."""
KERNEL = ("linux-image-amd64", "initramfs-tools", "systemd-sysv", "udev", "kmod", "zstd")
GRUB = ("usr-is-merged", "grub2-common", "grub-pc-bin", "grub-efi-amd64-signed", "shim-signed")
_BIOS_START = 1 * MIB
_SECTOR = 512
_EARLY = f"search --no-floppy --fs-uuid --set=root {UUID}\nset prefix=($root)/boot/grub\n"
_MENU = f"""\
search --no-floppy --fs-uuid --set=root {UUID}
set timeout=0
serial --unit=0 --speed=115200
terminal_output serial
linux /boot/vmlinuz root=%s ro console=ttyS0,115200 quiet
initrd /boot/initrd.img
boot
"""
_FINISH = """\
set -eu
root=$1
release=$(basename "$root"/usr/lib/modules/*)
modules="%s"
chroot "$root" sh -c "
    for module in $modules; do
        modprobe --show-depends -S $release \\$module 2>/dev/null || true
    done" | sed -n 's|^insmod \\(/usr\\)*\\([^ ]*\\).*|/usr\\2|p' | sort -u > "$root/tmp/kept"
(cd "$root" && find ./usr/lib/modules -name '*.ko*' -o -name vmlinuz) | sed 's/^\\.//' | sort |
    comm -23 - "$root/tmp/kept" | sed "s|^|$root|" | xargs rm -f
chroot "$root" depmod "$release"
for module in $modules; do echo $module; done > "$root/etc/initramfs-tools/modules"
printf 'MODULES=list\\nCOMPRESS=zstd\\nCOMPRESSLEVEL=1\\nRESUME=none\\n' \\
    > "$root/etc/initramfs-tools/conf.d/guest"
chroot "$root" mkinitramfs -o /boot/initrd.img "$release"
cp "$root/boot/vmlinuz-$release" "$root/boot/vmlinuz"
rm -f "$root"/boot/*-"$release"
mkdir "$root/made"
chroot "$root" grub-mkimage -O i386-pc -p /boot/grub -c /tmp/early.cfg -o /made/core.img \\
    biosdisk part_gpt ext2 search search_fs_uuid normal linux serial terminal boot
cp "$root/usr/lib/grub/i386-pc/boot.img" "$root/usr/lib/shim/shimx64.efi.signed" \\
    "$root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" "$root/made"
rm -rf "$root"/usr/lib/grub "$root"/usr/lib/shim "$root"/usr/share/grub "$root"/tmp/* \\
    "$root"/usr/share/doc "$root"/usr/share/locale "$root"/usr/share/man \\
    "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
"""
RECIPE = (SUITE, TABLE, _EARLY, _MENU, _FINISH)
"""What all systems are made by."""


def cached(
    cache: Path, name: str, recipe: Iterable[str], make: Callable[[Path, Path], Path]
) -> Path:
    """The file `name` (with a %s for a hash of `recipe`) from `cache`, or made now.

    `make` gets a folder to work in and the one with downloaded packages, and returns the file.
    """
    key = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16]
    place = cache / "guests" / (name % key)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        packages = cache / "packages"
        packages.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="guest-", dir=place.parent) as work:
            make(Path(work), packages).rename(place)
        kept = sorted(place.parent.glob(name % "*"), key=lambda file: file.stat().st_mtime)
        for old in kept[:-_KEPT]:
            old.unlink()
    return place


def menu(root: str) -> str:
    """GRUB's configuration for a system whose root the kernel knows as `root`."""
    return _MENU % root


def bootstrap(
    work: Path, packages: Path, wanted: Sequence[str], modules: Sequence[str], files: Path
) -> None:
    """The system with the Debian packages `wanted` as `root.tar` in `work`.

    `packages` keeps what was downloaded. Only the kernel modules `modules`, and what they need, stay,
    and all of them are in the initramfs; `files` is copied over what the packages bring.
    """
    write(files / "tmp/early.cfg", _EARLY)
    write(files / "etc/machine-id", "")
    write(work / "finish.sh", _FINISH % " ".join(modules))
    run("tar", "-C", files, "--owner=0", "--group=0", "-cf", work / "files.tar", ".")
    archives = "/var/cache/apt/archives"
    hooks = [
        ("setup", f'mkdir -p "$1"{archives}/'),
        ("setup", f"sync-in {packages} {archives}/"),
        ("customize", f"sync-out {archives} {packages}"),
        ("customize", f"tar-in {work / 'files.tar'} /"),
        ("customize", f'sh {work / "finish.sh"} "$1"'),
        ("customize", f"copy-out /made {work}"),
        ("customize", 'rm -r "$1"/made'),
    ]
    options = [
        *("--mode=root", "--variant=essential", "--format=tar"),
        f"--include={','.join(wanted)}",
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=force-unsafe-io",
        *("--skip=download/empty", "--skip=essential/unlink"),
        *(f"--{when}-hook={what}" for when, what in hooks),
    ]
    host.run(
        ("mmdebstrap", *options, SUITE, work / "root.tar", *host.sources()),
        "making the guest",
        packages.parent / "guest.log",
    )


def unpack(work: Path, place: Path) -> None:
    """`root.tar` into a mounted file system."""
    run("tar", "-C", place, "--numeric-owner", "--xattrs", "-xf", work / "root.tar")


def write_esp(work: Path, partition: Path) -> None:
    """A FAT32 in `partition` with what UEFI starts."""
    made = work / "made"
    (work / "esp.cfg").write_text(f"{_EARLY}configfile $prefix/grub.cfg\n")
    run("mkfs.vfat", "-F", "32", "-n", "GUESTESP", partition)
    for folder in ("EFI", "EFI/BOOT", "EFI/debian"):
        run("mmd", "-i", partition, f"::{folder}")
    for source, name in (
        (made / "shimx64.efi.signed", "EFI/BOOT/BOOTX64.EFI"),
        (made / "grubx64.efi.signed", "EFI/BOOT/grubx64.efi"),
        (work / "esp.cfg", "EFI/debian/grub.cfg"),
    ):
        run("mcopy", "-i", partition, source, f"::{name}")


def write_grub(work: Path, disk: Path) -> None:
    """GRUB for BIOS: its boot sector must know where the core lies, the core where it goes on."""
    boot, core = (
        bytearray((work / "made" / name).read_bytes()) for name in ("boot.img", "core.img")
    )
    first = _BIOS_START // _SECTOR
    struct.pack_into("<Q", boot, 0x5C, first)
    boot[0x66:0x68] = b"\x90\x90"  # take the drive's number from the BIOS as it is
    struct.pack_into("<Q", core, _SECTOR - 12, first + 1)
    with disk.open("r+b") as file:
        file.write(boot[:440])
        file.seek(_BIOS_START)
        file.write(core)


def write(path: Path, text: str) -> Path:
    """A new file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
