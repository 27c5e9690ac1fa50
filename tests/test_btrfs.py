"""btrfs on one device and on several: against btrfs-progs, and with all but the map overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.btrfs_images import (
    FIXED,
    allocated,
    filled,
    require_survival,
    told,
)

SINGLE = {
    "default": "",
    "mixed": "--mixed",
    "nodes-4k": "--nodesize 4096",
    "nodes-64k": "--nodesize 65536",
    "xxhash": "--csum xxhash",
    "sha256": "--csum sha256",
    "blake2": "--csum blake2",
    "no-copies": "--metadata single",
    "all-twice": "--data dup",
    "cache-v1": "-R ^free-space-tree",
    "old": "-O ^no-holes,^skinny-metadata,^extref -R ^free-space-tree",
    "quota": "-R quota",
}
"""Name to mkfs options."""


@pytest.mark.parametrize("name", SINGLE)
def test_one_device(name: str, tmp_path: Path) -> None:
    (image,) = filled(tmp_path, SINGLE[name])
    allocation = allocated(image)
    expected = told(image).exact
    assert allocation.allocated == (expected | FIXED).clip(0, allocation.size)
    assert allocation.size == image.stat().st_size
    assert allocation.notes == ()
    require_survival([image], tmp_path)
