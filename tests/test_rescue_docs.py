"""The screens in docs/rescue.md are those of the program."""

from __future__ import annotations

from pathlib import Path

from tests.rescue_lab import lab
from tests.rescue_screens import DOCUMENT, in_document, screens, without_numbers
from tests.small_disk import Small


def test_screens_in_the_document(tmp_path: Path, small: Small) -> None:
    shown = {
        name: without_numbers(text) for name, text in in_document(DOCUMENT.read_text()).items()
    }
    with lab(tmp_path, small) as made:
        seen = {name: without_numbers(text) for name, text in screens(made)}
    assert seen == shown, "run make screens"
