"""An unattended job: what the kernel line orders, done with the engine, said on every console.

A job is data, never a program: an image, a target, what to do afterwards. Whatever is unclear or goes
wrong ends with the reason on the consoles and in the log, and the machine stays as it is; only a
success leads to a restart, and only where the stick will remember it (see `ledger`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from imager.disk.inventory import Disk
from imager.errors import (
    EXIT_DEGRADED,
    EXIT_OK,
    ImagerError,
    RefusedError,
    UsageError,
    WriteFailedError,
)
from imager.image.format import INCOMPATIBLE_PARTIAL
from imager.rescue.choice import choose_target, image_at, is_blank, newest, with_label
from imager.rescue.finder import find_images
from imager.rescue.found_image import FoundImage, open_found
from imager.rescue.job_share import job_share
from imager.rescue.journal import JOB_RESULT, Journal
from imager.rescue.kernel_line import SHARE_LABEL, ImageChoice, Job, KernelLine, parse_kernel_line
from imager.rescue.ledger import MAX_ATTEMPTS, Ledger, Past
from imager.rescue.lock import working
from imager.rescue.media import MediaVolume, mounted_for_writing
from imager.rescue.mount_places import clear_leftovers
from imager.rescue.session import Machine
from imager.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore, restore
from imager.wording import format_size
from imager.words.progress import phase_words, rate_and_rest
from imager.words.restore import plan_lines, result_lines

LOG_FOLDER = "imager/logs"
LINE_SECONDS = 15.0
"""How often progress is said."""
QUIET_SECONDS = 5.0
"""So long no disk may have appeared before the attached ones are taken for all."""
WAIT_SECONDS = 60.0
"""How long a disk that is named is waited for."""

Say = Callable[..., None]
"""Writes lines for people."""


@dataclass(frozen=True)
class Clock:
    """Time passing; tests have their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    words: tuple[str, ...]
    """The same for a person."""
    done: bool
    """Whether the restore was carried out, now, to its end."""
    after: str
    """What the machine does now: "reboot", "poweroff" or "stay"."""
    status: int
    """As the command line's exit status."""


@dataclass
class _Work:
    """A job under way."""

    machine: Machine
    say: Say
    clock: Clock
    line: KernelLine
    job: Job
    ledger: Ledger
    name: str = ""
    """The job's id, once it is known."""
    unrecorded: str = ""
    """Why the ledger could not be written; empty where it was."""
    begun: Disk | None = None
    """The target, once it may have changed."""
    facts: dict[str, object] = field(default_factory=dict)


class _NotAgainError(RefusedError):
    """The job has run, or may have."""


def run_unattended(text: str, machine: Machine, say: Say, clock: Clock | None = None) -> Outcome:
    """Carry out the job on the kernel line `text`, saying what happens; never raises for a failure.

    The caller restarts the machine or not, as the outcome says.
    """
    journal = Journal(machine.state / "unattended.log", machine.clock)

    def both(*lines: str) -> None:
        journal.note(*lines)
        say(*lines)

    work: _Work | None = None
    try:
        line = parse_kernel_line(text)
        if line.job is None:
            raise UsageError("the kernel line has no job: imager.restore=auto is not on it")
        both("", f"Unattended restore: {' '.join(line.job.words)}")
        journal.note(*clear_leftovers(machine.state))
        ledger = Ledger(machine.data())
        work = _Work(machine, both, clock or Clock(), line, line.job, ledger)
        with working(machine.state / "lock", "an unattended restore"):
            outcome = _run(work)
    except ImagerError as error:
        outcome = _failed(
            work, both, str(error), error.exit_code, isinstance(error, _NotAgainError)
        )
    except Exception as error:
        reason = f"internal error ({type(error).__name__}: {error})"
        outcome = _failed(work, both, reason, ImagerError.exit_code, False)
    _keep_log(machine, journal, work, both)
    if outcome.after == "reboot":
        both("This machine will restart.")
    elif outcome.after == "poweroff":
        both("This machine will power off.")
    else:
        both("This machine stays on, and does not restart by itself. The menu is on its consoles.")
        _leave_result(machine, outcome)
    return outcome


def job_id(job: Job, image: FoundImage, disk: Disk) -> str:
    """The job's own id, else one made of all that it does: its words, the image, the target.

    For the newest image not which one that is: a stick that was left in the machine would restore
    again with each new backup.
    """
    if job.id is not None:
        return job.id
    identity = disk.identity
    which = image.uuid if job.image.path is not None else ""
    target = (identity.wwn, identity.serial, identity.model, str(identity.size))
    text = "\0".join((which, *(part or "" for part in target), *job.words))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _run(work: _Work) -> Outcome:
    with contextlib.ExitStack() as stack:
        volumes, disks = _settled(work)
        if work.line.share is not None and work.line.network is not None:
            work.say(f"Connecting to {work.line.share.address}")
            share = job_share(
                *(work.machine, work.line.network, work.line.share, work.machine.data()),
                sleep=work.clock.sleep,
            )
            volumes = (*volumes, stack.enter_context(share))
        return _restore(work, volumes, disks)


def _restore(work: _Work, volumes: tuple[MediaVolume, ...], disks: tuple[Disk, ...]) -> Outcome:
    image = _find_image(work, volumes)
    disk = choose_target(work.job.target, disks, image)
    work.name = job_id(work.job, image, disk)
    _require_first_time(work, disk)
    with open_found(image) as origin:
        if origin.head.incompatible & INCOMPATIBLE_PARTIAL:
            raise RefusedError(
                f"{image.path} holds only some partitions of its disk: restore it from the menu"
            )
        plan = plan_restore(origin, disk.identity.path, RestoreOptions())
        work.say(*plan_lines(plan))
        work.facts = _facts(work, image, plan)
        result = restore(
            *(origin, plan, _ProgressLines(work.say, work.clock)),
            before_writing=lambda: _record_begin(work, disk),
        )
    work.say(*result_lines(plan, result))
    return _finished(work, image, disk, result)


def _finished(work: _Work, image: FoundImage, disk: Disk, result: RestoreResult) -> Outcome:
    if not work.unrecorded:
        try:
            work.ledger.end(work.name, f"finished: {result.verdict}", work.facts)
        except ImagerError as error:
            # The attempt is on record, and the target is not blank: it will not be repeated.
            work.say(f"Note: that it is finished could not be recorded: {error}")
    when = f" of {image.created:%Y-%m-%d %H:%M}" if image.created else ""
    words = [
        f"The restore is finished: {image.host or 'the machine'}{when} is on "
        f"{disk.identity.describe()}, and was read back."
    ]
    after = {"shell": "stay"}.get(work.job.after, work.job.after)
    if work.unrecorded and after == "reboot":
        after = "poweroff"
        words.append(
            f"It does not restart: the job could not be recorded ({work.unrecorded}), and would be "
            "done again if this medium were started again. Remove it before you switch on."
        )
    elif work.unrecorded:
        words.append(
            f"The job could not be recorded ({work.unrecorded}): "
            "remove this medium, or it will be done again at the next start."
        )
    work.say("", *words)
    status = EXIT_DEGRADED if result.verdict == "degraded" else EXIT_OK
    return Outcome(tuple(words), True, after, status)


def _failed(work: _Work | None, say: Say, reason: str, status: int, again: bool) -> Outcome:
    if again:
        words = [f"Nothing is done: {reason}"]
    else:
        words = ["The unattended restore did not succeed.", f"Reason: {reason}"]
        if work is None or work.begun is None:
            words.append("Nothing was written to any disk.")
        else:
            words.append(
                f"{work.begun.identity.describe()}: its old content is lost, and it is not "
                "complete: do not start from it."
            )
            if not work.unrecorded:
                with contextlib.suppress(ImagerError):
                    work.ledger.end(work.name, f"failed: {reason}", work.facts)
    say("", *words)
    return Outcome(tuple(words), False, "stay", status)


def _settled(work: _Work) -> tuple[tuple[MediaVolume, ...], tuple[Disk, ...]]:
    """Where images may be, and the disks, once all of them have had time to appear."""
    work.say("Looking for disks.")
    with contextlib.suppress(ImagerError):
        work.machine.run("udevadm", "udev", "settle", "--timeout=30")
    begun = changed = work.clock.now()
    seen: tuple[object, ...] = ()
    while True:
        volumes, disks = work.machine.volumes(), work.machine.disks()
        now = work.clock.now()
        found = (tuple(volume.path for volume in volumes), tuple(d.identity.path for d in disks))
        if found != seen:
            seen, changed = found, now
        label = work.job.image.label
        awaited = label not in (None, SHARE_LABEL)
        missing = awaited and all(volume.label != label for volume in volumes)
        if now - changed >= QUIET_SECONDS and (not missing or now - begun >= WAIT_SECONDS):
            return volumes, disks
        work.clock.sleep(1)


def _find_image(work: _Work, volumes: tuple[MediaVolume, ...]) -> FoundImage:
    choice: ImageChoice = work.job.image
    if choice.label is not None:
        volumes = (with_label(volumes, choice.label),)
    if choice.path is not None:
        return image_at(volumes[0], choice)
    found = find_images(volumes, lambda volume: work.say(f"Looking into {volume.describe()}"))
    work.say(*(f"Note: {problem}" for problem in found.problems))
    return newest(found.images)


def _require_first_time(work: _Work, disk: Disk) -> None:
    """Refuse a job that has ended, or that has begun and may have."""
    past: Past = work.ledger.look(work.name)
    if past.end is not None:
        raise _NotAgainError(
            f"this job has run already ({past.end}). Remove this medium and restart, or choose "
            "from the menu. To have it done once more, write another imager.job=NAME"
        )
    if past.attempts == 0:
        return
    if not is_blank(disk):
        raise _NotAgainError(
            f"this job has begun before, its end is not known, and {disk.identity.describe()} is "
            "not blank: it may be complete, and in use since. Remove this medium and restart to "
            "see, or restore from the menu"
        )
    if past.attempts >= MAX_ATTEMPTS:
        raise _NotAgainError(
            f"this job has begun {past.attempts} times and never came to its end. "
            "Look into why (disk, power, memory), then restore from the menu"
        )
    work.say(
        f"This job has begun before and was interrupted; {disk.identity.describe()} is blank, "
        "as an interruption leaves it: the job is done again."
    )


def _record_begin(work: _Work, disk: Disk) -> None:
    try:
        work.ledger.begin(work.name, work.facts)
    except WriteFailedError as error:
        work.unrecorded = str(error)
        work.say(f"Note: the job cannot be recorded: {error}")
    work.begun = disk


def _facts(work: _Work, image: FoundImage, plan: RestorePlan) -> dict[str, object]:
    """What the record tells people."""
    return {
        "job": work.name,
        "begun": work.machine.clock().isoformat(timespec="seconds"),
        "words": list(work.job.words),
        "image": {"volume": image.volume.title, "path": str(image.path), "uuid": image.uuid},
        "target": plan.target.to_json(),
    }


def _keep_log(machine: Machine, journal: Journal, work: _Work | None, say: Say) -> None:
    """Copy the log to the stick, where there is one that can be written."""
    try:
        volume = machine.data()
        if volume is None:
            return
        stamp = f"{machine.clock():%Y%m%d-%H%M%S}"
        name = f"unattended-{stamp}-{work.name if work and work.name else 'none'}.txt"
        with mounted_for_writing(volume) as root:
            folder = root / LOG_FOLDER
            if folder.is_symlink() or folder.parent.is_symlink():
                return
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("x") as file:
                file.write(journal.text())
                file.flush()
                os.fsync(file.fileno())
        say(f"The log is on {volume.title}: {LOG_FOLDER}/{name}")
    except (ImagerError, OSError) as error:
        say(f"Note: the log is not on the stick: {error}")


def _leave_result(machine: Machine, outcome: Outcome) -> None:
    """For the menu, which would hide what stands on the consoles."""
    with contextlib.suppress(OSError):
        (machine.state / JOB_RESULT).write_text("\n\n".join(outcome.words) + "\n")


class _ProgressLines:
    """Progress as a line now and then."""

    def __init__(self, say: Say, clock: Clock) -> None:
        self._say = say
        self._clock = clock
        self._phase = ""
        self._begun = self._said = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """As `imager.pipeline.Progress`."""
        now = self._clock.now()
        if phase != self._phase:
            self._phase, self._begun, self._said = phase, now, now
            self._say(phase_words(phase) + (f" {format_size(total)}" if total else "") + " ...")
        elif total and done < total and now - self._said >= LINE_SECONDS:
            self._said = now
            percent = 100 * done // total
            rest = rate_and_rest(done, total, now - self._begun)
            self._say(f"{phase_words(phase)}: {percent}% of {format_size(total)}, {rest}")
