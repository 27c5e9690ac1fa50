"""The program that a person sees whose machine has died: one menu, and the flows behind it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress

from imager.rescue.endings import restart_or_switch_off, save_log
from imager.rescue.hardware import firmware, report
from imager.rescue.journal import JOB_RESULT, Journal
from imager.rescue.keyboard import choose_keyboard
from imager.rescue.mount_places import clear_leftovers
from imager.rescue.screen import Choice, Screen, TerminalGoneError
from imager.rescue.session import Machine, Session
from imager.rescue.work import foreseen

_TITLE = "Rescue"
_WELCOME = (
    "Nothing is written to any disk before you have typed its name.\n"
    "If the disk still turns but the machine does not start, save it first."
)
_MENU = (
    Choice("restore", "Bring this machine back from an image"),
    Choice("save", "Save this machine's disk first"),
    Choice("check", "Check an image"),
    Choice("share", "Connect to a network share"),
    Choice("keys", "Keyboard layout"),
    Choice("report", "Hardware report"),
    Choice("log", "What was done so far; save it"),
    Choice("shell", "Shell, for those who know"),
    Choice("end", "Restart or switch off"),
)


def open_session(screen: Screen, machine: Machine) -> Session:
    """A session at `screen`; what a killed program left mounted is cleared."""
    session = Session(screen, machine, Journal(machine.state / "rescue.log", machine.clock))
    session.journal.note(*clear_leftovers(machine.state))
    session.journal.note(f"the rescue program was started; {firmware(machine)}")
    return session


def run(session: Session, leave: bool = False) -> None:
    """The menu, until the person leaves it; on the medium there is nowhere to leave to."""
    actions: dict[str, Callable[[Session], None]] = {
        "restore": _restore,
        "save": _save,
        "check": _check,
        "share": _share,
        "keys": choose_keyboard,
        "report": _report,
        "log": _log,
        "shell": _shell,
        "end": restart_or_switch_off,
    }
    _tell_of_job(session)
    chosen: str | None = "restore"
    while True:
        last = chosen
        chosen = session.screen.menu(_TITLE, _WELCOME, _MENU, chosen)
        if chosen is None:
            if leave:
                return
            chosen = last
            continue
        try:
            actions[chosen](session)
        except TerminalGoneError:
            raise
        except Exception as error:
            session.fail(foreseen(error))


def _tell_of_job(session: Session) -> None:
    """How the unattended job ended, where there was one: the menu would hide it."""
    with suppress(OSError):
        text = (session.machine.state / JOB_RESULT).read_text("utf-8", "replace")
        session.screen.show("The job on the kernel line", text)


# The menu is there before the verbs: on a slow machine their import takes seconds.


def _restore(session: Session) -> None:
    from imager.rescue.restore_flow import RestoreFlow

    RestoreFlow(session).run()


def _save(session: Session) -> None:
    from imager.rescue.capture_flow import CaptureFlow

    CaptureFlow(session).run()


def _check(session: Session) -> None:
    from imager.rescue.check_flow import check_images

    check_images(session)


def _share(session: Session) -> None:
    from imager.rescue.network_flow import ShareFlow

    ShareFlow(session).run()


def _report(session: Session) -> None:
    session.screen.notice("Hardware report", "Asking the disks how they are ...")
    session.screen.show("Hardware report", "\n".join(report(session.machine)))


def _log(session: Session) -> None:
    session.screen.show("What was done so far", session.journal.text())
    if session.screen.confirm("Save the log", "Save it to the stick, or to another disk?"):
        save_log(session)


def _shell(session: Session) -> None:
    session.journal.note("a shell was opened")
    with session.screen.aside():
        print("This is a shell. Type  exit  to come back to the menu.\n", flush=True)
        shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
        subprocess.run([shell], check=False)
