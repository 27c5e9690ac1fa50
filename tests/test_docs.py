"""The documents say what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imager import cli, errors
from imager.image import format as image_format
from imager.image.records import OVERHEAD
from tests.manual import commands, manual

DOCS = Path(__file__).parent.parent / "docs"


def error_classes() -> list[type[errors.ImagerError]]:
    found = [errors.ImagerError]
    for known in found:
        found += known.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


def documented(text: str) -> set[int]:
    """The exit statuses at the beginning of the lines of a table."""
    return {
        int(number)
        for line in text.splitlines()
        if (match := re.match(r"[| ]+(\d+(?:, \d+)*) ", line))
        for number in match[1].split(", ")
    }


def test_every_exit_status_is_documented() -> None:
    statuses = {kind.exit_code for kind in error_classes()}
    statuses |= {errors.EXIT_OK, errors.EXIT_DEGRADED}
    statuses |= {cli.EXIT_INTERNAL, cli.EXIT_INTERRUPTED, cli.EXIT_TERMINATED}
    guide = (DOCS / "guide.md").read_text().partition("## Exit status")[2].partition("\n## ")[0]
    assert documented(guide) == statuses
    epilog = cli.build_parser().epilog or ""
    assert documented(epilog.partition("Exit status:")[2]) == statuses


def test_manual_page_is_current() -> None:
    assert manual() == (DOCS / "imager.8").read_text(), "run make man"


@pytest.mark.parametrize("command", commands())
def test_help_has_examples(command: str) -> None:
    epilog = commands()[command].epilog or ""
    assert len(re.findall(rf"^  .*imager {command}", epilog, re.MULTILINE)) >= 2


def test_options_in_the_guide_exist() -> None:
    """Whatever the guide and the README call an option is one."""
    known = {
        option
        for parser in commands().values()
        for action in parser._actions
        for option in action.option_strings
    }
    for document in ("guide.md", "../README.md"):
        text = (DOCS / document).read_text()
        used = set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", text))
        assert used <= known | {"--json"}, document


def test_sizes_in_the_format_document() -> None:
    text = (DOCS / "format.md").read_text()
    assert f"{image_format.FOOTER_RECORD_SIZE} bytes as a record" in text
    assert f"| 32 | {image_format.ENTRY.size} n | entries |" in text
    assert f"| 8 | {image_format.INDEX_ITEM.size} s | items |" in text
    assert image_format.SEGMENT_HEADER.size == 32
    assert image_format.VERSION.size == 28 + 24
    assert OVERHEAD == 32 + 32
