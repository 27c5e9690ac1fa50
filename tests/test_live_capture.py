"""A disk in use, captured as it was at one instant: equal to a copy made within the same freeze."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from imager.capture import CaptureOptions, capture
from imager.check import check
from imager.extents import Extents
from imager.live.tracing import Recorder
from tests.command import imager, info
from tests.disks import MIB
from tests.live_disk import (
    LiveDisk,
    by_zstd,
    differences,
    manifest,
    require_same,
    settle,
    unused_in,
)


def catch(live: LiveDisk, image: Path, frozen: Path, pause: float = 0.01, **more: Any) -> None:
    """Capture `live` under its workload, and copy it within the freeze to `frozen`."""
    options = CaptureOptions(
        inside_freeze=lambda: live.copy(frozen),
        max_pause=50.0,  # the copy takes its time, and other tests may run
        **more,
    )
    with live.workload(pause):
        settle()
        result = capture(live.path, image, options)
    assert result.verdict == "ok"
    assert result.consistency == "frozen"
    assert result.instant is not None and result.instant.written > 0


@pytest.mark.parametrize("kinds", [("ext4",), ("xfs",), ("btrfs",), ("ext4", "xfs", "btrfs")])
def test_image_is_the_frozen_disk(kinds: tuple[str, ...], tmp_path: Path) -> None:
    image, frozen = tmp_path / "image", tmp_path / "frozen"
    with LiveDisk(tmp_path, kinds) as live:
        catch(live, image, frozen)
    assert check(image).verdict == "ok"
    require_same(live, by_zstd(image, tmp_path), frozen, image)
    unused = sum(end - start for start, end in unused_in(image))
    assert unused > 100 * MIB * len(kinds)
    facts = manifest(image)
    assert datetime.datetime.fromisoformat(str(facts["instant"])).tzinfo is not None
    assert isinstance(facts["pause"], float) and facts["pause"] > 0
    volumes = json.loads(imager("info", "--json", image).out)["head"]["layout"]["volumes"]
    by_map = {volume["kind"] for volume in volumes if volume["stored"] == "used"}
    assert by_map == {*kinds}, "what the freeze left was meant to be understood"


def test_ext_without_a_journal_is_stored_by_its_map(tmp_path: Path) -> None:
    """It never looks clean while it is mounted, but a freeze writes out all that it knows."""
    image, frozen = tmp_path / "image", tmp_path / "frozen"
    with LiveDisk(tmp_path, ("ext4",), 96, ("-O", "^has_journal")) as live:
        catch(live, image, frozen)
    (volume,) = info(image)["head"]["layout"]["volumes"]
    assert volume["stored"] == "used" and volume["used"] < 60 * MIB
    require_same(live, by_zstd(image, tmp_path), frozen, image)


def test_without_tracking_the_same_comparison_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is known to see what a capture without it would miss."""
    monkeypatch.setattr(Recorder, "take", lambda self: Extents())
    monkeypatch.setattr(Recorder, "waiting", lambda self: Extents())
    image, frozen = tmp_path / "image", tmp_path / "frozen"
    with LiveDisk(tmp_path, ("ext4",)) as live:
        catch(live, image, frozen)
    assert differences(by_zstd(image, tmp_path), frozen, unused_in(image))
