"""The screens in docs/rescue.md, as the real program shows them: python -m tests.rescue_screens

Disks are loop devices with models and serial numbers of real ones; their names are shown as a
machine would call them.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.console import DOWN, ENTER, ESCAPE, Console
from tests.rescue_lab import HOST, Lab, lab
from tests.small_disk import Small, make_small

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/rescue.md"
_BLOCK = re.compile(r"(<!-- screen: (\w+) -->\n```text\n)(.*?)(\n```\n)", re.DOTALL)


def screens(made: Lab) -> Iterator[tuple[str, str]]:
    """Each screen's name and text, on one way through the program."""
    names = {
        made.stick.path.name: "sdc",
        made.old.path.name: "sda",
        made.new.path.name: "sdb",
        made.tiny.path.name: "sdd",
    }
    command = [sys.executable, "-m", "tests.rescue_program", str(made.folder), "0.15"]
    with Console(command) as console:

        def see(*words: str) -> str:
            return as_on_a_machine(console.wait_for(*words), names)

        yield "menu", see("Bring this machine back", "Restart or switch off")
        console.press(ENTER)
        yield "images", see("Which image", HOST)
        console.press(ENTER)
        yield "disks", see("Onto which disk")
        console.press(ENTER)
        yield "plan", see("The plan", "Go on")
        console.press(ENTER)
        yield "name", see("The last question")
        console.type(made.old.path.name)
        yield "work", as_on_a_machine(console.catch("Writing", "left"), names)
        yield "done", see("What now?")
        console.press(ESCAPE)
        see("Hardware report")
        console.press(DOWN, ENTER)
        yield "save", see("Which disk shall be saved?")
        console.press(ENTER)
        yield "place", see("Where shall the image go?")
        console.press(ESCAPE)
        see("Which disk shall be saved?")
        console.press(ESCAPE)
        see("Hardware report")


def as_on_a_machine(screen: str, names: dict[str, str]) -> str:
    """The screen with the disks' usual names, its boxes mended, blank lines left out."""
    lines = []
    for line in screen.splitlines():
        if line.startswith((" imager ", " ---")):
            continue
        new = line
        for loop, name in names.items():
            new = re.sub(rf"(/dev/)?{loop}(p(\d+))?\b", rf"\g<1>{name}\g<3>", new)
        if new != line and (end := re.search(r"([ |]*\||-\+)$", new)):
            fill = new[end.start()] if end[0] == "-+" else " "
            new = new[: end.start()] + fill * (len(line) - len(new)) + new[end.start() :]
        lines.append(new.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def written(document: str, found: dict[str, str]) -> str:
    """The document with its screens replaced."""
    return _BLOCK.sub(lambda match: match[1] + found[match[2]] + match[4], document)


def in_document(document: str) -> dict[str, str]:
    """The screens in it."""
    return {match[2]: match[3] for match in _BLOCK.finditer(document)}


def without_numbers(screen: str) -> str:
    """What does not change from day to day: sizes, times and bars do."""
    screen = re.sub(r"\[[# ]*\] *\d+%", "BAR", screen)
    screen = re.sub(r"just now|\d+ minutes? ago|\d+ (min|h) \d+ (min|s)", "N", screen)
    screen = re.sub(r"\b[kMG]?B\b", "B", screen)
    screen = re.sub(r"sd[a-z]", "DISK", screen)
    screen = re.sub(r"[\d.,:+-]*\d[\d.,:+T-]*", "N", screen)
    # The order of the disks is that of whatever loop devices were free.
    return "\n".join(sorted(re.sub(r"[ -]+", " ", line) for line in screen.splitlines()))


def main() -> None:
    """Write the document anew."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        base = Path(folder)
        (base / "small").mkdir()
        small: Small = make_small(base / "small")
        with lab(base, small) as made:
            found = dict(screens(made))
    DOCUMENT.write_text(written(DOCUMENT.read_text(), found))


if __name__ == "__main__":
    main()
