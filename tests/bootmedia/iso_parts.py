"""A medium of random bytes: laid out like the real one, made in a moment, starts nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from bootmedia.iso import Content, make_iso
from bootmedia.recipe import EPOCH


def small_iso(
    folder: Path, *, seed: int = 1, options: Mapping[str, str] | None = None, name: str = "m.iso"
) -> Path:
    """An ISO of some MiB in `folder`."""
    noise = random.Random(seed)
    boot, work = folder / f"boot-{name}", folder / f"work-{name}"
    (boot / "efi").mkdir(parents=True)
    work.mkdir()
    for path, size in (
        ("vmlinuz", 70_000),
        ("initrd.img", 1_500_000),
        ("bios.img", 40_000),
        ("boot_hybrid.img", 512),
        ("efi/BOOTX64.EFI", 90_000),
        ("efi/grubx64.efi", 90_000),
    ):
        (boot / path).write_bytes(noise.randbytes(size))
    layers = []
    for layer in ("base", "imager"):
        layers.append(work / f"{layer}.squashfs")
        layers[-1].write_bytes(noise.randbytes(300_000))
    content = Content(boot, tuple(layers), {"manifest.txt": b"a 1 all\n"}, (), options or {})
    iso = folder / name
    make_iso(content, iso, work, EPOCH)
    return iso
