"""The boot menu, and the options that it is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bootmedia.grub import finder, menu
from bootmedia.kernel_options import read_options
from imager.errors import UsageError
from imager.rescue.kernel_line import parse_kernel_line

JOB = {
    "imager.restore": "auto",
    "imager.image": "IMAGER_DATA:/images/pc.img",
    "imager.target": "serial:S6P1NX0R401234",
    "imager.keymap": "de",
}
UUID = "2026-01-02-03-04-05-06"


def entries(text: str) -> dict[str, list[str]]:
    """The kernel options of each entry that has a kernel."""
    found = re.findall(r'menuentry "([^"]+)" {\n  linux \S+ (.*)\n', text)
    return {title: options.split() for title, options in found}


def test_every_kernel_knows_its_medium_and_both_consoles() -> None:
    for options in entries(menu(UUID, {})).values():
        assert f"live.medium={UUID}" in options
        assert "console=tty0" in options and options[-1] == "console=ttyS0,115200"


def test_without_a_job_nothing_is_restored_by_itself() -> None:
    text = menu(UUID, {"imager.keymap": "de"})
    assert all("imager.keymap=de" in options for options in entries(text).values())
    assert "imager.restore" not in text and "WITHOUT ASKING" not in text


def test_a_job_comes_first_and_says_what_it_will_do() -> None:
    text = menu(UUID, JOB)
    first, by_hand, *_ = entries(text).items()
    assert first[0] == (
        "WITHOUT ASKING: restore IMAGER_DATA:/images/pc.img onto serial:S6P1NX0R401234"
    )
    assert "set default=0\n" in text
    job = parse_kernel_line(" ".join(first[1])).job
    assert job is not None and job.target.value == "S6P1NX0R401234"
    line = parse_kernel_line(" ".join(by_hand[1]))
    assert line.job is None and line.keymap == "de"


def test_the_efi_partition_finds_this_very_medium() -> None:
    assert f"--fs-uuid --set=root {UUID}\n" in finder(UUID)


def write(folder: Path, text: str) -> Path:
    path = folder / "config"
    path.write_text(text)
    return path


def test_options_are_read(tmp_path: Path) -> None:
    text = "# the office's PC\n\n" + "".join(f"{key}={value}\n" for key, value in JOB.items())
    assert read_options(write(tmp_path, text)) == JOB


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("restore=auto", "line 1: 'restore=auto' is not imager.KEY=VALUE"),
        ("imager.restore", "line 1: 'imager.restore' is not imager.KEY=VALUE"),
        ("imager.keymap=de\nimager.keymap=fr", "line 2: imager.keymap is given twice"),
        ("imager.keymap=", "line 1: '' is empty"),
        ('imager.keymap=de" }', "cannot carry"),
        ("imager.keymap=$root", "cannot carry"),
        ("imager.image=A:/b c", "cannot carry"),
        ("imager.restor=auto", "imager.restore"),
        ("imager.target=only-disk", "without imager.restore=auto"),
        ("imager.restore=auto\nimager.image=A:/b\nimager.target=/dev/sda", "imager.target"),
    ],
)
def test_options_that_nobody_would_understand(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_options(write(tmp_path, text))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_options_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        read_options(path)
