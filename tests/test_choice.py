"""Which image and which disk a job means: one, or a refusal that says what there is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

import pytest

from imager.disk.identity import Identity
from imager.disk.inventory import Contents, Disk
from imager.errors import RefusedError
from imager.rescue.choice import choose_target, is_blank, newest, with_label
from imager.rescue.found_image import FoundImage
from imager.rescue.kernel_line import TargetChoice
from imager.rescue.media import MediaVolume

NOTHING = Contents(None, None, None, (), None)
ONLY = TargetChoice("only-disk", "")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def disk(name: str, **changed: object) -> Disk:
    facts: dict[str, object] = {
        "path": f"/dev/{name}",
        "name": name,
        "kind": "disk",
        "model": "Disk",
        "serial": f"S-{name}",
        "wwn": None,
        "transport": "sata",
        "size": 10**12,
        "logical_sector": 512,
        "physical_sector": 512,
        "rotational": False,
        "removable": False,
        "read_only": False,
        "backing_file": None,
    }
    return Disk(Identity.from_json(facts | changed), None, NOTHING, (), False, ())


def image(holder: Disk | None = None, **changed: Any) -> FoundImage:
    volume = MediaVolume(
        "/dev/sdz1", "ext4", "BACKUP", None, 1, holder.identity if holder else None
    )
    found = FoundImage(
        volume=volume,
        path=PurePosixPath("x.img"),
        size=1,
        created=NOW,
        host="nas",
        disk=disk("old").identity,
        disk_size=1,
        verdict="ok",
        note="",
        uuid="1",
    )
    return replace(found, **changed)


SDA, SDB, USB = disk("sda"), disk("sdb"), disk("sdc", transport="usb")


@pytest.mark.parametrize(
    "others",
    [
        [],
        [USB],
        [disk("sdd", removable=True)],
        [disk("sdd", read_only=True)],
        [replace(disk("sdd"), is_system=True)],
        [replace(disk("sdd"), contents=replace(NOTHING, label="IMAGER_LIVE"))],
        [SDB],
    ],
)
def test_only_disk(others: list[Disk]) -> None:
    """What is plugged in for the rescue does not count; SDB holds the image."""
    assert choose_target(ONLY, [*others, SDA], image(SDB)) is SDA


def test_only_disk_is_no_guess() -> None:
    small = disk("sdd", size=16 * 10**9)
    with pytest.raises(RefusedError, match=r"there are 2 disks: sda: .*; sdd: .*16\.0 GB"):
        choose_target(ONLY, [SDA, small], image())
    with pytest.raises(RefusedError, match=r"no disk that it can mean .*: sdc: "):
        choose_target(ONLY, [USB], image())
    with pytest.raises(RefusedError, match="none"):
        choose_target(ONLY, [], image())


def test_named_disks() -> None:
    wwn = disk("sdd", wwn="0x5000C500A1B2C3D4")
    disks = [SDA, USB, wwn]
    assert choose_target(TargetChoice("serial", "s-SDA"), disks, image()) is SDA
    assert choose_target(TargetChoice("serial", "S-sdc"), disks, image()) is USB
    assert choose_target(TargetChoice("wwn", "naa.5000c500a1b2c3d4"), disks, image()) is wwn
    with pytest.raises(RefusedError, match="no disk is serial:x: there is sda: "):
        choose_target(TargetChoice("serial", "x"), disks, image())
    with pytest.raises(RefusedError, match="is more than one disk"):
        choose_target(TargetChoice("serial", "S-sda"), [SDA, SDA], image())


def test_label_is_one_volume() -> None:
    one, other = image(SDA).volume, replace(image(SDB).volume, label="OTHER")
    assert with_label([one, other], "BACKUP") is one
    with pytest.raises(RefusedError, match=r"label X.*there is sdz1 \(BACKUP\); sdz1 \(OTHER\)"):
        with_label([one, other], "X")
    with pytest.raises(RefusedError, match="more than one disk has the label BACKUP"):
        with_label([one, one], "BACKUP")
    with pytest.raises(RefusedError, match="none that can hold an image"):
        with_label([], "X")


def test_newest_good_image() -> None:
    old = image(created=NOW - timedelta(days=1), uuid="2")
    assert newest([image(), old]).uuid == "1"
    assert newest([image(verdict="degraded", note="x"), image(created=None), old]).uuid == "2"
    with pytest.raises(RefusedError, match=r"no good image was found: only x.img \(cut\)"):
        newest([image(verdict="unfinished", note="cut")])
    with pytest.raises(RefusedError, match=r"no good image was found$"):
        newest([])


@pytest.mark.parametrize(
    "other", [image(host="web"), image(disk=disk("sdq").identity), image(disk=None)]
)
def test_newest_of_several_disks_is_refused(other: FoundImage) -> None:
    with pytest.raises(RefusedError, match=r"several disks .*nas: S-old.*LABEL:/path"):
        newest([image(), other])


def test_blank() -> None:
    assert is_blank(SDA)
    assert not is_blank(replace(SDA, table="gpt"))
    assert not is_blank(replace(SDA, contents=replace(NOTHING, kind="ext4")))
