"""Finding images: what is listed and how, and what a hostile or broken volume can do to it."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from imager.errors import ImageError, RefusedError
from imager.image.opening import expired_opening
from imager.rescue import finder, found_image
from imager.rescue.finder import FoundImages, find_images
from imager.rescue.found_image import FoundImage, open_found, place_of
from imager.rescue.media import folder_volume
from imager.restore import RestoreOptions, plan_restore
from tests.command import imager, info
from tests.comparing import digest
from tests.disks import put
from tests.loop import LoopDevice, mounted, run, sparse_file
from tests.small_disk import Small
from tests.test_media import mounts, volumes_of

GOLDEN = Path(__file__).parent / "golden/1.0"


def look(folder: Path) -> FoundImages:
    return find_images([folder_volume(folder)])


def only(found: FoundImages) -> FoundImage:
    (image,) = found.images
    assert found.problems == ()
    return image


def test_what_an_image_says_of_itself(small: Small, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(small.image, tmp_path / "images/nas.img")
    image = only(look(tmp_path))
    described = info(small.image)
    assert image.path == PurePosixPath("images/nas.img")
    assert (image.verdict, image.note) == ("ok", "")
    assert image.size == small.image.stat().st_size
    assert image.disk_size == small.disk.stat().st_size
    assert image.host == described["head"]["host"]["name"]
    assert image.created is not None
    assert image.created.isoformat() == described["head"]["created"]
    assert image.disk is not None and image.disk.name == small.disk.name
    assert image.uuid == described["uuid"]


def test_any_name_near_the_root_and_img_farther_down(small: Small, tmp_path: Path) -> None:
    deep = tmp_path / "a/b/c/d"
    deep.mkdir(parents=True)
    for place in ("backup", "a/backup", "a/b/backup", "a/b/c/d/backup.img"):
        shutil.copy(small.image, tmp_path / place)
    found = {str(image.path) for image in look(tmp_path).images}
    assert found == {"backup", "a/backup", "a/b/c/d/backup.img"}


def test_depth_is_bounded(small: Small, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"x" * finder.MAX_DEPTH)
    (deep / "x").mkdir(parents=True)
    shutil.copy(small.image, deep / "in.img")
    shutil.copy(small.image, deep / "x/out.img")
    assert [image.path.name for image in look(tmp_path).images] == ["in.img"]


def test_parts_are_one_image(small: Small, tmp_path: Path) -> None:
    for part in GOLDEN.glob("parts.*"):
        shutil.copy(part, tmp_path)
    image = only(look(tmp_path))
    assert image.path == PurePosixPath("parts") and image.verdict == "ok"
    assert image.size == sum(part.stat().st_size for part in GOLDEN.glob("parts.*"))
    with open_found(image) as origin:
        assert len(origin.files) == 4
    (tmp_path / "parts.0002").unlink()
    image = only(look(tmp_path))
    assert image.verdict == "degraded" and "part 2 is missing" in image.note


def test_unfinished_image(small: Small, tmp_path: Path) -> None:
    data = small.image.read_bytes()
    (tmp_path / "a.img.partial").write_bytes(data[: len(data) // 2])
    image = only(look(tmp_path))
    assert (image.verdict, image.note) == ("unfinished", "its capture was interrupted")
    (tmp_path / "a.img.partial").rename(tmp_path / "a.img")
    image = only(look(tmp_path))
    assert image.verdict == "unfinished" and "cut short" in image.note


def test_an_image_that_was_given_up_is_not_offered(small: Small, tmp_path: Path) -> None:
    given_up = tmp_path / "old.img.expired"
    shutil.copy(small.image, given_up)
    assert only(look(tmp_path)).verdict == "ok"  # its guard was not written yet: it is whole
    put(given_up, 0, expired_opening(datetime.datetime.now(datetime.UTC)))
    assert look(tmp_path) == FoundImages((), ())


def test_an_increment_without_its_parent(tmp_path: Path) -> None:
    """Its parent may be called anything, be given up or lie in parts; it must be in the same folder."""
    nights = GOLDEN.with_name("1.1")
    (tmp_path / "images").mkdir()
    for name in ("night", "second"):
        shutil.copy(nights / name, tmp_path / f"images/{name}.img")
    found = {image.path.name: image for image in look(tmp_path).images}
    for image in found.values():
        assert image.verdict == "orphaned"
        assert "is missing: it is not in images" in image.note and "parent image" in image.note
    shutil.copy(nights / "parent", tmp_path / "parent.img")
    assert {image.verdict for image in look(tmp_path).images} == {"ok", "orphaned"}
    (tmp_path / "parent.img").rename(tmp_path / "images/x.img.expired")
    put(tmp_path / "images/x.img.expired", 0, expired_opening(datetime.datetime.now(datetime.UTC)))
    (tmp_path / "images/night.img").unlink()
    assert {image.verdict for image in look(tmp_path).images} == {"orphaned"}
    shutil.copy(nights / "night", tmp_path / "images/other.img")
    assert [image.verdict for image in look(tmp_path).images] == ["ok", "ok"]


def test_degraded_capture(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "degraded", tmp_path / "d.img")
    image = only(look(tmp_path))
    assert image.verdict == "degraded" and "could not be read" in image.note


def test_damaged_opening_is_still_found(small: Small, tmp_path: Path) -> None:
    shutil.copy(small.image, tmp_path / "a.img")
    put(tmp_path / "a.img", 0, bytes(512))
    image = only(look(tmp_path))
    assert image.verdict == "degraded" and "opening" in image.note


def test_unreadable_image_has_a_short_reason(small: Small, tmp_path: Path) -> None:
    """Only the opening is left: an image, and nobody can say of what."""
    (tmp_path / "a.img").write_bytes(small.image.read_bytes()[:512] + bytes(8192))
    image = only(look(tmp_path))
    assert image.verdict == "unreadable" and image.uuid == "" and image.size == 8704
    assert image.note.startswith("a.img ") and str(tmp_path) not in image.note


def test_what_is_no_image(tmp_path: Path) -> None:
    """Called like one where captures go: a word is said. Elsewhere: none."""
    (tmp_path / "images").mkdir()
    (tmp_path / "boot").mkdir()
    sparse_file(tmp_path / "images/disk.img", 1 << 20)
    sparse_file(tmp_path / "boot/initramfs.img", 1 << 20)
    (tmp_path / "syslog.2023").write_text("not one either")
    found = look(tmp_path)
    assert found.images == ()
    assert [problem.partition(": ")[2] for problem in found.problems] == [
        "no imager images in spite of their names: images/disk.img"
    ]


def test_links_and_pipes_are_not_followed(small: Small, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/a.img").symlink_to(small.image)
    (tmp_path / "volume/up").symlink_to(small.image.parent)
    os.mkfifo(tmp_path / "volume/b.img")
    assert look(tmp_path / "volume") == FoundImages((), ())


def test_paths_that_lead_out_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "out").symlink_to("/etc")
    (root / "loop").symlink_to("loop")
    (root / "file.img").symlink_to("/etc/passwd")
    (root / "newest.img").symlink_to("in/x.img")
    for path in ("../x.img", "out/x.img", "in/../../x.img", "file.img", "loop/x.img"):
        with pytest.raises(RefusedError):
            place_of(root, PurePosixPath(path))
    assert place_of(root, PurePosixPath("newest.img")) == root / "in/x.img"
    assert place_of(root, PurePosixPath("/in/x.img")) == root / "in/x.img"


def test_names_cannot_play_tricks(small: Small, tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J.img").write_bytes(small.image.read_bytes()[:512])
    (tmp_path / "\x1b[3J.img").write_bytes(b"")
    (image,), (problem,) = look(tmp_path).images, look(tmp_path).problems
    assert "\x1b" not in image.note + problem


def test_many_files_end_the_search(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "MAX_ENTRIES", 20)
    shutil.copy(small.image, tmp_path / "a.img")
    for number in range(30):
        (tmp_path / f"file-{number}").touch()
    found = look(tmp_path)
    assert len(found.images) == 1
    assert found.problems == (
        f"{tmp_path} was not looked through to its end: it holds more than 20 files",
    )


def test_many_images_end_the_search(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "MAX_IMAGES", 2)
    for number in range(4):
        (tmp_path / f"{number}.img").write_bytes(small.image.read_bytes()[:512])
    found = look(tmp_path)
    assert len(found.images) == 2 and "more than 2 images" in found.problems[0]


def test_time_ends_the_search(tmp_path: Path) -> None:
    ticks: Iterator[float] = iter(range(0, 1000, 50))
    for number in range(5):
        (tmp_path / f"{number}").touch()
    found = find_images([folder_volume(tmp_path)], clock=lambda: next(ticks))
    assert "took longer than 60 seconds" in found.problems[0]


@pytest.mark.parametrize("value", ["2026-13-01", "yesterday", "2026-01-01T00:00:00", 5, None])
def test_dates_that_make_no_sense(value: object) -> None:
    assert found_image._created(value) is None


def test_newest_first(small: Small, tmp_path: Path) -> None:
    shutil.copy(small.image, tmp_path / "a.img")
    shutil.copy(GOLDEN / "full", tmp_path / "b.img")
    (tmp_path / "c.img").write_bytes(small.image.read_bytes()[:512])
    assert [image.path.name for image in look(tmp_path).images] == ["a.img", "b.img", "c.img"]


def test_volumes_are_mounted_one_by_one_and_let_go(small: Small, tmp_path: Path) -> None:
    """One that fails is a problem, not the end; afterwards its disk may be a target."""
    with (
        LoopDevice(tmp_path / "one", 64 << 20) as one,
        LoopDevice(tmp_path / "two", 256 << 20) as two,
    ):
        for device in (one, two):
            run("mkfs.ext4", "-q", device.path)
        with mounted(two.path, tmp_path / "place") as place:
            shutil.copy(small.image, place / "a.img")
        volumes = volumes_of(one, two)
        put(one.file, 1024 + 0x18, b"\xff" * 4)
        run("blockdev", "--flushbufs", one.path)
        before = digest(two.file)
        seen: list[str] = []
        found = find_images(volumes, lambda volume: seen.append(volume.path))
        assert seen == [str(one.path), str(two.path)]
        assert len(found.images) == len(found.problems) == 1
        assert mounts() == []
        with (
            open_found(found.images[0]) as origin,
            pytest.raises(RefusedError, match="holds the image"),
        ):
            plan_restore(origin, two.path, RestoreOptions())
        assert mounts() == [] and digest(two.file) == before
        imager("restore", "--yes", small.image, two.path)


def test_image_that_was_exchanged_is_refused(small: Small, tmp_path: Path) -> None:
    shutil.copy(small.image, tmp_path / "a.img")
    image = only(look(tmp_path))
    shutil.copy(GOLDEN / "full", tmp_path / "a.img")
    with pytest.raises(ImageError, match="is not the image it was"), open_found(image):
        pass
    (tmp_path / "a.img").unlink()
    with pytest.raises(ImageError), open_found(image):
        pass
