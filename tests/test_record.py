"""Layouts as JSON: what is written is read back, and nothing that is not sound is."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest

from imager.extents import Extents
from imager.layout.model import DiskLayout, Gap, Partition, PartitionTable, VolumeLayout

MIB = 1 << 20
PARTITION = Partition(1, MIB, 4 * MIB, "0x83", "01020304-01", None, 0x80)
VOLUME = VolumeLayout(
    1, MIB, 4 * MIB, "ext4", 'a "ü"\n', "u-u", "filesystem", "1.0", PARTITION, "used", None,
    MIB, 3 * MIB, ("journal not replayed",),
)  # fmt: skip
LAYOUT = DiskLayout(
    8 * MIB, 512,
    PartitionTable("mbr", "01020304", (PARTITION,), Extents.of([(0, 512), (6 * MIB, 6 * MIB + 9)])),
    (VOLUME,),
    (Gap(0, MIB, True, "before the first partition"), Gap(5 * MIB, 3 * MIB, False, "unused")),
    ("a note",),
)  # fmt: skip


def plain() -> dict[str, Any]:
    """The layout as it comes out of a JSON file."""
    value: dict[str, Any] = json.loads(json.dumps(LAYOUT.to_json()))
    return value


def test_round_trip() -> None:
    assert DiskLayout.from_json(plain()) == LAYOUT


def test_unknown_fields_are_ignored_and_defaults_filled() -> None:
    value = plain()
    value["later"] = 1
    value["table"]["later"] = [1]
    del value["notes"]
    assert DiskLayout.from_json(value).table == LAYOUT.table
    assert DiskLayout.from_json(value).notes == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("size",), "8"),
        (("size",), 8.0 * MIB),
        (("size",), True),
        (("size",), -1),
        (("size",), 1 << 64),
        (("size",), 4 * MIB),
        (("sector_size",), 0),
        (("sector_size",), 1000),
        (("sector_size",), 1 << 30),
        (("table",), []),
        (("table",), None),
        (("table", "kind"), "apm"),
        (("table", "kind"), ["gpt"]),
        (("table", "uuid"), 1),
        (("table", "uuid"), "\ud800"),
        (("table", "extents"), [[0, 512], [100, 600]]),
        (("table", "extents"), [[0, 512], [512, 600]]),
        (("table", "extents"), [[512, 512]]),
        (("table", "extents"), [[0]]),
        (("table", "extents"), [[0, 1, 2]]),
        (("table", "extents"), [[0, True]]),
        (("table", "extents"), [[0, 9 * MIB]]),
        (("table", "extents"), {"0": 512}),
        (("table", "partitions"), None),
        (("table", "partitions"), [1]),
        (("table", "partitions"), []),
        (("table", "partitions", 0, "number"), 0),
        (("table", "partitions", 0, "size"), 0),
        (("table", "partitions", 0, "start"), 1 << 63),
        (("table", "partitions", 0, "start"), 5 * MIB),
        (("table", "partitions", 0, "type"), None),
        (("volumes", 0, "stored"), "lost"),
        (("volumes", 0, "used"), 5 * MIB),
        (("volumes", 0, "start"), 0),
        (("volumes", 0, "size"), 5 * MIB),
        (("volumes", 0, "partition", "name"), "another"),
        (("volumes", 0, "notes"), "text"),
        (("gaps", 0, "stored"), 1),
        (("gaps", 0, "size"), 2 * MIB),
        (("gaps", 1, "size"), 4 * MIB),
    ],
)
def test_nonsense(path: tuple[str | int, ...], value: object) -> None:
    layout: Any = plain()
    place = layout
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError):
        DiskLayout.from_json(layout)


@pytest.mark.parametrize("value", [None, [], "text", 1, {}])
def test_no_layout(value: object) -> None:
    with pytest.raises(ValueError):
        DiskLayout.from_json(value)


def test_random_changes_raise_nothing_but_value_error() -> None:
    text = json.dumps(LAYOUT.to_json())
    for seed in range(2000):
        chance = random.Random(seed)
        at = chance.randrange(len(text))
        try:
            value = json.loads(text[:at] + chance.choice('0129-."[]{}nt, ') + text[at + 1 :])
        except ValueError:
            continue
        with suppress(ValueError):
            assert isinstance(DiskLayout.from_json(value), DiskLayout)
