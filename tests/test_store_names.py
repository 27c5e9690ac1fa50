"""Names in a store: readable, and allowed everywhere."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.store.names import copy_name, image_name, is_copy, slug


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Samsung SSD 870 EVO S6PXNZ0R401234", "Samsung-SSD-870-EVO-S6PXNZ0R401234"),
        ("WDC WD10EZEX-08WN4A0", "WDC-WD10EZEX-08WN4A0"),
        ("büro-pc", "buro-pc"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("a:b*c?d", "a-b-c-d"),
        ("disk. . .", "disk"),
        ("-rf /home", "rf-home"),
        ("NUL", "NUL_"),
        ("com1.img", "com1.img_"),
        ("line\nbreak\x1b[31m", "line-break-31m"),
    ],
)
def test_readable_names(text: str, name: str) -> None:
    expected = re.escape(name) if name != "unnamed" or not text else r"(unnamed|[0-9a-f]{8})"
    assert re.fullmatch(expected, slug(text))


def test_texts_that_vanish_stay_apart() -> None:
    assert slug("東京") != slug("大阪")


def test_long_texts_are_cut_and_stay_apart() -> None:
    one, other = slug("x" * 200 + "1"), slug("x" * 200 + "2")
    assert len(one) == len(other) == 64
    assert one != other


@given(st.text())
def test_any_text_gives_a_safe_name(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name)
    assert len(name) <= 65
    assert not name.endswith(".")
    assert name.partition(".")[0].lower() not in ("con", "prn", "aux", "nul", "com1", "lpt9")


def test_images_are_named_after_the_time_in_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    created = datetime.datetime(2026, 11, 22, 4, 0, 0, tzinfo=zone)
    assert image_name(created) == "2026-11-22T02-00-00Z.img"
    assert image_name(created, 2) == "2026-11-22T02-00-00Z-2.img"


def test_copies_are_numbered() -> None:
    assert copy_name("2026-11-22T02-00-00Z.img") == "2026-11-22T02-00-00Z-c1.img"
    assert copy_name("2026-11-22T02-00-00Z-c9.img") == "2026-11-22T02-00-00Z-c10.img"
    assert is_copy("2026-11-22T02-00-00Z-c1.img")
    assert not is_copy("2026-11-22T02-00-00Z-2.img")
