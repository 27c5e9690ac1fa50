"""The medium that tests start: the ci variant of this very source, built once for each content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from bootmedia.build import BuildOptions, build
from bootmedia.host import default_cache, epoch
from bootmedia.layer import layer_nodes
from bootmedia.recipe import recipe
from bootmedia.trees import pack

_KEPT = 8


def ci_medium(options: Mapping[str, str] | None = None) -> Path:
    """The ISO with the kernel options `options` (imager.*) in its first boot entry.

    It lies in the cache folder; who wants to write to it copies it.
    """
    options = dict(options or {})
    cache = default_cache()
    digest = hashlib.sha256(recipe("ci").key(str(epoch()), json.dumps(options)).encode())
    digest.update(pack(layer_nodes(cache, None), 0))
    iso = cache / "test-media" / f"{digest.hexdigest()[:16]}.iso"
    if not iso.exists():
        build(BuildOptions(output=iso, cache=cache, variant="ci", options=options))
    iso.touch()
    _forget_old(iso.parent)
    return iso


def _forget_old(folder: Path) -> None:
    """Keep those that were used last only."""
    isos = sorted(folder.glob("*.iso"), key=lambda path: path.stat().st_mtime)
    for old in isos[:-_KEPT]:
        for file in folder.glob(f"{old.name}*"):
            file.unlink()
