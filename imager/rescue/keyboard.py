"""The keyboard layout of the console: passwords are typed on what is printed on the keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from imager.errors import ImagerError
from imager.rescue.screen import Choice
from imager.rescue.session import Session
from imager.wording import printable

TITLE = "Keyboard layout"
FOLDERS = (Path("/usr/share/keymaps"), Path("/usr/share/kbd/keymaps"))
_FILE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9_+.-]{0,63}?)\.k?map(\.gz)?")
_COMMON = {
    "us": "English (USA)",
    "uk": "English (UK)",
    "de": "German",
    "de-latin1": "German, with dead keys",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "pt-latin1": "Portuguese",
    "br-abnt2": "Portuguese (Brazil)",
    "nl": "Dutch",
    "be-latin1": "Belgian",
    "fr_CH": "French (Switzerland)",
    "de_CH-latin1": "German (Switzerland)",
    "dk": "Danish",
    "no": "Norwegian",
    "se-latin1": "Swedish",
    "fi": "Finnish",
    "pl": "Polish",
    "cz": "Czech",
    "hu": "Hungarian",
    "ru": "Russian",
    "trq": "Turkish",
    "jp106": "Japanese",
}


def keymaps(folders: Iterable[Path] = FOLDERS) -> tuple[str, ...]:
    """The layouts there are, common ones first."""
    found = {
        match["name"]
        for folder in folders
        if folder.is_dir()
        for file in folder.rglob("*map*")
        if "include" not in file.parts and (match := _FILE.fullmatch(file.name))
    }
    common = [name for name in _COMMON if name in found]
    return (*common, *sorted(found - set(common)))


def choose_keyboard(session: Session, folders: Iterable[Path] = FOLDERS) -> None:
    """Let the person choose a layout, and load it."""
    names = keymaps(folders)
    if not names:
        session.screen.show(TITLE, "There are no keyboard layouts on this medium.")
        return
    last = session.answers.keymap
    chosen = session.screen.menu(
        TITLE,
        "What is the keyboard of this machine? (On a serial line the other end decides.)",
        [Choice(name, _COMMON.get(name, "")) for name in names],
        last if last in names else None,
    )
    if chosen is None:
        return
    try:
        load_keymap(session, chosen)
    except ImagerError as error:
        session.fail(error)
        return
    session.remember(keymap=chosen)


def load_keymap(session: Session, name: str) -> None:
    """Load a layout; ImagerError where that fails."""
    done = session.machine.run("loadkeys", "kbd", "--quiet", "--", name)
    if done.returncode:
        said = printable(done.stderr.strip().partition("\n")[0])
        raise ImagerError(f"the keyboard layout {name} cannot be loaded: {said}")
    session.journal.note(f"keyboard layout {name}")
