"""Choosing an image from all that are found on disks and shares."""

from __future__ import annotations

from imager.errors import ImagerError
from imager.rescue.image_list import USABLE, VERDICTS, Findings, Located, choices, search
from imager.rescue.screen import Choice
from imager.rescue.session import Session

_AGAIN = "+"
_PROBLEMS = "?"


def choose_image(
    session: Session,
    title: str,
    text: str,
    findings: Findings | None,
    current: Located | None = None,
    damaged: bool = False,
) -> tuple[Findings, Located] | None:
    """An image that can be used, and all that were found; None where the person goes back.

    Without `findings` it looks for images first; the cursor is on `current`, if it is among them.
    With `damaged` one that is not whole may be chosen, too.
    """
    screen = session.screen
    chosen: str | None = None
    while True:
        if findings is None:
            try:
                findings = search(session)
            except ImagerError as error:
                session.fail(error)
                return None
        if chosen is None:
            number = findings.number_of(current)
            if number is None:
                disks, machine = session.machine.disks(), session.answers.machine
                number = findings.preselected(disks, machine)
            chosen = str(number + 1) if number is not None else _AGAIN
        lines = choices(findings, session.machine.clock())
        if not lines:
            text = (
                "No image was found. Attach the disk with the images and look again, or connect "
                "to the network share that holds them (in the menu before this one)."
            )
        lines.append(Choice(_AGAIN, "Look again, after attaching another disk"))
        if findings.problems:
            lines.append(Choice(_PROBLEMS, "What could not be looked into, and why"))
        chosen = screen.menu(title, text, lines, chosen)
        if chosen is None:
            return None
        if chosen == _AGAIN:
            findings = chosen = None
        elif chosen == _PROBLEMS:
            screen.show("Not looked into", "\n".join(f"{line}." for line in findings.problems))
        else:
            image, share = findings.images[int(chosen) - 1]
            if image.verdict in USABLE or (damaged and image.verdict != "unreadable"):
                return findings, (image, share)
            screen.show(
                "This image cannot be used",
                f"{image.path}: {VERDICTS[image.verdict].lower()}: {image.note}.\n\nChoose another one.",
            )
