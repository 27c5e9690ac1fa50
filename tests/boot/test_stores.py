"""Stores on the file systems of sticks and of Windows, and on shares, by the kernel's own drivers.

There is no such driver on many machines that build and test this.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.boot.script import run_script
from tests.boot.share_servers import (
    HOST,
    NFS_PATH,
    SMB_PASSWORD,
    SMB_SHARE,
    SMB_USER,
    nfs_server,
    smb_server,
)
from tests.boot.test_shares import NETWORK
from tests.boot.vm import VmDisk
from tests.disks import MIB
from tests.loop import LoopDevice, mounted, run, sparse_file

_MAKE = {
    "vfat": ("mkfs.vfat", "-F", "32"),
    "exfat": ("mkfs.exfat",),
    "ntfs3": ("mkfs.ntfs", "-q", "-F"),
}
_SHARED = ("cifs", "nfs4")
_SCRIPT = """\
kind=$1; source=/dev/$2; target=/dev/$3
mkdir -p /s /d
attach
grep " /s " /proc/mounts
imager store init /s/store
night() {
    mount $source /d
    for file in $2; do dd if=/dev/urandom of=/d/$file bs=1M count=1 conv=notrunc status=none; done
    echo "night $1" >> /d/log
    umount /d
    imager capture -q $source --store /s/store
}
night 0 ""
night 1 "a b c d e f g h i j k l"
night 2 "a b"
find /s/store -name '*.img*'
imager list /s/store
sync
before=$(du -sk /s/store | cut -f 1)
imager prune /s/store --keep-last 1 --grace 0h
sync
after=$(du -sk /s/store | cut -f 1)
echo "used $before before, $after after"
night 3 "c d"
imager list /s/store
imager status /s/store
umount /s
attach
newest=$(imager list --json /s/store | tr ',' '\\n' | sed -n 's/.*"path": "\\(.*\\.img\\)".*/\\1/p' | head -1)
imager check $newest --against $source
imager restore -q --yes $newest $target
cmp $source $target && echo "the same came back"
umount /s
e2fsck -fn $target
echo "$kind is fine"
"""


@pytest.mark.parametrize("kind", [*sorted(_MAKE), *_SHARED])
def test_a_store_on(kind: str, tmp_path: Path) -> None:
    """A full image, three nights, a prune that gives space back, and the newest comes back."""
    noise = random.Random(3)
    source, store, target = (tmp_path / name for name in ("source", "store", "target"))
    with LoopDevice(source, 48 * MIB) as device:
        run("mkfs.ext4", "-q", device.path)
        with mounted(device.path, tmp_path / "at") as place:
            for name in "abcdefghijklmnop":
                (place / name).write_bytes(noise.randbytes(MIB))
    sparse_file(target, 48 * MIB)
    disks = [VmDisk(path, "virtio", path.name) for path in (source, target)]
    with ExitStack() as stack:
        if kind in _SHARED:
            store.mkdir()
            attach = stack.enter_context(_share(kind, store, tmp_path / "server"))
        else:
            with LoopDevice(store, 256 * MIB) as device:
                run(*_MAKE[kind], device.path)
            disks.append(VmDisk(store, "virtio", store.name))
            attach = f"mount -t {kind} /dev/vdc /s"
        words = f"set -- {kind} vda vdb\nattach() {{\n{attach}\n}}\n{_SCRIPT}"
        said = run_script(tmp_path, words, disks, options=NETWORK if kind in _SHARED else ())
    assert f"/s {kind} " in said
    assert len(re.findall(r"\.img\.0001\.last$", said, re.MULTILINE)) == 3 * (kind == "vfat")
    if kind in _SHARED:
        # What a client says of room may be the files' sizes; the server knows.
        files = [path.stat() for path in store.rglob("*") if path.is_file()]
        given_back = sum(file.st_size - 512 * file.st_blocks for file in files)
    else:
        found = re.search(r"used +(\d+) before, +(\d+) after", said)
        assert found is not None
        given_back = int(found[1]) - int(found[2]) << 10
    assert given_back > 8 * MIB
    assert "the same came back" in said and f"{kind} is fine" in said


@contextmanager
def _share(kind: str, folder: Path, state: Path) -> Iterator[str]:
    """How a guest mounts `folder`, which a server lends meanwhile, once it has an address."""
    wait = "until ip -4 address show scope global | grep -q inet; do sleep 1; done\n"
    if kind == "cifs":
        with smb_server(folder, state) as port:
            options = f"port={port},username={SMB_USER}"
            yield (
                f"{wait}PASSWD='{SMB_PASSWORD}' mount -t cifs //{HOST}/{SMB_SHARE} /s -o {options}"
            )
    else:
        with nfs_server(folder, state) as port:
            options = f"vers=4.1,nolock,soft,port={port}"
            yield f"{wait}mount -t nfs {HOST}:{NFS_PATH} /s -o {options}"
