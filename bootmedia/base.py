"""The base of the medium: a Debian system as a squashfs layer, and what starts it.

It is made by mmdebstrap, as root or by an ordinary user in a user namespace, and kept: only another
recipe, other pinned versions or another time of its files make it anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bootmedia import host
from bootmedia.manifest import Manifest
from bootmedia.recipe import COMPONENTS, SUITE, Recipe
from bootmedia.trees import pack

_LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/bash-completion/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*",
    "/usr/lib/x86_64-linux-gnu/libicudata*",
)
"""Files of packages that are not unpacked; libicudata serves xfs_scrub alone."""
KEPT = 4
"""Bases of a variant that stay in the cache: an older recipe's, another mode's, a pinned one's."""
_COPYRIGHT = "/usr/share/doc/*/copyright"
_COMPRESSION = {
    "ci": ("-comp", "zstd", "-Xcompression-level", "6", "-b", "256K"),
    "full": ("-comp", "zstd", "-Xcompression-level", "15", "-b", "256K"),
}


@dataclass(frozen=True)
class Base:
    """A base that is ready, in a folder of the cache."""

    folder: Path
    made_now: bool

    @property
    def layer(self) -> Path:
        """The squashfs with the system."""
        return self.folder / "base.squashfs"

    @property
    def boot(self) -> Path:
        """Kernel, initramfs, GRUB's images, licences."""
        return self.folder / "boot"

    @property
    def manifest(self) -> Manifest:
        """What is in it."""
        return Manifest.read(self.boot / "manifest")


def prepare_base(
    recipe: Recipe, cache: Path, pinned: Manifest | None = None, *, refresh: bool = False
) -> Base:
    """The base of `recipe` from the cache, or made now (with `refresh` in any case).

    `pinned` names the versions to take. Raises ImagerError where a version is not to be had or a
    program fails; a base that is cut short is never taken for a whole one.
    """
    mode = "root" if host.is_root() else "unshare"
    epoch = host.epoch()
    compression = _COMPRESSION[recipe.variant]
    key = recipe.key(mode, str(epoch), *compression, *_LEFT_OUT, pinned.text if pinned else "")
    folder = cache / "bases" / f"{recipe.variant}-{key}"
    with _locked(cache):
        if folder.exists() and not refresh:
            folder.touch()
            return Base(folder, made_now=False)
        forget_old(folder.parent, recipe.variant, KEPT - 1)
        with tempfile.TemporaryDirectory(prefix="making-", dir=folder.parent) as made:
            work = Path(made)
            _bootstrap(recipe, work, cache, mode, epoch, pinned)
            _compress(work, epoch, compression)
            if folder.exists():
                shutil.rmtree(folder)
            work.rename(folder)
            work.mkdir()
    return Base(folder, made_now=True)


def forget_old(bases: Path, variant: str, kept: int) -> None:
    """Remove the bases of a variant but for those used last, and what builds cut short have left.

    Only while the cache is held.
    """
    used = sorted(bases.glob(f"{variant}-*"), key=lambda folder: folder.stat().st_mtime)
    for folder in (*used[: max(0, len(used) - kept)], *bases.glob("making-*")):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the cache: of two builds at a time the second waits, and uses what the first made."""
    (cache / "bases").mkdir(parents=True, exist_ok=True)
    (cache / "packages").mkdir(exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bootstrap(
    recipe: Recipe, work: Path, cache: Path, mode: str, epoch: int, pinned: Manifest | None
) -> None:
    """Make the system, as `base.tar` in `work`, and what starts it, in `boot/`."""
    early, finish = work / "early.tar", work / "finish.sh"
    early.write_bytes(pack(recipe.early, epoch))
    finish.write_bytes(recipe.finish)
    hooks = [
        ("setup", 'mkdir -p "$1"/var/cache/apt/archives/'),
        ("setup", f"sync-in {cache / 'packages'} /var/cache/apt/archives/"),
        ("essential", f"tar-in {early} /"),
        (
            "essential",
            'chroot "$1" dpkg-divert --quiet --local --rename --add /usr/sbin/update-initramfs; '
            'ln -s /bin/true "$1"/usr/sbin/update-initramfs',
        ),
        ("customize", f"sync-out /var/cache/apt/archives {cache / 'packages'}"),
        ("customize", f"upload {finish} /tmp/finish.sh"),
        ("customize", f'chroot "$1" sh /tmp/finish.sh {recipe.variant} && rm "$1"/tmp/finish.sh'),
        ("customize", f"tar-out /usr/lib/imager-boot {work / 'boot.tar'}"),
        ("customize", 'rm -r "$1"/usr/lib/imager-boot'),
    ]
    if pinned:
        preferences = work / "preferences"
        preferences.write_text(pinned.preferences())
        hooks.insert(0, ("setup", f"upload {preferences} /etc/apt/preferences.d/pinned"))
        hooks.append(("customize", 'rm "$1"/etc/apt/preferences.d/pinned'))
    options = [f"path-exclude={pattern}" for pattern in _LEFT_OUT]
    options += [f"path-include={_COPYRIGHT}", "force-unsafe-io", "force-confold"]
    host.run(
        (
            "mmdebstrap",
            f"--mode={mode}",
            "--variant=essential",
            "--format=tar",
            f"--components={','.join(COMPONENTS)}",
            f"--include={','.join(recipe.packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=APT::Update::Error-Mode "any"',
            '--aptopt=Acquire::Retries "3"',
            *(f"--dpkgopt={option}" for option in options),
            "--skip=download/empty",
            "--skip=essential/unlink",
            *(f"--{when}-hook={what}" for when, what in hooks),
            SUITE,
            work / "base.tar",
            *host.sources(),
        ),
        "making the base system",
        cache / f"base-{recipe.variant}.log",
        environment={"SOURCE_DATE_EPOCH": str(epoch)},
    )
    host.run(
        ("tar", "--extract", "--no-same-owner", f"--file={work / 'boot.tar'}", "--directory", work),
        "unpacking what starts the system",
    )
    (work / "imager-boot").rename(work / "boot")
    if pinned:
        pinned.require_same(Manifest.read(work / "boot" / "manifest"))


def _compress(work: Path, epoch: int, compression: tuple[str, ...]) -> None:
    """Turn `base.tar` into the layer, and remove what only the making needed."""
    base = work / "base.tar"
    with base.open("rb") as file:
        host.run(
            ("mksquashfs", "-", work / "base.squashfs", "-tar", "-no-progress", *compression),
            "compressing the base system",
            environment={"SOURCE_DATE_EPOCH": str(epoch)},
            stdin=file.fileno(),
        )
    for name in ("base.tar", "boot.tar", "early.tar", "finish.sh", "preferences"):
        (work / name).unlink(missing_ok=True)
