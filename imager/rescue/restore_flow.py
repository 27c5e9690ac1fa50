"""Bring this machine back: image, disk, plan, the typed name, the restore, and what to do then.

Nothing is written before the disk's name has been typed; Escape leads one step back until then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from imager.check import CheckResult, DamagedError, check, layout_of
from imager.errors import ImagerError, RefusedError
from imager.extents import Extents
from imager.image.origin import FileOrigin
from imager.layout.model import DiskLayout
from imager.pipeline import Progress
from imager.rescue.boot import try_the_boot
from imager.rescue.endings import power, save_log
from imager.rescue.found_image import open_found
from imager.rescue.image_choice import choose_image
from imager.rescue.image_list import USABLE, Findings, Located, name_of, on_share, place_name
from imager.rescue.lock import working
from imager.rescue.screen import Choice, walk
from imager.rescue.session import Session, without_mounts
from imager.rescue.targets import Target, describe_contents, preselected, targets
from imager.rescue.work import BrokenOffError, Meter, run_work
from imager.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore, restore
from imager.wording import format_size
from imager.words.layout import volumes_hit
from imager.words.restore import plan_lines, result_lines

TITLE = "Bring this machine back"
_NOTHING_WRITTEN = "Nothing was written."
_HALF_WRITTEN = (
    "The disk is half written and has no partition table: it will not start, but nothing else "
    "is hurt. Restore once more onto it, or onto another disk."
)
_WHOLE = RestoreOptions()
_SALVAGE = RestoreOptions(salvage=True)
_THEN = {
    False: "First the whole image is verified; if it is damaged, the disk stays as it is.",
    True: "What is intact of the image is put onto it; the system may not start.",
}
"""What a restore does then, by whether it salvages."""
_SALVAGE_MEANS = (
    "Is there an older image, or a copy of this one? It may be whole: choose that.\n\n"
    "Otherwise what is intact can be put onto a disk. Where something is missing the disk keeps what "
    "is on it now: files there are broken, and the system may not start."
)


@dataclass(frozen=True)
class _Done:
    plan: RestorePlan
    result: RestoreResult


class RestoreFlow:
    """One way through the steps, which may go back and forth."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._findings: Findings | None = None
        self._image: Located | None = None
        self._targets: tuple[Target, ...] = ()
        self._target: Target | None = None
        self._options = _WHOLE
        self._lost = Extents()
        """What the verification of the image has found missing."""
        self._done: _Done | None = None

    def run(self) -> None:
        """From the list of images to a restored disk, as often as the person begins anew."""
        last_steps = (self._see_plan, self._type_name)
        while self._done is None:
            if not walk(self._choose_image, self._choose_target, *last_steps):
                return
            self._carry_out()
            if self._lost and walk(self._salvage_onto_target, *last_steps):
                self._carry_out()
            # What is attached may have changed, above all after a failure.
            self._findings = None
        self._what_now(self._done)

    def _choose_image(self) -> bool:
        question = "Which image shall be put onto a disk?"
        while True:
            found = choose_image(
                self._session, TITLE, question, self._findings, self._image, damaged=True
            )
            if found is None:
                return False
            self._findings, self._image = found
            self._options, self._lost = _WHOLE, Extents()
            if self._image[0].verdict in USABLE or self._salvage_of_list():
                return True

    @contextmanager
    def _opened(self, what: str) -> Iterator[FileOrigin]:
        """The chosen image, while this console is at work at `what`."""
        session = self._session
        image, share = self._located()
        with ExitStack() as stack:
            stack.enter_context(working(session.lock, session.words(what)))
            yield stack.enter_context(open_found(on_share(session, image, share, stack)))

    def _choose_target(self) -> bool:
        session = self._session
        image, _ = self._located()
        session.screen.notice(TITLE, "Looking which disks can take it ...")
        try:
            with self._opened("looking at the disks") as origin:
                self._targets = targets(session.machine.disks(), origin, self._options)
        except ImagerError as error:
            session.fail(error, _NOTHING_WRITTEN)
            self._findings = None
            return False
        first = preselected(self._targets, image.disk)
        chosen = first.disk.identity.name if first else None
        while True:
            chosen = session.screen.menu(
                TITLE,
                f"Onto which disk shall {name_of(image)} be put?\n"
                "All that is on that disk now will be lost.",
                [_target_choice(target) for target in self._targets],
                chosen,
            )
            if chosen is None:
                return False
            self._target = next(
                target for target in self._targets if target.disk.identity.name == chosen
            )
            if self._target.plan is not None:
                return True
            reason = without_mounts(self._target.reason)
            session.screen.show("This disk cannot be used", f"{reason}.")

    def _see_plan(self) -> bool:
        text = "\n".join(self._plan_lines())
        return bool(self._session.screen.confirm("The plan", text, yes="Go on", no="Back"))

    def _type_name(self) -> bool:
        plan = self._plan()
        name = plan.target.name
        answer = self._session.screen.ask(
            "The last question",
            f"{plan.target.describe()}\n\n"
            f"Everything on this disk will be lost. {_THEN[self._options.salvage]}\n\n"
            f"Type  {name}  to begin.",
        )
        if answer is None:
            return False
        if answer == name:
            return True
        self._session.screen.show(
            "Not begun", f"That was not {name}. Nothing was written; you can try again."
        )
        return self._type_name()

    def _carry_out(self) -> None:
        session, plan = self._session, self._plan()
        image, _ = self._located()
        self._lost = Extents()
        session.journal.note(f"restore of {name_of(image)}", *self._plan_lines())
        meter = Meter()
        touched: list[str] = []

        def before_writing() -> None:
            meter.check()
            touched.append(plan.target.name)

        def work(progress: Progress) -> _Done:
            with self._opened(f"restoring onto {plan.target.name}") as origin:
                fresh = plan_restore(origin, plan.target.path, self._options)
                if fresh.target != plan.target:
                    raise RefusedError(
                        f"{plan.target.name} is another disk now ({fresh.target.describe()}): "
                        "look at the list of disks again"
                    )
                return _Done(fresh, restore(origin, fresh, progress, before_writing))

        try:
            done = run_work(
                session.screen,
                f"Restoring onto {plan.target.name}",
                work,
                "Break off the restore? Once writing has begun the disk's old content is lost, "
                "and a disk half written does not start.",
                meter,
            )
        except DamagedError as error:
            session.journal.note(f"failed: {without_mounts(str(error))}")
            self._lost = error.lost
            return
        except ImagerError as error:
            session.fail(_in_words(error), _HALF_WRITTEN if touched else _NOTHING_WRITTEN)
            return
        session.journal.note(*result_lines(done.plan, done.result))
        session.remember(machine=image.host or "")
        self._done = done

    def _salvage_of_list(self) -> bool:
        """Look what is left of an image that is known not to be whole; whether to go on with it."""
        session = self._session
        image, _ = self._located()

        def look(progress: Progress) -> CheckResult:
            with self._opened(f"looking into {name_of(image)}") as origin:
                checked = check(origin.path, progress=progress)
                checked.require_anything(checked.head.disk_size)
                return checked

        try:
            checked = run_work(session.screen, TITLE, look, "Break off? Nothing was written.")
            layout = layout_of(checked.head)
        except ImagerError as error:
            session.fail(error, _NOTHING_WRITTEN)
            return False
        self._options, self._lost = _SALVAGE, checked.lost
        return self._agrees(f"{image.path}: {image.note}. ", layout)

    def _salvage_onto_target(self) -> bool:
        """Once more onto the same disk, now with what is intact of the image; whether to go on."""
        session, plan = self._session, self._plan()
        try:
            # A disk that was unplugged meanwhile looks like damage, too.
            with self._opened("looking at the disk") as origin:
                new = plan_restore(origin, plan.target.path, _SALVAGE)
        except ImagerError as error:
            session.fail(error, _NOTHING_WRITTEN)
            return False
        assert self._target is not None
        self._options, self._target = _SALVAGE, replace(self._target, plan=new)
        return self._agrees("", plan.layout)

    def _agrees(self, known: str, layout: DiskLayout) -> bool:
        """Whether the person wants what is left, after reading what is lost."""
        image, _ = self._located()
        hit = ", ".join(volumes_hit(layout, self._lost))
        return bool(
            self._session.screen.confirm(
                "The image is damaged",
                f"{known}{format_size(self._lost.total)} of {format_size(layout.size)} cannot be "
                f"brought back from {name_of(image)}; this hits {hit}. {_NOTHING_WRITTEN}\n\n"
                f"{_SALVAGE_MEANS}",
                yes="Salvage",
                no="Back",
                careful=True,
            )
        )

    def _what_now(self, done: _Done) -> None:
        session = self._session
        salvaged = done.result.verdict == "failed"
        what = "What was intact of the image" if salvaged else "The image"
        lines = [*result_lines(done.plan, done.result), "", f"{what} is on the disk. What now?"]
        chosen: str | None = "restart"
        while True:
            chosen = session.screen.menu(
                "Done" if done.result.verdict == "ok" else "Done, with gaps",
                "\n".join(lines),
                (
                    Choice("restart", "Restart now: remove the stick while the screen is dark"),
                    Choice("boot", "Try the boot: make the firmware start this disk"),
                    Choice("log", "Save the log of what was done"),
                    Choice("menu", "Back to the menu"),
                ),
                chosen,
            )
            if chosen == "restart":
                power(session, "reboot")
            elif chosen == "boot":
                try_the_boot(session, done.plan.target)
            elif chosen == "log":
                save_log(session, done.plan.target.name)
            else:
                return

    def _plan_lines(self) -> list[str]:
        image, share = self._located()
        return list(plan_lines(self._plan(), place_name(image, share)))

    def _located(self) -> Located:
        assert self._image is not None
        return self._image

    def _plan(self) -> RestorePlan:
        assert self._target is not None and self._target.plan is not None
        return self._target.plan


def _target_choice(target: Target) -> Choice:
    identity = target.disk.identity
    usable = "can be used   " if target.plan else "cannot be used"
    what = identity.describe().partition(": ")[2]
    content = f"On it: {describe_contents(target.disk)}"
    return Choice(identity.name, f"{usable}  {what}", without_mounts(target.reason) or content)


def _in_words(error: ImagerError) -> ImagerError:
    if isinstance(error, BrokenOffError):
        return BrokenOffError("the restore was broken off")
    return error
