"""Save this machine's disk first: a machine that will not start may still be saved.

The disk is only read. Where it is dying, reading goes on past what cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from imager.capture import CaptureOptions, CaptureResult, capture
from imager.disk.inventory import Disk
from imager.errors import ImagerError, ReadFailedError, RefusedError, WriteFailedError
from imager.image.sink import MAX_PART
from imager.pipeline import Progress
from imager.preview import preview
from imager.rescue.hardware import Health, smart_health
from imager.rescue.lock import working
from imager.rescue.media import MediaVolume
from imager.rescue.places import choose_volume, free_bytes, mounted_to_write
from imager.rescue.screen import Choice, walk
from imager.rescue.session import Session
from imager.rescue.targets import describe_contents
from imager.rescue.work import BrokenOffError, run_work
from imager.wording import format_size
from imager.words.capture import result_lines

TITLE = "Save this machine's disk"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_PATIENT = "No problem of the disk is known."


@dataclass
class _Wish:
    disk: Disk | None = None
    health: Health | None = None
    past_errors: bool = False
    """Go on past what cannot be read."""
    volume: MediaVolume | None = None
    needed: int | None = None
    """About how large the image will be, bytes; None where that is not known."""
    free: int | None = None
    """Bytes on `volume`; None where that is not known."""
    name: str = ""
    file: str = ""


class CaptureFlow:
    """One way through the steps, which may go back and forth."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._wish = _Wish()

    def run(self) -> None:
        """From the choice of the disk to its image."""
        steps = (self._choose_disk, self._choose_place, self._see_room, self._choose_name)
        while walk(*steps, self._see_plan):
            if self._carry_out(CaptureOptions(continue_on_read_error=self._wish.past_errors)):
                return

    def _choose_disk(self) -> bool:
        session = self._session
        disks = session.machine.disks()
        if not disks:
            session.screen.show(TITLE, "No disk was found. Is its cable in its place?")
            return False
        names = [disk.identity.name for disk in disks]
        chosen: str | None = min(disks, key=_is_plugged_in).identity.name
        if self._wish.disk is not None:
            chosen = self._wish.disk.identity.name
        while True:
            chosen = session.screen.menu(
                TITLE,
                "Which disk shall be saved? It is only read.",
                [_choice(disk) for disk in disks],
                chosen,
            )
            if chosen is None:
                return False
            self._wish.disk, self._wish.needed = disks[names.index(chosen)], None
            if self._take_care(self._wish.disk):
                return True

    def _take_care(self, disk: Disk) -> bool:
        """Ask the disk how it is, and the person where it is bad; False: another disk."""
        session = self._session
        session.screen.notice(TITLE, "Asking the disk how it is ...")
        health = smart_health(session.machine.run, disk.identity.path)
        self._wish.health = health
        self._wish.past_errors = False
        if not health.is_bad:
            return True
        answer = session.screen.confirm(
            "This disk is dying",
            f"{health.words}\n\nShall reading go on past what cannot be read? What is lost is "
            "listed, and becomes zeros. (Each start of this machine may be the disk's last: save "
            "it now.)",
            yes="Go on past",
            no="Stop at it",
        )
        self._wish.past_errors = bool(answer)
        return answer is not None

    def _choose_place(self) -> bool:
        self._wish.volume = choose_volume(
            self._session, TITLE, "Where shall the image go?", self._disk().identity.name
        )
        return self._wish.volume is not None

    def _see_room(self) -> bool | None:
        """Whether to go on where there seems to be too little room; nothing is asked otherwise."""
        session, wish = self._session, self._wish
        session.screen.notice(TITLE, "Looking how much room there is ...")
        try:
            wish.free = free_bytes(session, self._volume())
        except (ImagerError, OSError):
            wish.free = None  # writing to it will tell
        if wish.needed is None and not self._estimate():
            return False
        if wish.needed is None or wish.free is None or wish.needed <= wish.free:
            return None
        return session.screen.confirm(
            "There is too little room",
            f"The image will have about {format_size(wish.needed)}, and {format_size(wish.free)} are "
            f"free on {self._volume().title}.\n\nChoose another place, or attach another disk. If "
            "the image does not fit after all, what was saved until then is kept as an unfinished "
            "image.",
            yes="Try it",
            no="Back",
            careful=True,
        )

    def _estimate(self) -> bool:
        """Find out about how large the image will be; False where the person broke it off.

        Not of a disk that is dying, which has to be read once more for it, nor where that fails: the
        capture itself says why.
        """
        if self._wish.health is not None and self._wish.health.is_bad:
            return True
        disk = self._disk().identity

        def look(progress: Progress) -> int:
            with working(self._session.lock, self._session.words(f"looking at {disk.name}")):
                return preview(disk.path, progress=progress).expected_size

        try:
            self._wish.needed = run_work(
                self._session.screen, f"How large will the image of {disk.name} be?", look,
                "Break off? Nothing was saved yet.",
            )  # fmt: skip
        except BrokenOffError:
            return False
        except ImagerError as error:
            self._session.journal.note(f"the image's size is not known: {error}")
        return True

    def _choose_name(self) -> bool:
        session = self._session
        name = self._wish.name or session.answers.machine or _product_name(session)
        while True:
            answer = session.screen.ask(
                TITLE,
                "What is the machine called? The image is listed by that name.\n"
                "(Letters, digits, hyphens, dots and underscores.)",
                name,
            )
            if answer is None:
                return False
            if _NAME.fullmatch(answer):
                self._wish.name = answer
                return True
            session.screen.show(TITLE, "Such a name cannot be the name of a file everywhere.")
            name = answer

    def _see_plan(self) -> bool:
        wish, disk = self._wish, self._disk()
        past = "passed over, and listed" if wish.past_errors else "the end of it, after asking"
        volume = self._volume()
        moment = f"{self._session.machine.clock():%Y-%m-%d-%H%M%S}"
        wish.file = f"{wish.name}-{disk.identity.name}-{moment}.img"
        lines = [
            f"Disk    {disk.identity.describe()}",
            f"        {describe_contents(disk)}",
            f"        {wish.health.words if wish.health else _PATIENT}",
            f"Image   images/{wish.file}",
            f"        on {volume.describe()}",
            *self._room_lines(),
            "",
            "The disk is only read. The image is checked when it is complete.",
            f"What cannot be read is {past}.",
        ]
        return bool(
            self._session.screen.confirm("The plan", "\n".join(lines), yes="Go on", no="Back")
        )

    def _room_lines(self) -> Iterator[str]:
        needed, free = self._wish.needed, self._wish.free
        if free is not None:
            about = f"about {format_size(needed)} are needed, " if needed is not None else ""
            yield f"        {about}{format_size(free)} are free there"

    def _carry_out(self, options: CaptureOptions) -> bool:
        """Whether there is an image at the end; otherwise the person is asked again."""
        session, disk = self._session, self._disk()
        name = self._wish.file
        session.journal.note(f"capture of {disk.identity.describe()} as {name}")
        try:
            result = run_work(
                session.screen,
                f"Saving {disk.identity.name}",
                lambda progress: self._capture(name, options, progress),
                "Break off? What was saved so far is kept as an unfinished image.",
            )
        except ReadFailedError as error:
            session.journal.note(f"failed: {error}")
            if not options.continue_on_read_error and session.screen.confirm(
                "The disk cannot be read everywhere",
                f"{error}.\n\nGo on past what cannot be read? What is lost is listed, and becomes "
                "zeros. What was saved so far is kept.",
                yes="Go on past",
                no="Stop",
            ):
                self._wish.past_errors = True
                return self._carry_out(replace(options, continue_on_read_error=True, resume=True))
            return False
        except ImagerError as error:
            session.fail(error, "The disk was only read.")
            return False
        lines = result_lines(result)
        session.journal.note(*lines)
        session.remember(machine=self._wish.name)
        session.screen.show("Saved", "\n".join(lines))
        return True

    def _capture(self, name: str, options: CaptureOptions, progress: Progress) -> CaptureResult:
        session, disk, volume = self._session, self._disk(), self._volume()
        with (
            working(session.lock, session.words(f"saving {disk.identity.name}")),
            mounted_to_write(session, volume) as root,
        ):
            folder = root / "images"
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise WriteFailedError(
                    f"no folder can be made on {volume.title}: {error.strerror}"
                ) from None
            if folder.is_symlink():
                raise RefusedError(f"images on {volume.title} leads elsewhere: remove that link")
            options = replace(
                options,
                host=self._wish.name,
                verify=True,
                split=MAX_PART if volume.kind == "vfat" else None,
            )
            return capture(disk.identity.path, folder / name, options, progress)

    def _disk(self) -> Disk:
        assert self._wish.disk is not None
        return self._wish.disk

    def _volume(self) -> MediaVolume:
        assert self._wish.volume is not None
        return self._wish.volume


def _product_name(session: Session) -> str:
    """What the firmware calls the machine, as a name; else "machine"."""
    try:
        text = (session.machine.sys / "class/dmi/id/product_name").read_text("utf-8", "replace")
    except OSError:
        text = ""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text.strip()).strip("-.")[:40]
    return name if _NAME.fullmatch(name) else "machine"


def _is_plugged_in(disk: Disk) -> bool:
    """Whether it is rather what a person has brought along than the machine's own."""
    return disk.is_system or disk.identity.removable or disk.identity.transport == "usb"


def _choice(disk: Disk) -> Choice:
    what = disk.identity.describe().partition(": ")[2]
    mark = " (this rescue system)" if disk.is_system else ""
    return Choice(disk.identity.name, f"{what}{mark}", f"On it: {describe_contents(disk)}")
