"""A small real Debian system on a disk: it boots on BIOS, UEFI and Secure Boot from any bus, says
over the serial line who it is, and switches off.

    | GPT | 1: GRUB for BIOS | 2: ESP (shim, GRUB) | 3: ext4, the system | GPT |

Made by mmdebstrap from the machine's own package sources, and kept by a hash of what makes it.
"""

from __future__ import annotations

import hashlib
import random
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bootmedia import host
from bootmedia.recipe import SUITE
from tests.boot.vm import Vm, VmDisk
from tests.disks import clone
from tests.loop import LoopDevice, mounted, run

MIB = 1 << 20
SIZE = 640 * MIB
"""Of the disk, bytes."""
SECONDS = 150
"""A boot that takes longer has failed."""
_KEPT = 2
_SECTOR = 512
_TABLE = "label: gpt\nsize=1MiB,type=21686148-6449-6E6F-744E-656564454649\nsize=34MiB,type=U\n-\n"
_BIOS_START, _ESP_START = 1 * MIB, 2 * MIB
_UUID = "6d1f0b5e-3c52-4f0e-9d0a-3f6a1c9b7e42"
_PAYLOAD = random.Random(7).randbytes(6 * MIB)
PAYLOAD_HASH = hashlib.sha256(_PAYLOAD).hexdigest()
_PACKAGES = (
    *("linux-image-amd64", "initramfs-tools", "systemd-sysv", "udev", "kmod", "zstd"),
    *("usr-is-merged", "grub2-common", "grub-pc-bin", "grub-efi-amd64-signed", "shim-signed"),
)
_GRUB = f"""\
search --no-floppy --fs-uuid --set=root {_UUID}
set timeout=0
serial --unit=0 --speed=115200
terminal_output serial
linux /boot/vmlinuz root=UUID={_UUID} ro console=ttyS0,115200 quiet
initrd /boot/initrd.img
boot
"""
_EARLY = f"search --no-floppy --fs-uuid --set=root {_UUID}\nset prefix=($root)/boot/grub\n"
_UNIT = """\
[Unit]
Description=Say who this is, then switch off
After=local-fs.target systemd-machine-id-commit.service
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/who-is-this
StandardOutput=tty
TTYPath=/dev/ttyS0
"""
_SCRIPT = """\
#!/bin/sh
boots=$(($(cat /var/lib/boots) + 1))
echo $boots > /var/lib/boots
efi=no
[ -d /sys/firmware/efi ] && efi=yes
echo "GUEST machine-id=$(cat /etc/machine-id) payload=$(sha256sum < /root/payload | cut -c1-64)" \
"boots=$boots root=$(findmnt --noheadings --output SOURCE /) efi=$efi."
sync
systemctl --no-block poweroff
"""
_FINISH = """\
set -eu
root=$1
release=$(basename "$root"/usr/lib/modules/*)
modules="virtio_pci virtio_blk ahci sd_mod nvme ext4 crc32c_generic"
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


@dataclass(frozen=True)
class Report:
    """What the guest says of itself."""

    machine_id: str
    payload: str
    boots: int
    root: str
    """The device that it runs from."""
    efi: bool

    @property
    def is_sound(self) -> bool:
        """Whether its payload is what it was made with."""
        return self.payload == PAYLOAD_HASH


def make_guest(cache: Path) -> Path:
    """The disk, never booted; from `cache`, or made now. Not to be changed. Needs root."""
    recipe = [SUITE, str(SIZE), _TABLE, _GRUB, _EARLY, _UNIT, _SCRIPT, _FINISH, *_PACKAGES]
    key = hashlib.sha256("\0".join([*recipe, PAYLOAD_HASH]).encode()).hexdigest()[:16]
    guest = cache / "guests" / f"guest-{key}.raw"
    if guest.exists():
        return guest
    guest.parent.mkdir(parents=True, exist_ok=True)
    packages = cache / "packages"
    packages.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="guest-", dir=guest.parent) as made:
        work = Path(made)
        _bootstrap(work, packages)
        _make_disk(work)
        (work / "disk").rename(guest)
    guests = sorted(guest.parent.glob("guest-*.raw"), key=lambda file: file.stat().st_mtime)
    for old in guests[:-_KEPT]:
        old.unlink()
    return guest


def boot(disks: list[VmDisk], firmware: str) -> Report:
    """Boot the first of `disks` until the guest has switched itself off; what it said."""
    with Vm(disks, firmware, memory=512) as vm:
        said = vm.serial.wait(
            r"GUEST machine-id=(\w+) payload=(\w+) boots=(\d+) root=(\S+) efi=(yes|no)\.", SECONDS
        )
        vm.wait_off(60)
    return Report(said[1], said[2], int(said[3]), said[4], said[5] == "yes")


def fresh_copy(guest: Path, place: Path) -> Path:
    """A copy to be booted and changed."""
    return clone(guest, place)


def _bootstrap(work: Path, packages: Path) -> None:
    """The system as `root.tar`."""
    (work / "finish.sh").write_text(_FINISH)
    files = work / "files"
    _write(files / "etc/hostname", "guest\n")
    _write(files / "etc/fstab", f"UUID={_UUID} / ext4 defaults 0 1\n")
    _write(files / "etc/systemd/system/who.service", _UNIT)
    _write(files / "usr/local/sbin/who-is-this", _SCRIPT).chmod(0o755)
    _write(files / "var/lib/boots", "0\n")
    _write(files / "boot/grub/grub.cfg", _GRUB)
    _write(files / "tmp/early.cfg", _EARLY)
    _write(files / "etc/machine-id", "")
    wants = files / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "who.service").symlink_to("../who.service")
    (files / "root").mkdir(mode=0o700)
    (files / "root/payload").write_bytes(_PAYLOAD)
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
        f"--include={','.join(_PACKAGES)}",
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


def _make_disk(work: Path) -> None:
    """`root.tar` and what boots it as `disk`."""
    made = work / "made"
    with LoopDevice(work / "disk", SIZE) as device:
        run("sfdisk", "--quiet", device.path, stdin=_TABLE)
        device.scan()
        run("mkfs.ext4", "-q", "-L", "GUESTROOT", "-U", _UUID, device.partition(3))
        with mounted(device.partition(3), work / "place") as place:
            run("tar", "-C", place, "--numeric-owner", "--xattrs", "-xf", work / "root.tar")
        _write_esp(made, device.partition(2), work)
    _write_grub(made, work / "disk")


def _write_esp(made: Path, partition: Path, work: Path) -> None:
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


def _write_grub(made: Path, disk: Path) -> None:
    """GRUB for BIOS: its boot sector must know where the core lies, the core where it goes on."""
    boot, core = (
        bytearray((made / "boot.img").read_bytes()),
        bytearray((made / "core.img").read_bytes()),
    )
    first = _BIOS_START // _SECTOR
    struct.pack_into("<Q", boot, 0x5C, first)
    boot[0x66:0x68] = b"\x90\x90"  # take the drive's number from the BIOS as it is
    struct.pack_into("<Q", core, _SECTOR - 12, first + 1)
    with disk.open("r+b") as file:
        file.write(boot[:440])
        file.seek(_BIOS_START)
        file.write(core)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
