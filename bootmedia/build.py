"""Building the medium: base, our layer, ISO, and the lists beside it.

Only the base takes minutes, and it is kept; another program or other options are a new layer and a
new ISO, which takes seconds.
"""

from __future__ import annotations

import difflib
import hashlib
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bootmedia import host
from bootmedia.base import Base, prepare_base
from bootmedia.iso import Content, list_contents, make_iso
from bootmedia.layer import compiled, fetch_wheels, layer_nodes, read_ssh_key, write_layer
from bootmedia.manifest import Manifest
from bootmedia.recipe import ARCHITECTURE, SUITE, VARIANTS, recipe
from imager.check import check
from imager.errors import UsageError
from imager.image.files import ImageFile
from imager.image.sink import PART_NAME
from imager.version import VERSION


@dataclass(frozen=True)
class BuildOptions:
    """What to build; the defaults make the medium for everybody."""

    output: Path
    cache: Path
    variant: str = "full"
    """"full", or "ci": few packages, no firmware."""
    images: tuple[Path, ...] = ()
    """Image files, or folders of them, that go along."""
    ssh_key: Path | None = None
    """With it sshd runs, and lets in who has this key."""
    options: dict[str, str] = field(default_factory=dict)
    """Checked kernel options (`imager.*`) of the boot entries."""
    manifest: Path | None = None
    """The versions to take."""
    refresh: bool = False
    """Make the base anew, with today's packages."""


@dataclass(frozen=True)
class BuildResult:
    """A finished medium."""

    iso: Path
    size: int
    uuid: str
    sha256: str
    packages: int
    base_made_now: bool
    beside: tuple[Path, ...]
    """The lists beside it."""
    seconds: float


def default_name(variant: str) -> str:
    """The ISO's file name."""
    kind = "" if variant == "full" else f"-{variant}"
    return f"imager-rescue-{VERSION}-{ARCHITECTURE}{kind}.iso"


def build(options: BuildOptions, say: Callable[[str], None] = lambda text: None) -> BuildResult:
    """Build the medium; `say` gets a line when something long begins.

    Raises MissingToolError where programs are missing, UsageError for options that cannot be,
    ImagerError where a step fails; an ISO that is not complete never bears the final name.
    """
    begun = time.monotonic()
    if options.variant not in VARIANTS:
        raise UsageError(f"{options.variant!r} is not a variant: {' or '.join(VARIANTS)}")
    host.require_tools()
    epoch = host.epoch()
    pinned = Manifest.read(options.manifest) if options.manifest else None
    key = read_ssh_key(options.ssh_key) if options.ssh_key else None
    images = _find_images(options.images)
    cache = options.cache.absolute()
    say("base system (minutes, unless it is in the cache)")
    base = prepare_base(recipe(options.variant), cache, pinned, refresh=options.refresh)
    _check_keymap(base, options.options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    say("program and ISO")
    partial = options.output.with_name(options.output.name + ".partial")
    with tempfile.TemporaryDirectory(prefix="layer-", dir=cache) as made:
        work = Path(made)
        layer = work / "imager.squashfs"
        nodes = layer_nodes(cache, key)
        write_layer([*nodes, *compiled(nodes, base.layer, work / "compiled")], layer, epoch)
        content = Content(
            base.boot, (base.layer, layer), _texts(base, cache), images, options.options
        )
        uuid = make_iso(content, partial, work, epoch)
        listing = list_contents(partial)
    digest = _sha256(partial)
    beside = _write_beside(options.output, base, digest, listing)
    partial.rename(options.output)
    return BuildResult(
        iso=options.output,
        size=options.output.stat().st_size,
        uuid=uuid,
        sha256=digest,
        packages=len(base.manifest.versions),
        base_made_now=base.made_now,
        beside=beside,
        seconds=time.monotonic() - begun,
    )


def _find_images(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """All files of the images at `paths`, after a quick check of each image.

    Of a folder, the files that end in .img or are parts of an image are taken.
    """
    names: dict[str, Path] = {}
    for path in paths:
        bases = [path]
        if path.is_dir():
            bases = sorted({_base_name(file) for file in path.iterdir() if _may_be_image(file)})
            if not bases:
                raise UsageError(f"{path} holds no images (NAME.img or NAME.img.0001)")
        for base in bases:
            check(base, quick=True).require_good()
            with ImageFile(base) as image:
                for file in image.paths:
                    if names.setdefault(file.name, file) != file:
                        raise UsageError(f"two images are called {file.name}: rename one")
    return tuple(names.values())


def _may_be_image(path: Path) -> bool:
    return path.is_file() and _base_name(path).suffix == ".img"


def _base_name(path: Path) -> Path:
    """An image's own name, for a part of it."""
    part = PART_NAME.fullmatch(path.name)
    return path.with_name(part["image"]) if part else path


def _check_keymap(base: Base, options: dict[str, str]) -> None:
    """UsageError unless the medium has the keyboard layout that its boot entries name."""
    wanted = options.get("imager.keymap")
    known = (base.boot / "keymaps").read_text().split()
    if wanted is not None and wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=4)
        hint = f"; near it: {', '.join(near)}" if near else " such as de, fr or us"
        raise UsageError(f"there is no keyboard layout {wanted!r} on the medium{hint}")


def _texts(base: Base, cache: Path) -> dict[str, bytes]:
    """The small files of the ISO: what it is, what is in it, under which licences."""
    texts = {
        ".disk/info": f"imager rescue {VERSION} {ARCHITECTURE}\n".encode(),
        "manifest.txt": base.manifest.text.encode(),
    }
    for path in sorted((base.boot / "licences").iterdir()):
        texts[f"licences/{path.name}"] = path.read_bytes()
    for wheel in fetch_wheels(cache):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if "/licenses/" in name or "LICENSE" in name:
                    package = wheel.name.partition("-")[0]
                    texts[f"licences/{package}-{Path(name).name}.txt"] = archive.read(name)
    texts["licences/imager.txt"] = (
        f"imager {VERSION}: GPL-3.0-or-later, see GPL-3 in this folder.\n"
        f"The other files are the licences of the Debian packages ({SUITE}) in manifest.txt, whose\n"
        "sources Debian offers under the same names and versions.\n"
    ).encode()
    return texts


def _write_beside(iso: Path, base: Base, digest: str, listing: list[str]) -> tuple[Path, ...]:
    """The checksum, the package list and the list of contents, each a file beside the ISO."""
    licences = [line for line in listing if line.startswith("licences/")]
    made = []
    for suffix, text in (
        (".sha256", f"{digest}  {iso.name}\n"),
        (".manifest", base.manifest.text),
        (".contents", "".join(f"{line}\n" for line in listing)),
        (".licences", "".join(f"{line}\n" for line in licences)),
    ):
        path = iso.with_name(iso.name + suffix)
        path.write_text(text)
        made.append(path)
    return tuple(made)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
