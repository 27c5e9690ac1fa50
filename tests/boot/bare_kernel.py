"""A machine that is no more than Debian's kernel, some of its modules and a shell: up in seconds.

For what the kernel does to disks, not for how machines start: QEMU loads the kernel itself, and the whole
system is its initramfs.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bootmedia import host
from bootmedia.recipe import SUITE
from tests.boot.vm import Vm, VmDisk
from tests.loop import run

MODULES = (
    *("virtio_pci", "virtio_blk", "nls_utf8", "nls_cp437", "nls_ascii", "nls_iso8859-1"),
    *("crc32_generic", "crc32c_generic", "f2fs", "exfat", "vfat", "ntfs3", "xfs"),
)
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in $(cat /modules/order); do insmod /modules/$module; done
mkdir /a /b
. /job
echo "THE JOB IS DONE"
poweroff -f
"""


class BareKernel:
    """Kernel and modules, kept in a folder; each machine gets a script of its own."""

    def __init__(self, folder: Path) -> None:
        """Download and unpack into `folder`, which must not exist."""
        self._folder = folder
        folder.mkdir()
        root = folder / "root"
        options = ("--mode=root", "--variant=extract", "--format=dir")
        packages = "--include=linux-image-amd64,busybox-static"
        words = ["mmdebstrap", *options, packages, SUITE, str(root), *host.sources()]
        host.run(words, "unpacking the kernel")
        (self._kernel,) = (root / "boot").glob("vmlinuz-*")
        self._busybox = root / "usr/bin/busybox"
        self._tree = folder / "initramfs"
        for name in ("bin", "dev", "proc", "sys", "tmp", "modules"):
            (self._tree / name).mkdir(parents=True)
        shutil.copy(self._busybox, self._tree / "bin/busybox")
        order = list(self._unpack_modules(root, self._kernel.name.removeprefix("vmlinuz-")))
        (self._tree / "modules/order").write_text("\n".join(order) + "\n")
        init = self._tree / "init"
        init.write_text(_INIT)
        init.chmod(0o755)

    @contextmanager
    def running(self, job: str, disks: Sequence[VmDisk]) -> Iterator[Vm]:
        """A machine that does the shell script `job` and goes off. Its disks are /dev/vda and on."""
        (self._tree / "job").write_text(job)
        initramfs = self._folder / "initramfs.cpio"
        files = "\n".join(str(p.relative_to(self._tree)) for p in sorted(self._tree.rglob("*")))
        words = [str(self._busybox), "cpio", "-o", "-H", "newc", "-R", "0:0"]
        with initramfs.open("wb") as out:
            subprocess.run(
                words,
                input=files.encode(),
                stdout=out,
                stderr=subprocess.DEVNULL,
                cwd=self._tree,
                check=True,
            )
        options = ["-kernel", str(self._kernel), "-initrd", str(initramfs)]
        options += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
        with Vm(disks, memory=512, options=options) as vm:
            yield vm

    def _unpack_modules(self, root: Path, release: str) -> Iterator[str]:
        """Unpack the modules; their names, each after those that it needs."""
        (root / "lib").symlink_to("usr/lib")
        run("chroot", root, "/usr/bin/busybox", "depmod", release)
        place = root / "lib/modules" / release
        needs = {
            Path(path).name.split(".")[0]: [path, *needed.split()]
            for path, needed in (
                line.split(":") for line in (place / "modules.dep").read_text().splitlines()
            )
        }
        done = set()
        for module in MODULES:
            for path in reversed(needs.get(module, ())):
                name = Path(path).name.removesuffix(".xz")
                if name not in done:
                    done.add(name)
                    data = lzma.decompress((place / path).read_bytes())
                    (self._tree / "modules" / name).write_bytes(data)
                    yield name
