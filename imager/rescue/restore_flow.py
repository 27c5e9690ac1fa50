"""Bring this machine back: image, disk, plan, the typed name, the restore, and what to do then.

Nothing is written before the disk's name has been typed; Escape leads one step back until then.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from imager.errors import ImagerError, RefusedError
from imager.pipeline import Progress
from imager.rescue.boot import try_the_boot
from imager.rescue.endings import power, save_log
from imager.rescue.finder import open_found
from imager.rescue.image_list import (
    Findings,
    Located,
    choices,
    name_of,
    on_share,
    place_name,
    search,
)
from imager.rescue.lock import working
from imager.rescue.screen import Choice, walk
from imager.rescue.session import Session, without_mounts
from imager.rescue.targets import Target, describe_contents, preselected, targets
from imager.rescue.work import BrokenOffError, Meter, run_work
from imager.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore, restore
from imager.words.restore import plan_lines, result_lines

TITLE = "Bring this machine back"
_AGAIN = "+"
_PROBLEMS = "?"
_NOTHING_WRITTEN = "Nothing was written."
_HALF_WRITTEN = (
    "The disk is half written and has no partition table: it will not start, but nothing else "
    "is hurt. Restore once more onto it, or onto another disk."
)
_OPTIONS = RestoreOptions()


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
        self._done: _Done | None = None

    def run(self) -> None:
        """From the list of images to a restored disk, as often as the person begins anew."""
        while self._done is None:
            steps = (self._choose_image, self._choose_target, self._see_plan, self._type_name)
            if not walk(*steps):
                return
            self._carry_out()
            # What is attached may have changed, above all after a failure.
            self._findings = None
        self._what_now(self._done)

    def _choose_image(self) -> bool:
        question = "Which image shall be put onto a disk?"
        found = choose_image(self._session, TITLE, question, self._findings, self._image)
        if found is None:
            return False
        self._findings, self._image = found
        return True

    def _choose_target(self) -> bool:
        session = self._session
        image, share = self._located()
        session.screen.notice(TITLE, "Looking which disks can take it ...")
        try:
            with ExitStack() as stack:
                stack.enter_context(working(session.lock, session.words("looking at the disks")))
                place = on_share(session, image, share, stack)
                with open_found(place) as origin:
                    self._targets = targets(session.machine.disks(), origin, _OPTIONS)
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
            "Everything on this disk will be lost. First the whole image is verified; if it is "
            f"damaged, the disk stays as it is.\n\nType  {name}  to begin.",
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
        image, share = self._located()
        session.journal.note(f"restore of {name_of(image)}", *self._plan_lines())
        meter = Meter()
        touched: list[str] = []

        def before_writing() -> None:
            meter.check()
            touched.append(plan.target.name)

        def work(progress: Progress) -> _Done:
            with ExitStack() as stack:
                stack.enter_context(
                    working(session.lock, session.words(f"restoring onto {plan.target.name}"))
                )
                origin = stack.enter_context(open_found(on_share(session, image, share, stack)))
                fresh = plan_restore(origin, plan.target.path, _OPTIONS)
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
        except ImagerError as error:
            session.fail(_in_words(error), _HALF_WRITTEN if touched else _NOTHING_WRITTEN)
            return
        session.journal.note(*result_lines(done.plan, done.result))
        session.remember(machine=image.host or "")
        self._done = done

    def _what_now(self, done: _Done) -> None:
        session = self._session
        lines = [*result_lines(done.plan, done.result), ""]
        lines.append("The image is on the disk. What now?")
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


def choose_image(
    session: Session,
    title: str,
    text: str,
    findings: Findings | None,
    current: Located | None = None,
) -> tuple[Findings, Located] | None:
    """An image that can be used, and all that were found; None where the person goes back.

    Without `findings` it looks for images first; the cursor is on `current`, if it is among them.
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
            if image.verdict in ("ok", "degraded"):
                return findings, (image, share)
            screen.show(
                "This image cannot be used",
                f"{image.path}: {image.verdict}: {image.note}.\n\nChoose another one.",
            )


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
