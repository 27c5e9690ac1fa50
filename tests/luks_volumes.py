"""LUKS volumes for tests: encrypted and decrypted by cryptsetup itself, in user space."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.loop import run

MIB = 1 << 20
HEADER = 16 * MIB
"""What lies before the ciphertext in the volumes made here, bytes."""
PASSPHRASE = "correct horse\n"
"""With a newline at its end: a key file counts to the last byte."""
_QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


def key_file(folder: Path, text: str = PASSPHRASE) -> Path:
    path = folder / "key"
    path.write_text(text)
    return path


def encrypt(plain: Path, target: Path, sector_size: int = 512, version: int = 2) -> Path:
    """The bytes of `plain` as a LUKS volume in the new file `target`, 16 MiB larger."""
    size = plain.stat().st_size
    shutil.copyfile(plain, target)
    with target.open("r+b") as file:
        file.truncate(size + 2 * HEADER)  # cryptsetup wants the double to move data aside
    key = key_file(target.parent)
    run(
        "cryptsetup", "reencrypt", "--encrypt", "--type", "luks2", "--batch-mode", *_QUICK,
        "--resilience", "none", "--reduce-device-size", f"{2 * HEADER}", "--sector-size", f"{sector_size}",
        "--key-file", key, target,
    )  # fmt: skip
    with target.open("r+b") as file:
        file.truncate(size + HEADER)
    if version == 1:
        run("cryptsetup", "convert", "--batch-mode", "--type", "luks1", target)
    return target


def decrypt(luks: Path, target: Path) -> Path:
    """What a LUKS volume of either version holds, in the new file `target`."""
    shutil.copyfile(luks, target)
    key = key_file(target.parent)
    header = target.with_name(f"{target.name}.header")
    if "Version:       \t1" in run("cryptsetup", "luksDump", target):
        run("cryptsetup", "convert", "--batch-mode", "--type", "luks2", target)
    run(
        "cryptsetup", "reencrypt", "--decrypt", "--batch-mode", "--force-offline-reencrypt",
        "--key-file", key, "--header", header, target,
    )  # fmt: skip
    with target.open("r+b") as file:
        file.truncate(luks.stat().st_size - HEADER)
    header.unlink()
    return target
