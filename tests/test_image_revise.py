"""Chunks that are sent again while a disk changes: the image has all that is in use at the end.

Disks and their changes are those of `test_image_merge`; here they come behind the first pass.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from imager.check import check
from imager.disk.source import SourceDevice
from imager.export import ExportFormat, export
from imager.image.format import INCOMPATIBLE_INCREMENTAL, INCOMPATIBLE_REVISED
from imager.image.sink import FileSink
from imager.image_filler import ImageFiller
from imager.image_reviser import ImageReviser
from imager.pipeline import no_progress
from tests.disks import put
from tests.test_image_merge import (
    CHUNK,
    OPTIONS,
    State,
    changed,
    filled,
    head_of,
    noise,
    opened_parent,
    states,
    whole,
)


def revised(
    folder: Path, image: Path, seen: tuple[State, ...], parent: Path | None = None
) -> ImageReviser:
    """The image of a disk that was the first of `seen` at first, and then became the others."""
    before, *later = seen
    disk = folder / "disk"
    disk.write_bytes(before.content)
    with SourceDevice(disk) as device, opened_parent(parent) as opened:
        bits = INCOMPATIBLE_REVISED | (INCOMPATIBLE_INCREMENTAL if opened else 0)
        head = replace(head_of(before, opened), incompatible=bits)
        sink = FileSink(image)
        with ImageFiller(
            device, before.analysis(), head, sink, OPTIONS, no_progress, opened
        ) as filler:
            filler.fill(no_progress)
            filler.end_pass()
            reviser = ImageReviser(filler, before.used, len(before.content), CHUNK)
            for number, after in enumerate(later):
                put(disk, 0, after.content)
                read = reviser.hold if number == len(later) - 1 else reviser.read
                read(changed(before, after))
                read(after.used - before.used - reviser.covered)
                before = after
            reviser.flush()
            filler.restate_runs(reviser.used)
            filler.finish({"verdict": "ok", "unreadable_bytes": 0})
        sink.close()
    return reviser


def require_content(image: Path, last: State) -> None:
    """AssertionError unless the image is good, and has what is in use at the end."""
    result = check(image)
    assert (result.verdict, result.problems) == ("ok", ())
    raw = image.with_name("raw")
    export(image, raw, ExportFormat.RAW)
    content = raw.read_bytes()
    raw.unlink()
    assert len(content) == len(last.content)
    for start, end in last.used:
        assert content[start:end] == last.content[start:end]


_SETTINGS = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(states())
@_SETTINGS
def test_revised_image_is_the_disk_of_the_end(
    tmp_path_factory: pytest.TempPathFactory, made: list[State]
) -> None:
    folder = tmp_path_factory.mktemp("revise")
    revised(folder, folder / "image", tuple(made))
    require_content(folder / "image", made[-1])


@given(states())
@_SETTINGS
def test_revised_increment_is_the_disk_of_the_end(
    tmp_path_factory: pytest.TempPathFactory, made: list[State]
) -> None:
    folder = tmp_path_factory.mktemp("revise")
    filled(folder, folder / "base", made[0], made[0])
    revised(folder, folder / "image", tuple(made), folder / "base")
    require_content(folder / "image", made[-1])
    # And another one upon it.
    revised(folder, folder / "next", (made[2], made[1]), folder / "image")
    require_content(folder / "next", made[1])


def test_each_part_of_a_run_of_the_parents_chunks_is_stated_anew(tmp_path: Path) -> None:
    """Also of the one that the very last chunk cuts."""
    base = whole(noise(1, 300 * CHUNK))
    filled(tmp_path, tmp_path / "base", base, base)
    content = bytearray(base.content)
    seen = [base]
    for chunk in (40, 200):
        content[chunk * CHUNK : chunk * CHUNK + 5000] = noise(chunk, 5000)
        seen.append(whole(bytes(content)))
    revised(tmp_path, tmp_path / "image", tuple(seen), tmp_path / "base")
    require_content(tmp_path / "image", seen[-1])


def test_memory_has_room_for_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imager.image_reviser._ROOM", 4 * CHUNK)
    before = whole(noise(1, 10 * CHUNK))
    after = whole(noise(2, 3 * CHUNK) + before.content[3 * CHUNK :])
    reviser = revised(tmp_path, tmp_path / "image", (before, after))
    assert reviser.fits(after.used.clip(0, 4 * CHUNK))
    assert not reviser.fits(after.used.clip(0, 4 * CHUNK + 1))
    assert reviser.to_read(after.used.clip(CHUNK + 5, CHUNK + 6)).total == CHUNK
