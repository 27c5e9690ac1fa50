"""How it ends: the log in a safe place, and the machine restarted or switched off."""

from __future__ import annotations

import os

from imager.errors import ImagerError, WriteFailedError
from imager.rescue.lock import working
from imager.rescue.places import choose_volume, mounted_to_write
from imager.rescue.screen import Choice
from imager.rescue.session import Session

_TITLE = "Save the log"


def save_log(session: Session, restored: str | None = None) -> None:
    """Copy the journal to the stick, or to another disk of the person's choice.

    Not to the disk called `restored`, which shall stay as its image was.
    """
    volume = choose_volume(session, _TITLE, "Where shall the log go?", restored)
    if volume is None:
        return
    name = f"rescue-{session.machine.clock():%Y-%m-%d-%H%M%S}.log"
    try:
        with (
            working(session.lock, session.words("saving the log")),
            mounted_to_write(session, volume) as root,
        ):
            folder = root / "imager/logs"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("x", encoding="utf-8") as file:
                    file.write(session.journal.text())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise WriteFailedError(f"{name} cannot be written: {error.strerror}") from None
    except ImagerError as error:
        session.fail(error)
        return
    session.journal.note(f"the log was saved as imager/logs/{name} on {volume.title}")
    session.screen.show(_TITLE, f"It is saved: imager/logs/{name} on {volume.title}.")


def restart_or_switch_off(session: Session) -> None:
    """Ask which, and do it."""
    chosen = session.screen.menu(
        "Restart or switch off",
        "Remove the stick while the screen is dark.",
        (
            Choice("restart", "Restart the machine"),
            Choice("off", "Switch the machine off"),
        ),
    )
    if chosen is not None:
        power(session, "reboot" if chosen == "restart" else "poweroff")


def power(session: Session, verb: str) -> None:
    """`reboot` or `poweroff`; refused while another console is at work."""
    try:
        with working(session.lock, session.words(f"about to {verb}")):
            session.journal.note(verb)
            done = session.machine.run("systemctl", "systemd", verb)
            if done.returncode:
                raise ImagerError(f"systemctl {verb} failed: {done.stderr.strip()}")
            words = "restarts" if verb == "reboot" else "switches itself off"
            session.screen.notice("Good luck", f"The machine {words} ...")
            session.machine.pause()
    except ImagerError as error:
        session.fail(error)
