"""A machine that captures its own disk: Debian with systemd, in the ways in which disks are laid out.

    plain   | BIOS | ESP | / ext4 | /home ext4 | swap |
    lvm     | BIOS | ESP | /boot ext4 | LVM: / ext4, /home ext4, swap, free space |
    luks    | BIOS | ESP | /boot ext4 | LUKS: LVM as above |

Each has a swap file, too, and the ESP mounted read-write. At each start it says over the serial line in
which state the disk is (see `load`), runs the job on a disk labelled JOB, and gives a login prompt.

The host needs no device-mapper to make it: LVM's tools write the metadata, file systems are made as
files and put where the volumes lie, and qemu-img encrypts.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bootmedia.host import default_cache
from bootmedia.layer import layer_nodes
from bootmedia.trees import pack
from tests.boot import debian
from tests.boot.debian import MIB, UUID, write
from tests.loop import LoopDevice, mounted, run, sparse_file

KINDS = ("plain", "lvm", "luks")
_BOOT, _ROOT, _HOME, _SWAP, _FREE = 96 * MIB, 600 * MIB, 96 * MIB, 48 * MIB, 256 * MIB
_SWAP_FILE = 16 * MIB
_FIRST = 36 * MIB
"""Where the partitions behind the ESP begin."""
_KEY = b"not a secret"
_PACKAGES = (
    *("lvm2", "dmsetup", "cryptsetup-bin", "fdisk", "python3", "python3-bitarray"),
    *("python3-crc32c", "python3-parted", "python3-tqdm", "python3-zstandard"),
)
_MODULES = (
    *("virtio_pci", "virtio_blk", "ahci", "sd_mod", "nvme", "ext4", "crc32c_generic"),
    *("vfat", "nls_cp437", "nls_ascii", "dm_mod", "dm_snapshot", "dm_crypt", "xts", "ecb"),
    *("cbc", "aes_generic", "sha256_generic"),
)
_PACKAGES_FOLDER = "usr/lib/python3/dist-packages"
_UNIT = """\
[Unit]
Description=Say what state the disk is in, and run the job
After=local-fs.target systemd-machine-id-commit.service swap.target
Before=getty.target serial-getty@ttyS0.service
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/usr/local/sbin/machine
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
"""
_SCRIPT = """\
#!/bin/sh
python3 /usr/local/lib/load.py check /var/load /home/load /boot/efi
udevadm settle
if [ -e /dev/disk/by-label/JOB ]; then
    mount /dev/disk/by-label/JOB /job
    cp /job/job /run/job
    sh /run/job
fi
"""
_INITRAMFS_HOOK = """\
#!/bin/sh
[ "$1" = prereqs ] && exit
. /usr/share/initramfs-tools/hook-functions
copy_exec /usr/sbin/cryptsetup
copy_exec /usr/lib/x86_64-linux-gnu/libgcc_s.so.1
cp /etc/machine.key "$DESTDIR/etc/machine.key"
"""
_INITRAMFS_UNLOCK = """\
#!/bin/sh
[ "$1" = prereqs ] && exit
if [ -e /dev/disk/by-partlabel/luks ] && [ ! -e /dev/mapper/opened ]; then
    cryptsetup open --key-file /etc/machine.key /dev/disk/by-partlabel/luks opened
fi
lvm vgchange --quiet --quiet -ay
"""
_FSTAB = """\
%s / ext4 defaults 0 1
LABEL=HOME /home ext4 defaults 0 2
LABEL=GUESTESP /boot/efi vfat defaults 0 2
LABEL=SWAP none swap sw 0 0
/swapfile none swap sw 0 0
"""


@dataclass
class _Made:
    """What a machine is put together from."""

    work: Path
    """With `root.tar` and the folder `made`."""
    kind: str
    images: dict[str, Path] = field(default_factory=dict)
    """File systems as files, by their names."""

    @property
    def is_plain(self) -> bool:
        return self.kind == "plain"


def make_machine(kind: str, folder: Path) -> Path:
    """A machine's disk, never booted, in `folder`, with this very source on it. Needs root."""
    disk = folder / f"{kind}.raw"
    with tempfile.TemporaryDirectory(prefix="machine-", dir=folder) as name:
        work = Path(name)
        run("tar", "-C", work, "-xf", _base(default_cache()))
        made = _Made(work, kind)
        _make_file_systems(made)
        if made.is_plain:
            volumes = ["root", "home", "swap"]
        else:
            made.images["volumes"] = _volume_group(made)
            if kind == "luks":
                made.images["volumes"] = _encrypted(made)
            volumes = ["boot", "volumes"]
        _assemble(made, disk, volumes)
    return disk


def _base(cache: Path) -> Path:
    """A tar of `root.tar` and `made`, kept by a hash of what makes them; without our program."""
    recipe = (
        *(*debian.RECIPE, *debian.KERNEL, *debian.GRUB, *_PACKAGES, *_MODULES),
        *(_UNIT, _SCRIPT, _INITRAMFS_HOOK, _INITRAMFS_UNLOCK),
    )
    return debian.cached(cache, "machine-%s.tar", recipe, _make_base)


def _make_base(work: Path, packages: Path) -> Path:
    files = work / "files"
    write(files / "etc/hostname", "machine\n")
    write(files / "etc/machine.key", _KEY.decode())
    tools = files / "etc/initramfs-tools"
    write(tools / "hooks/machine", _INITRAMFS_HOOK).chmod(0o755)
    write(tools / "scripts/local-block/machine", _INITRAMFS_UNLOCK).chmod(0o755)
    write(files / "etc/systemd/system/machine.service", _UNIT)
    write(files / "usr/local/sbin/machine", _SCRIPT).chmod(0o755)
    wants = files / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "machine.service").symlink_to("../machine.service")
    for folder in ("boot/efi", "job", "home"):
        (files / folder).mkdir(parents=True)
    debian.bootstrap(work, packages, (*debian.KERNEL, *debian.GRUB, *_PACKAGES), _MODULES, files)
    run("tar", "-C", work, "-cf", work / "base", "root.tar", "made")
    return work / "base"


def _make_file_systems(made: _Made) -> None:
    """All images: root with this source and a swap file, boot if it is separate, home, ESP, swap."""
    work, images = made.work, made.images
    sizes = {"esp": 34 * MIB, "root": _ROOT, "home": _HOME, "boot": _BOOT, "swap": _SWAP}
    for name, size in sizes.items():
        images[name] = sparse_file(work / f"{name}.image", size)
    debian.write_esp(work, images["esp"])
    run("mkswap", "--quiet", "--label", "SWAP", images["swap"])
    run("mkfs.ext4", "-q", "-L", "HOME", images["home"])
    with_grub, without = ("root", "boot") if made.is_plain else ("boot", "root")
    run("mkfs.ext4", "-q", "-U", UUID, images[with_grub])
    run("mkfs.ext4", "-q", images[without])
    with mounted(images["root"], work / "root", "loop") as root:
        if made.is_plain:
            _fill(made, root)
        else:
            with mounted(images["boot"], root / "boot", "loop") as boot:
                (boot / "boot").symlink_to(".")  # GRUB looks for its files in the folder boot
                _fill(made, root)


def _fill(made: _Made, root: Path) -> None:
    debian.unpack(made.work, root)
    layer = [
        node
        for node in layer_nodes(default_cache(), None)
        if node.path.startswith(_PACKAGES_FOLDER)
    ]
    (made.work / "layer.tar").write_bytes(pack(layer, 0))
    run("tar", "-C", root, "-xf", made.work / "layer.tar")
    load = (Path(__file__).parent / "load.py").read_text()
    write(root / "usr/local/lib/load.py", load)
    # Here it takes a second, in an emulated machine a minute.
    compiled = (f"/{_PACKAGES_FOLDER}", "/usr/local/lib")
    run("chroot", root, "python3", "-m", "compileall", "-q", *compiled)
    place = f"UUID={UUID}" if made.is_plain else "/dev/mapper/machine-root"
    boot = "" if made.is_plain else f"UUID={UUID} /boot ext4 defaults 0 2\n"
    write(root / "etc/fstab", _FSTAB % place + boot)
    write(root / "boot/grub/grub.cfg", debian.menu(place))
    swap = root / "swapfile"
    swap.write_bytes(bytes(_SWAP_FILE))
    swap.chmod(0o600)
    run("mkswap", "--quiet", swap)


def _volume_group(made: _Made) -> Path:
    """A physical volume with the volumes root, home and swap, and free space, as a file."""
    place = made.work / "volumes.image"
    sizes = {"root": _ROOT, "home": _HOME, "swap": _SWAP}
    with LoopDevice(place, sum(sizes.values()) + _FREE) as device:
        only = f'devices {{ filter=["a|^{device.path}$|","r|.*|"] use_devicesfile=0 }}'
        config = f"{only} backup {{ backup=0 archive=0 }}"
        options = ("--driverloaded", "n", "--config", config)
        run("pvcreate", *options, device.path)
        run("vgcreate", *options, "machine", device.path)
        for name, size in sizes.items():
            new = ("--activate", "n", "--zero", "n", "--wipesignatures", "n", "--name", name)
            run("lvcreate", *options, "--yes", *new, "--size", f"{size}b", "machine")
        columns = ("--options", "lv_name,pe_start,vg_extent_size,seg_pe_ranges")
        plain = ("--segments", "--noheadings", "--units", "b", "--nosuffix")
        lines = run("pvs", *options, *plain[:1], *plain[1:], *columns).splitlines()
        places = {}
        for line in filter(None, map(str.split, lines)):
            if line[0] in sizes:
                start, extent, first = int(line[1]), int(line[2]), line[3]
                number = int(first.rpartition(":")[2].partition("-")[0])
                places[line[0]] = start + number * extent
    for name in sizes:
        _put(made.images[name], place, places[name])
    return place


def _encrypted(made: _Made) -> Path:
    """The volume group inside LUKS."""
    key = write(made.work / "key", _KEY.decode())
    place = made.work / "luks.image"
    words = (
        *("qemu-img", "convert", "--object", f"secret,id=key,file={key}", "-O", "luks"),
        # An emulated machine takes long for a key that a real one makes in two seconds.
        *("-o", "key-secret=key,iter-time=10", made.images["volumes"], place),
    )
    for attempt in range(20):
        # It measures how fast a key is derived, and gives up where the clock was too coarse for that.
        try:
            run(*words)
        except AssertionError as error:
            if attempt == 19 or "accurate CPU usage" not in str(error):
                raise
        else:
            break
    return place


def _assemble(made: _Made, disk: Path, volumes: list[str]) -> None:
    sizes = {name: -(-made.images[name].stat().st_size // MIB) * MIB for name in volumes}
    sparse_file(disk, _FIRST + sum(sizes.values()) + 8 * MIB)
    names = {"swap": "type=S,name=swap", "volumes": f"name={made.kind}"}
    table = debian.TABLE + "".join(
        f"size={size // MIB}MiB,{names.get(name, f'name={name}')}\n" for name, size in sizes.items()
    )
    run("sfdisk", "--quiet", disk, stdin=table)
    debian.write_grub(made.work, disk)
    _put(made.images["esp"], disk, 2 * MIB)
    place = _FIRST
    for name, size in sizes.items():
        _put(made.images[name], disk, place)
        place += size


def _put(image: Path, disk: Path, place: int) -> None:
    """Copy a file into a disk full of zeros, from a byte offset on."""
    run(
        *("dd", f"if={image}", f"of={disk}", "bs=1M", f"seek={place}", "oflag=seek_bytes"),
        *("conv=notrunc,sparse", "status=none"),
    )
    os.sync()
