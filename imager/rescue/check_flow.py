"""Check an image: decode and hash all of it, before anybody relies on it."""

from __future__ import annotations

from contextlib import ExitStack

from imager.check import CheckResult, check
from imager.errors import ImagerError
from imager.pipeline import Progress
from imager.rescue.found_image import open_found
from imager.rescue.image_choice import choose_image
from imager.rescue.image_list import Findings, Located, name_of, on_share
from imager.rescue.lock import working
from imager.rescue.session import Session
from imager.rescue.work import run_work
from imager.words.check import report_lines

TITLE = "Check an image"


def check_images(session: Session) -> None:
    """Check one image after the other, until the person goes back."""
    findings: Findings | None = None
    located: Located | None = None
    while True:
        found = choose_image(session, TITLE, "Which image shall be checked?", findings, located)
        if found is None:
            return
        findings, located = found
        _check(session, located)


def _check(session: Session, located: Located) -> None:
    image, share = located
    name = name_of(image)

    def work(progress: Progress) -> CheckResult:
        with ExitStack() as stack:
            stack.enter_context(working(session.lock, session.words(f"checking {name}")))
            origin = stack.enter_context(open_found(on_share(session, image, share, stack)))
            return check(origin.path, progress=progress)

    try:
        result = run_work(session.screen, TITLE, work, "Break off the check?")
    except ImagerError as error:
        session.fail(error)
        return
    lines = [line.replace(str(result.path), image.path.name) for line in report_lines(result)]
    session.journal.note(*lines)
    session.screen.show(f"{TITLE}: {result.verdict}", "\n".join(lines))
