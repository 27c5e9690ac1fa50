"""Reading a store that anybody may have written to, and telling disks from one another."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from imager.capture import CaptureOptions, capture
from imager.disk.source import SourceDevice
from imager.errors import RefusedError
from imager.image.format import INCOMPATIBLE_INCREMENTAL, MINOR_INCREMENTAL
from imager.image.opening import INCREMENTAL, guard_opening
from imager.image.reader import ImageReader
from imager.store.capture import capture_into
from imager.store.catalog import ImageFiles, State, find_images, read_folder
from imager.store.disk_key import key_of_device, key_of_head
from imager.store.folder import create_store
from imager.store.retention import Quality, Rules
from tests.disks import MIB, make_disk, put, run
from tests.forgery import DISK, Forgery, head_with
from tests.loop import LoopDevice
from tests.small_store import CHUNK, DAY, SmallStore

LATE = Rules(last=1)


def source(path: str) -> dict[str, object]:
    """What a head says of the plain file `path`."""
    return {
        "path": path,
        "name": Path(path).name,
        "kind": "file",
        **dict.fromkeys(("model", "serial", "wwn", "transport", "backing_file")),
        "size": DISK.size,
        "logical_sector": 512,
        "physical_sector": 512,
        **dict.fromkeys(("rotational", "removable", "read_only"), False),
    }


def forged(number: int, parent: int | None = None, **facts: Any) -> bytes:
    """An image whose UUID is a number, and that says that it has a parent with another one."""
    reference = {
        "uuid": str(uuid.UUID(int=parent or 0)),
        "content_digest": "00" * 32,
        "created": "",
        "file": "",
        "disk_size": DISK.size,
        "chunk_size": DISK.head().chunk_size,
    }
    head = head_with(**{"source": source("/disk"), **facts})
    forgery = Forgery(head=head, uuid=uuid.UUID(int=number).bytes)
    if parent is not None:
        head["parents"] = [reference]
        forgery.opening = guard_opening(INCREMENTAL)
        forgery.version = {"minor": MINOR_INCREMENTAL, "incompatible": INCOMPATIBLE_INCREMENTAL}
    return forgery.build()


@pytest.mark.parametrize(
    "facts",
    [
        {"created": "yesterday"},
        {"created": "2026-11-22T02:00:00"},
        {"created": "0001-01-01T00:00:00+23:59"},
        {"created": 7},
        {"source": None},
        {"source": {**source("/disk"), "kind": "disk"}},
        {"source": {**source("/disk"), "serial": ["a"]}},
    ],
)
def test_a_head_that_makes_no_sense_is_listed_as_such(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    (tmp_path / "x.img").write_bytes(forged(1, **facts))
    found = read_folder(tmp_path)
    assert not found.images
    assert [each.files.path.name for each in found.unreadable] == ["x.img"]


def test_names_from_a_head_are_safe_to_show(tmp_path: Path) -> None:
    (tmp_path / "x.img").write_bytes(forged(1, host={"name": "\x1b[2J\nevil"}))
    (image,) = read_folder(tmp_path).images
    assert image.host == "?[2J?evil"


def test_references_in_a_circle_keep_everything(tmp_path: Path) -> None:
    """No capture makes them: nothing is taken from them, and nothing goes on for ever."""
    small = SmallStore(tmp_path)
    small.capture()
    folder = small.folder
    for number, parent in ((1, 2), (2, 1), (3, 3)):
        (folder / f"{number}.img.expired").write_bytes(forged(number, parent))
    images = {image.name: image for image in small.look().images}
    assert all(images[f"{number}.img"].orphaned for number in (1, 2, 3))
    small.prune(LATE)
    small.now += DAY
    report = small.prune(LATE)
    assert not report.deleted and len(report.borrowed) == 3


def test_an_orphan_is_worth_less_than_any_other(tmp_path: Path) -> None:
    (tmp_path / "x.img").write_bytes(forged(1, 2))
    (image,) = read_folder(tmp_path).images
    assert image.orphaned and image.quality is Quality.DAMAGED


def test_a_copy_of_an_image_may_go(tmp_path: Path) -> None:
    """Somebody has copied a parent within its folder: one of the two is enough to build upon."""
    small = SmallStore(tmp_path)
    first = small.capture()
    shutil.copy(first.image, small.folder / "copy.img")
    small.digests["copy.img"] = small.digests[first.image.name]
    small.night(1)
    small.prune(Rules(daily=2))
    small.now += DAY
    small.prune(Rules(daily=2))
    assert len(small.require_good()) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.img"], [("a.img", State.COMPLETE)]),
        (["a.img.partial"], [("a.img", State.PARTIAL)]),
        (["a.img.expired"], [("a.img", State.EXPIRED)]),
        (["a.img.0001", "a.img.0002.last"], [("a.img", State.COMPLETE)]),
        (["a.img.0001", "a.img.0002.expired"], [("a.img", State.EXPIRED)]),
        (["a.img.0001", "a.img.0002.partial"], [("a.img", State.PARTIAL)]),
        (["a.img.0001.partial", "a.img.0002.partial"], [("a.img", State.PARTIAL)]),
        (["a.img.0001"], [("a.img", State.PARTIAL)]),
        (["a.img", "a.img.partial"], [("a.img", State.COMPLETE), ("a.img", State.PARTIAL)]),
        (["a.img.json", "a.img.pinned", "imager.lock", "a.txt", ".a.img.json.7.new"], []),
        (["a.img", "b.img.expired"], [("a.img", State.COMPLETE), ("b.img", State.EXPIRED)]),
    ],
)
def test_states_by_name(
    tmp_path: Path, names: list[str], expected: list[tuple[str, State]]
) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert [(image.path.name, image.state) for image in found] == expected
    assert sum(len(image.files) for image in found) == (len(names) if expected else 0)


def test_files_that_vanish_do_not_hurt(tmp_path: Path) -> None:
    gone = ImageFiles(tmp_path / "a.img", State.COMPLETE, (tmp_path / "a.img",))
    assert (gone.size(), gone.allocated(), gone.modified()) == (0, 0, 0.0)


# --- which disk ---


def gpt(path: Path) -> Path:
    run("sgdisk", "--clear", "--new=1:2048:4095", make_disk(path, 4 * MIB))
    return path


def mbr(path: Path) -> Path:
    run("sfdisk", "--quiet", make_disk(path, 4 * MIB), text="2048,2048\n")
    return path


def ext4(path: Path) -> Path:
    run("mkfs.ext4", "-q", make_disk(path, 4 * MIB))
    return path


@pytest.mark.parametrize(("make", "kind"), [(gpt, "gpt "), (mbr, "mbr "), (ext4, "volume ")])
@pytest.mark.parametrize("as_loop", [False, True])
def test_a_disk_is_known_before_and_after_its_capture(
    tmp_path: Path, make: Any, kind: str, as_loop: bool
) -> None:
    disk = make(tmp_path / "disk")
    with LoopDevice(disk) as loop:
        path = loop.path if as_loop else disk
        with SourceDevice(path) as device:
            key = key_of_device(device)
        capture(path, tmp_path / "x.img")
    assert key.startswith(kind)
    with ImageReader(tmp_path / "x.img") as image:
        assert key_of_head(image.head) == key


def test_a_partition_is_not_its_disk(tmp_path: Path) -> None:
    disk = gpt(tmp_path / "disk")
    run("mkfs.ext4", "-q", "-E", f"offset={MIB}", disk, "1024k")
    with LoopDevice(disk) as loop:
        loop.scan()
        with SourceDevice(loop.partition(1)) as device:
            key = key_of_device(device)
        capture(loop.partition(1), tmp_path / "x.img")
    assert key.startswith("volume ")
    with ImageReader(tmp_path / "x.img") as image:
        assert key_of_head(image.head) == key


def test_a_device_without_any_mark_is_refused(tmp_path: Path) -> None:
    """Retention would take it for another one like it."""
    store = create_store(tmp_path / "store")
    disk = make_disk(tmp_path / "disk", 4 * MIB)
    put(disk, MIB, b"something")
    with LoopDevice(disk) as loop, pytest.raises(RefusedError, match="cannot be told from other"):
        capture_into(store, loop.path, CaptureOptions())


def test_an_interrupted_capture_is_gone_on_with(tmp_path: Path) -> None:
    """What a crash left of an incremental one, and a full one."""
    small = SmallStore(tmp_path)
    for full in (True, False):
        small.write(*range(12), size=CHUNK - 10)
        whole = small.capture(full=full)
        partial = whole.image.with_name(whole.image.name + ".partial")
        whole.image.rename(partial)
        with partial.open("r+b") as file:
            file.truncate(partial.stat().st_size * 2 // 3)
        resumed = capture_into(small.store, small.disk, RESUME, small.now)
        assert resumed.image == whole.image
        assert resumed.result.image.content_digest == whole.result.image.content_digest
    small.require_good()
    with pytest.raises(RefusedError, match=r"nothing in .* was left"):
        capture_into(small.store, small.disk, RESUME, small.now)


RESUME = CaptureOptions(chunk_size=CHUNK, threads=1, resume=True)
