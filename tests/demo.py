"""`make demo`: make a sample disk, capture it, check, restore, compare; then with zstd and dd alone.

Works on plain files in ./demo, so it needs no root and touches no disk.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

from tests.sample_disk import build

_SIZE = 512 << 20
_FOLDER = Path("demo")
_BY_HAND = (
    "zstd -t demo/backup.img && [ $(zstd -dc demo/backup.img | wc -c) = {size} ] &&\n"
    "    zstd -dc demo/backup.img | dd of=demo/by-hand.raw bs=4M iflag=fullblock conv=fsync"
)


def main() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    _FOLDER.mkdir()
    say("A sample disk with an EFI system partition, ext4, NTFS and swap, as a file")
    disk = _FOLDER / "disk.raw"
    build(disk, _SIZE)
    imager("capture", "--dry-run", disk)
    imager("capture", disk, _FOLDER / "backup.img")
    imager("check", _FOLDER / "backup.img")
    imager("info", "--map", _FOLDER / "backup.img")
    say("The disk dies. Restore it")
    restored = _FOLDER / "restored.raw"
    imager("restore", "--yes", _FOLDER / "backup.img", restored)
    imager("check", "--quick", _FOLDER / "backup.img", "--against", restored)
    run(f"sgdisk --verify {restored}")
    say("Once more without imager, as the first lines of the image say")
    run("head -c 512 demo/backup.img | tail -c +9")
    run(_BY_HAND.format(size=_SIZE))
    if not filecmp.cmp(restored, _FOLDER / "by-hand.raw", shallow=False):
        sys.exit("the two restored disks differ")
    say("Both restored disks are equal, byte for byte. All is in ./demo")


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def imager(*arguments: str | Path) -> None:
    print(f"\n$ imager {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, "-m", "imager", *arguments], check=True)


def run(command: str) -> None:
    print(f"\n$ {command}", flush=True)
    subprocess.run(["bash", "-c", command], check=True)


if __name__ == "__main__":
    main()
