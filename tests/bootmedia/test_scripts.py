"""The small shell programs on the medium, run with a kernel line of the test's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bootmedia.recipe import data

LAYER = Path(str(data() / "layer"))
GENERATOR = LAYER / "usr/lib/systemd/system-generators/imager-console"
KEYMAP = LAYER / "usr/lib/imager/keymap"


def run(script: Path, kernel_line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `script` with `kernel_line`; `loadkeys` only says what it was called with."""
    line = folder / "cmdline"
    line.write_text(f"quiet {kernel_line} console=tty0\n")
    copy = folder / "script"
    copy.write_text(script.read_text().replace("/proc/cmdline", str(line)))
    (folder / "loadkeys").write_text('#!/bin/sh\necho "$*"\n')
    (folder / "loadkeys").chmod(0o755)
    return subprocess.run(
        ["sh", copy, folder / "units"],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("word", "unit", "speed"),
    [
        ("imager.console=ttyS1,9600", "serial-getty@ttyS1.service", "9600"),
        ("imager.console=ttyS12,57600n8r", "serial-getty@ttyS12.service", "57600"),
        ("imager.console=hvc0", "serial-getty@hvc0.service", "115200"),
    ],
)
def test_a_further_console(tmp_path: Path, word: str, unit: str, speed: str) -> None:
    run(GENERATOR, word, tmp_path)
    assert (tmp_path / "units/getty.target.wants" / unit).is_symlink()
    command = (tmp_path / "units" / f"{unit}.d/speed.conf").read_text().splitlines()[-1]
    assert command.endswith(f" /usr/lib/imager/console {speed} %I $TERM")


def test_a_further_screen(tmp_path: Path) -> None:
    run(GENERATOR, "imager.console=tty4", tmp_path)
    link = tmp_path / "units/getty.target.wants/getty@tty4.service"
    assert str(link.readlink()) == "/usr/lib/systemd/system/getty@.service"
    assert sorted(path.name for path in (tmp_path / "units").iterdir()) == ["getty.target.wants"]


@pytest.mark.parametrize(
    "word",
    ["", "imager.console=", "imager.console=../x", "imager.console=ttyS1/../x", "x=ttyS1",
     "imager.console=tty1"],  # that has one already
)  # fmt: skip
def test_no_further_console(tmp_path: Path, word: str) -> None:
    assert run(GENERATOR, word, tmp_path).returncode == 0
    assert not (tmp_path / "units").exists()


def test_a_keyboard_layout_is_loaded(tmp_path: Path) -> None:
    assert run(KEYMAP, "imager.keymap=de-latin1", tmp_path).stdout == "--quiet -- de-latin1\n"


@pytest.mark.parametrize("word", ["imager.keymap=", "imager.keymap=../x", "imager.keymap=a;b", ""])
def test_what_is_no_keyboard_layout(tmp_path: Path, word: str) -> None:
    done = run(KEYMAP, word, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not a keyboard layout" in done.stderr
