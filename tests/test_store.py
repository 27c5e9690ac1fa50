"""A store as a folder, and captures into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imager.capture import CaptureOptions, CaptureResult, capture
from imager.errors import RefusedError, StoreAbsentError, UnsupportedImageError
from imager.extents import Extents
from imager.image.index import Segment
from imager.image.reader import ImageReader
from imager.pipeline import Progress
from imager.store import actions
from imager.store import capture as store_capture
from imager.store.catalog import State
from imager.store.folder import MARKER, create_store, open_store
from imager.store.retention import Rules
from imager.store.sidecar import last_check, record_verdict
from tests.small_store import CHUNK, DAY, SmallStore, require_content


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    return SmallStore(tmp_path)


def test_a_store_is_made_once(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    assert open_store(store.path) == store
    with pytest.raises(RefusedError, match="is a store already"):
        create_store(store.path)


def test_a_folder_that_holds_something_is_no_place_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    with pytest.raises(RefusedError, match="is not empty"):
        create_store(tmp_path)


def test_the_empty_mount_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreAbsentError, match="is not a store"):
        open_store(tmp_path)
    with pytest.raises(StoreAbsentError, match="is not a store"):
        open_store(tmp_path / "missing")


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    marker = store.path / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "imager_store": 2}))
    with pytest.raises(UnsupportedImageError, match="later release"):
        open_store(store.path)


def test_nights_build_upon_each_other(small: SmallStore) -> None:
    first = small.capture()
    assert first.parent is None
    assert first.why_full == "it is the first image of this disk"
    second = small.night(3)
    assert second.parent == first.image
    assert second.size < first.size / 20
    third = small.night(4, 5)
    assert third.parent == second.image
    assert small.require_good() == [each.image.name for each in (third, second, first)]
    assert [image.name for image in small.look().images] == [
        "2026-11-03T02-00-00Z.img",
        "2026-11-02T02-00-00Z.img",
        "2026-11-01T02-00-00Z.img",
    ]


def test_two_captures_in_one_second_get_two_names(small: SmallStore) -> None:
    small.capture()
    small.now -= DAY
    second = small.capture()
    assert second.image.name == "2026-11-01T02-00-00Z-2.img"
    assert small.look().images[0].name == second.image.name
    assert small.night(1).parent == second.image
    small.now -= DAY
    small.prune(Rules(last=1))
    assert [image.name for image in small.look().complete] == ["2026-11-02T02-00-00Z.img"]


def test_a_long_chain_begins_anew(small: SmallStore) -> None:
    small.capture()
    small.night(1)
    done = small.capture(max_chain=2)
    assert done.parent is None
    assert done.why_full == "2 images build upon each other already"
    assert small.night(2).parent == done.image


def test_a_disk_that_grew_begins_anew(small: SmallStore) -> None:
    small.capture()
    with small.disk.open("ab") as file:
        file.write(bytes(CHUNK))
    done = small.capture()
    assert done.why_full == "the disk has another size than it had"


def test_a_damaged_parent_is_passed_over(small: SmallStore) -> None:
    """One cut short cannot be referred to: the image before it can."""
    first = small.capture()
    second = small.night(1)
    with second.image.open("r+b") as file:
        file.truncate(second.image.stat().st_size // 2)
    third = small.night(2)
    assert third.parent == first.image
    require_content(third.image, small.digests[third.image.name])


def test_a_missing_ancestor_means_a_full_image(small: SmallStore) -> None:
    first = small.capture()
    small.night(1)
    first.image.unlink()
    third = small.night(2)
    assert third.parent is None
    assert "is missing" in third.why_full
    require_content(third.image, small.digests[third.image.name])


def test_a_renamed_folder_is_found_again(small: SmallStore) -> None:
    first = small.capture()
    first.image.parent.rename(first.image.parent.with_name("my-disk"))
    second = small.night(1)
    assert second.parent is not None
    assert second.image.parent.name == "my-disk"
    small.require_good()


def test_what_a_check_found_damaged_is_stored_again(small: SmallStore) -> None:
    """Chunk 5 of the full image rots; the third image heals it, the fourth builds upon that."""
    first = small.capture()
    second = small.night(1)
    uuid = small.look().images[0].uuid
    lost = [[5 * CHUNK, 6 * CHUNK]]
    record_verdict(second.image, uuid, small.now - DAY / 2, "failed", lost, "rot")
    _rot(first.image, 5 * CHUNK)
    third = small.night(2)
    assert third.parent == second.image
    assert third.healed == Extents.span(5 * CHUNK, 6 * CHUNK)
    fourth = small.night(3)
    assert fourth.parent == third.image
    assert not fourth.healed
    for done in (third, fourth):
        require_content(done.image, small.digests[done.image.name])


def _rot(image: Path, disk_offset: int) -> None:
    """Flip a byte in the frame of the chunk at this disk offset of a full image."""
    with ImageReader(image) as reader:
        for segment in reader.segments():
            assert isinstance(segment, Segment)
            for start, end, entry in segment.placed(reader.head.chunk_size):
                if start <= disk_offset < end:
                    place = entry.offset + entry.stored_size // 2
    with image.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes((byte[0] ^ 1,)))


def test_sidecars_are_believed_only_for_their_own_image(small: SmallStore) -> None:
    first = small.capture()
    uuid = small.look().images[0].uuid
    record_verdict(first.image, uuid, small.now, "ok", [], "")
    found = last_check(first.image, uuid)
    assert found is not None and found.passed and found.when == small.now
    assert last_check(first.image, "another") is None
    side = first.image.with_name(first.image.name + ".json")
    for text in ("", "{", "[]", '{"uuid": 1}', side.read_text().replace('"ok"', '"fine"')):
        side.write_text(text)
        assert last_check(first.image, uuid) is None
    assert small.look().images[0].check is None


def test_a_stranger_in_the_folder_is_listed_and_left_alone(small: SmallStore) -> None:
    small.capture()
    (small.folder / "notes.txt").touch()
    (small.folder / "odd.img").write_bytes(b"no image")
    found = small.look()
    assert [image.state for image in found.images] == [State.COMPLETE]
    assert [each.files.path.name for each in found.unreadable] == ["odd.img"]


@pytest.mark.parametrize("moment", ["survey", "capture"])
def test_a_parent_given_up_meanwhile(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """By a prune on another machine, whose lock is not seen here.

    Before the new image's head is there to be seen, it becomes a full one; afterwards what it refers
    to is kept for its sake.
    """
    first = small.capture()
    small.write(1)

    def capture_while_pruned(
        source: Path, image: Path, options: CaptureOptions, progress: Progress
    ) -> CaptureResult:
        def once(phase: str, done: int, total: int) -> None:
            if phase == moment and done == total and first.image.exists():
                actions.guard(actions.expire(small.look().complete[0].files), small.now)

        return capture(source, image, options, once)

    monkeypatch.setattr(store_capture, "capture", capture_while_pruned)
    done = small.capture()
    assert not first.image.exists()
    if moment == "survey":
        assert "was given up or moved meanwhile" in done.why_full
    else:
        assert done.parent == first.image
    small.now += DAY
    report = small.prune(Rules(last=1))
    assert (first.image in report.deleted) == (moment == "survey")
    assert small.require_good() == [done.image.name]
    assert not any(image.state is State.PARTIAL for image in small.look().images)
