"""The recipe's files: complete, in order, and the same archive from the same files."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from bootmedia.base import forget_old
from bootmedia.recipe import VARIANTS, data, read_list, recipe
from bootmedia.trees import Node, pack


def lists() -> dict[str, tuple[str, ...]]:
    return {
        f"{folder.name}/{entry.name}": read_list(entry.read_text())
        for folder in (data() / "packages", data() / "modules")
        for entry in folder.iterdir()
    }


def test_lists_are_words_without_doubles() -> None:
    for name, words in lists().items():
        assert words and len(set(words)) == len(words), name
        assert all(" " not in word for word in words), name


def test_list_comments() -> None:
    assert read_list("# why\n\n one \ntwo\n#three\n") == ("one", "two")


def test_the_full_variant_has_all_of_the_ci_variant() -> None:
    assert set(recipe("ci").packages) < set(recipe("full").packages)
    assert not any(name.startswith("firmware-") for name in recipe("ci").packages)


def test_what_is_made_depends_on_all_that_goes_in() -> None:
    keys = {recipe(variant).key(mode) for variant in VARIANTS for mode in ("root", "unshare")}
    assert len(keys) == 4
    assert recipe("ci").key("root") == recipe("ci").key("root")


def test_an_archive_is_roots_and_as_old_as_told() -> None:
    nodes = [Node("b/run", b"#!/bin/sh\n"), Node("a", b"text"), Node("b/to", link="../a")]
    packed = pack(nodes, 1000)
    assert packed == pack(list(reversed(nodes)), 1000)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = archive.getmembers()
    assert [entry.name for entry in found] == ["a", "b", "b/run", "b/to"]
    assert [entry.mode for entry in found] == [0o644, 0o755, 0o755, 0o777]
    assert {(entry.uid, entry.gid, entry.mtime) for entry in found} == {(0, 0, 1000)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_patient_is_left_alone(variant: str) -> None:
    early = {node.path: node.content for node in recipe(variant).early}
    assert b"AUTO -all" in early["etc/mdadm/mdadm.conf"]
    assert b"auto_activation_volume_list = [ ]" in early["etc/lvm/lvm.conf"]
    assert b"event_activation = 0" in early["etc/lvm/lvm.conf"]


def test_old_bases_are_forgotten(tmp_path: Path) -> None:
    """Those that were used last stay, of each variant; what was cut short goes."""
    for number, name in enumerate(("ci-1", "ci-2", "full-1", "ci-3", "making-x")):
        (tmp_path / name / "boot").mkdir(parents=True)
        os.utime(tmp_path / name, (number, number))
    os.utime(tmp_path / "ci-1", (10, 10))
    forget_old(tmp_path, "ci", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"ci-1", "ci-3", "full-1"}
