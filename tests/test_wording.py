"""Sizes, times and tables as people read and write them."""

from __future__ import annotations

import argparse
import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.cli.text import (
    format_age,
    format_duration,
    format_size,
    format_table,
    parse_size,
    printable,
    shorten,
    size_argument,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_500_000_000, "1.5 GB"),
        (240_057_409_536, "240 GB"),
        (1_000_204_886_016, "1.0 TB"),
        (20_000_588_955_648, "20.0 TB"),
        (1 << 63, "9.2 EB"),
        (10**22, "10000 EB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 10**21))
def test_formatted_size_is_near(size: int) -> None:
    number, unit = format_size(size).split()
    assert abs(float(number) * parse_size(f"1{unit}") - size) <= 0.05 * size
    assert len(number) <= 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("4G", 4 << 30),
        ("4GiB", 4 << 30),
        ("4 GB", 4 * 10**9),
        ("16MiB", 16 << 20),
        ("64k", 64 << 10),
        ("1.5T", 3 << 39),
        ("0.1kB", 100),
        (" 2m ", 2 << 20),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert size_argument(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1.5", "4X", "1e3", "0.3K", "1..5M", "4GG", "٣", "4 G B"]
)
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_size(text)
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        size_argument(text)


@given(st.text(max_size=12))
def test_parse_size_raises_nothing_else(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_size(text) >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.24, "3.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (86_400 * 3 + 4 * 3600 + 1, "3 d 4 h"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-61, "in the future"),
        (-5, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7199, "1 hour ago"),
        (86_400 * 2, "2 days ago"),
    ],
)
def test_format_age(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


def test_printable_and_shorten() -> None:
    assert printable("a\x1b[2J\u202eb\udcffü") == "a?[2J?b?ü"
    assert shorten("abcdef", 4) == "abc~"
    assert shorten("abcd", 4) == "abcd"


def test_format_table() -> None:
    rows = [["NAME", "SIZE"], ["a", "1 B"], ["long name", "10 MB"]]
    assert format_table(rows, right=(1,), width=80) == [
        "NAME        SIZE",
        "a            1 B",
        "long name  10 MB",
    ]
    assert format_table(rows, right=(1,), width=12) == [
        "NAME    SIZE",
        "a        1 B",
        "long~  10 MB",
    ]


@given(st.lists(st.lists(st.text(max_size=60), min_size=3, max_size=3), min_size=1, max_size=5))
def test_table_fits(rows: list[list[str]]) -> None:
    rows = [[first, second, "12.3 GB"] for first, second, _ in rows]
    assert all(len(line) <= 40 for line in format_table(rows, right=(2,), width=40))
