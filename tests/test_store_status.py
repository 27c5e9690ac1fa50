"""The lights of `imager status`, and the records of checks."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest

from imager.check import check
from imager.schedule.state import LastRun, read_last_run, write_last_run
from imager.schedule.status import DiskFacts, Light, judge, survey, time_until_full
from imager.store.catalog import StoredImage
from imager.store.checking import check_and_record, note_check
from imager.store.retention import Quality
from imager.store.sidecar import last_check
from tests.command import failure, imager
from tests.disks import put
from tests.small_store import CHUNK, DAY, FIRST, SmallStore

HOUR = datetime.timedelta(hours=1)


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    return SmallStore(tmp_path)


@pytest.fixture
def image(small: SmallStore) -> StoredImage:
    """Captured at FIRST."""
    small.capture()
    return small.look().images[0]


def facts(image: StoredImage | None) -> DiskFacts:
    """All is well, and a run is due each day."""
    return DiskFacts(
        newest=image,
        newest_good=image,
        damaged=0,
        interval=DAY,
        check_within=None,
        oldest_proof=FIRST,
        last_run=None,
        store_absent=False,
        full_in=None,
    )


def ended(outcome: str, when: datetime.datetime = FIRST) -> LastRun:
    return LastRun(when, outcome, "a line", when)


def test_the_light_fades_with_age(image: StoredImage) -> None:
    well = facts(image)
    assert judge(well, FIRST + 30 * HOUR) == (Light.GREEN, "ok")
    assert judge(well, FIRST + 40 * HOUR) == (Light.YELLOW, "late")
    assert judge(well, FIRST + 80 * HOUR) == (Light.RED, "overdue")
    assert judge(replace(well, interval=None), FIRST + 800 * HOUR) == (Light.GREEN, "ok")


def test_what_is_red(image: StoredImage) -> None:
    well = facts(image)
    damaged = replace(image, orphaned=True)
    assert damaged.quality is Quality.DAMAGED
    for change, word in (
        ({"last_run": ended("failed")}, "failed"),
        ({"newest": None, "newest_good": None, "last_run": ended("failed")}, "no image"),
        ({"newest": damaged}, "damaged"),
        ({"newest": damaged, "newest_good": None}, "no good image"),
    ):
        assert judge(replace(well, **change), FIRST + HOUR) == (Light.RED, word)


def test_what_is_yellow(image: StoredImage) -> None:
    well = facts(image)
    for change, word in (
        ({"newest": None, "newest_good": None}, "no image yet"),
        ({"damaged": 1}, "an older image is damaged"),
        ({"newest": replace(image, verdict="degraded")}, "degraded"),
        ({"check_within": DAY, "oldest_proof": FIRST - 2 * DAY}, "unchecked"),
        ({"full_in": 3 * DAY}, "nearly full"),
        ({"store_absent": True, "newest": None, "newest_good": None}, "store absent"),
    ):
        assert judge(replace(well, **change), FIRST + HOUR) == (Light.YELLOW, word)


def test_a_store_that_is_away_for_too_long_is_red() -> None:
    away = replace(facts(None), store_absent=True, last_run=ended("absent"))
    assert judge(away, FIRST + DAY) == (Light.YELLOW, "store absent")
    assert judge(away, FIRST + 4 * DAY) == (Light.RED, "overdue")


def test_when_a_store_will_be_full(small: SmallStore) -> None:
    """A full image of 24 chunks, then two chunks and some structure each night."""
    small.capture()
    for night in range(4):
        small.night(2 * night, 2 * night + 1, size=CHUNK - 10)
    images = small.look().images
    nightly = sum(image.files.allocated() for image in images[:4]) / 4
    assert 2 * CHUNK < nightly < 4 * CHUNK
    assert time_until_full([images], int(nightly * 100)) == pytest.approx(100 * DAY, abs=DAY)
    assert time_until_full([images, images], int(nightly * 100)) == pytest.approx(50 * DAY, abs=DAY)
    assert time_until_full([images[:1], ()], 1) is None


def test_a_last_run_is_kept(tmp_path: Path) -> None:
    run = ended("degraded")
    write_last_run(tmp_path / "state", "x", run)
    assert read_last_run(tmp_path / "state", "x") == run
    file = tmp_path / "state/x.json"
    for text in ("", "{}", file.read_text().replace("degraded", "fine")):
        file.write_text(text)
        assert read_last_run(tmp_path / "state", "x") is None


# --- what a check leaves ---


def test_a_check_is_recorded(small: SmallStore, image: StoredImage) -> None:
    assert check_and_record(image, small.now) == ("ok", "")
    found = small.look().images[0].check
    assert found is not None and found.passed
    place = image.files.path.stat().st_size // 2
    put(image.files.path, place, b"rotten")
    verdict, problem = check_and_record(image, small.now)
    assert verdict == "failed" and "hash differs" in problem
    found = small.look().images[0].check
    assert found is not None and not found.passed and found.lost.total == CHUNK


def test_a_comparison_or_a_quick_check_proves_nothing_of_the_image(
    small: SmallStore, image: StoredImage
) -> None:
    small.write(1)
    for result in (
        check(image.files.path, quick=True),
        check(image.files.path, against=small.disk),
    ):
        note_check(result, small.now)
        assert last_check(image.files.path, image.uuid) is None


# --- the commands ---


def test_a_store_from_the_command_line(tmp_path: Path) -> None:
    store, disk = tmp_path / "store", tmp_path / "disk"
    disk.write_bytes(bytes(3 << 20) + b"x" * 1000 + bytes(1 << 20))
    assert "is a store now" in imager("store", "init", store).out
    assert "is no store" not in imager("list", store).out
    assert "full: it is the first image" in imager("capture", disk, "--store", store).out
    put(disk, 5000, b"changed")
    assert "would be stored:" in imager("capture", disk, "--store", store, "--dry-run").out
    out = imager("capture", disk, "--store", store, environ={"TZ": "UTC"}).out
    assert "incremental, against 2" in out
    listed = json.loads(imager("list", "--json", store).out)
    images = listed[0]["folders"][0]["images"]
    assert [len(image["parents"]) for image in images] == [1, 0]
    newest, oldest = (Path(image["path"]) for image in images)
    imager("check", newest)
    listed = json.loads(imager("list", "--json", store).out)
    assert [i["check_verdict"] for i in listed[0]["folders"][0]["images"]] == ["ok", None]
    assert "ok, just now" in imager("list", store).out
    imager("pin", oldest)
    out = imager("prune", store, "--keep-last", 1).out
    assert "pinned" in out and "given up" not in out.partition("given up, ")[0]
    imager("pin", "--unpin", oldest)
    out = imager("prune", store, "--keep-last", 1, "--dry-run").out
    assert f"would go {oldest.name}" in out
    out = imager("prune", store, "--keep-last", 1, "--grace", "0h").out
    assert f"given up {oldest.name}" in out and "still borrow from them: 1" in out
    imager("check", newest)
    message = failure("prune", store, status=5)
    assert "no --keep rule is given" in message


def test_the_store_may_be_named_by_the_environment(small: SmallStore) -> None:
    small.capture()
    environ = {"IMAGER_STORE": str(small.store.path)}
    assert "full" in imager("list", environ=environ).out
    assert "1" in imager("status", environ=environ).out


def test_no_store_is_named(tmp_path: Path) -> None:
    assert "name the folder of the store" in failure("list", status=2)
    assert "is not a store" in failure("list", tmp_path, status=10)
    assert "is not a store" in failure("capture", tmp_path, "--store", tmp_path, status=10)


def test_status_says_what_is_wrong(small: SmallStore) -> None:
    """Three images of early November, and it is later."""
    for night in range(3):
        small.night(night)
    done = imager("status", small.store.path, status=1)
    assert "red" in done.out and "overdue" in done.out
    stores, disks = survey([small.store.path], (), Path("/nowhere"), small.now - HOUR)
    assert not stores[0].absent
    assert [(disk.light, disk.word) for disk in disks] == [(Light.GREEN, "ok")]


def test_an_image_given_up_is_had_back_by_pinning_it(small: SmallStore) -> None:
    first = small.capture()
    small.capture(full=True)
    imager("prune", small.store.path, "--keep-last", 1)
    expired = first.image.with_name(first.image.name + ".expired")
    assert f"{first.image}: pinned" in imager("pin", expired).out
    assert len(small.require_good()) == 2
