"""One run of a schedule: capture, prune, check by turns; and word of it to whoever wants to know.

The store not being there is an outcome of its own: an unplugged USB disk is nothing that went
wrong, and whether it has been away for too long is for `imager status` to say.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from imager.errors import (
    EXIT_DEGRADED,
    EXIT_OK,
    ImageError,
    ImagerError,
    MissingToolError,
    StoreAbsentError,
)
from imager.pipeline import Progress, no_progress
from imager.schedule import calendar
from imager.schedule.find_disk import find_disk
from imager.schedule.hooks import ping, run_hook
from imager.schedule.job import Job
from imager.schedule.metrics import Metric, write_metrics
from imager.schedule.notify import awake
from imager.schedule.state import LastRun, read_last_run, write_last_run
from imager.store.capture import StoredCapture, capture_into, disk_folder
from imager.store.catalog import read_folder
from imager.store.checking import check_family, due_for_check, families
from imager.store.folder import open_store
from imager.store.prune import PruneReport, prune
from imager.wording import format_size, printable

DAY = datetime.timedelta(days=1)
Clock = Callable[[], datetime.datetime]


@dataclass(frozen=True)
class RunResult:
    """How a run went."""

    outcome: str
    """As `LastRun.outcome`."""
    exit_code: int
    line: str
    """All of it in one line, for a journal."""
    warnings: tuple[str, ...]
    """What else should be known, a line each."""


@dataclass
class _Run:
    """What has happened so far."""

    job: Job
    failures: list[ImagerError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    captured: StoredCapture | None = None
    pruned: PruneReport | None = None
    checked: int = 0
    images: int = 0
    free: tuple[int, int] = (0, 0)

    @property
    def outcome(self) -> str:
        if self.failures:
            absent = isinstance(self.failures[0], StoreAbsentError)
            return "absent" if absent else "failed"
        degraded = self.captured is not None and self.captured.result.verdict == "degraded"
        return "degraded" if degraded else "ok"

    @property
    def exit_code(self) -> int:
        if self.failures:
            return self.failures[0].exit_code
        return EXIT_DEGRADED if self.outcome == "degraded" else EXIT_OK


def local_clock() -> datetime.datetime:
    """The time now, in the machine's zone."""
    return datetime.datetime.now().astimezone()


def run_job(
    job: Job, state: Path, progress: Progress = no_progress, clock: Clock = local_clock
) -> RunResult:
    """Carry out a schedule's job once. Whatever fails is in the result; nothing is raised."""
    begun, started = time.monotonic(), clock()
    run = _Run(job)
    facts = {"SCHEDULE": job.name, "STORE": str(job.store)}
    with awake(f"backing up {job.disk}"):
        try:
            if job.before and (status := run_hook(job.before, facts)):
                run.failures.append(ImagerError(f"the --before command failed with {status}"))
            else:
                _work(run, progress, clock)
        finally:
            facts |= {"OUTCOME": run.outcome, "EXIT_STATUS": str(run.exit_code)}
            if job.after and (status := run_hook(job.after, facts)):
                run.warnings.append(f"the --after command failed with {status}")
    seconds = time.monotonic() - begun
    line = _line(run, seconds)
    if run.outcome == "failed" and job.on_failure:
        status = run_hook(job.on_failure, {**facts, "MESSAGE": line})
        if status:
            run.warnings.append(f"the --on-failure command failed with {status}")
    if run.outcome in ("ok", "degraded") and job.ping and (why := ping(job.ping)):
        run.warnings.append(f"{job.ping} was not reached: {why}")
    _keep(run, state, line, started, seconds)
    return RunResult(run.outcome, run.exit_code, line, tuple(run.warnings))


def _work(run: _Run, progress: Progress, clock: Clock) -> None:
    job = run.job
    try:
        store = open_store(job.store)
    except (ImagerError, OSError) as error:
        run.failures.append(_as_failure(error))
        return
    try:
        device = find_disk(job.disk, job.device)
        run.captured = capture_into(
            store, device, job.capture_options(), clock(), progress=progress
        )
        if run.captured.healed:
            size = format_size(run.captured.healed.total)
            run.warnings.append(f"{size} that a check had found damaged were stored again")
    except (ImagerError, OSError) as error:
        run.failures.append(_as_failure(error))
    # Also after a failure: that may be for want of the space which this gives back.
    try:
        folder = disk_folder(store, platform.node(), job.disk)
        if folder.is_dir():
            run.pruned = prune(store, job.rules, clock(), only=folder, progress=progress)
            run.warnings += run.pruned.notes
            _check_some(run, folder, progress, clock)
            run.images = len(read_folder(folder).complete)
        run.free = store.free()
    except (ImagerError, OSError) as error:
        run.failures.append(_as_failure(error))


def _as_failure(error: ImagerError | OSError) -> ImagerError:
    if isinstance(error, ImagerError):
        return error
    where = f"{error.filename}: " if error.filename else ""
    return ImagerError(f"{where}{error.strerror or error}")


def _check_some(run: _Run, folder: Path, progress: Progress, clock: Clock) -> None:
    job, now = run.job, clock()
    if job.check_within is None:
        return
    found = read_folder(folder)
    groups = families(found, found.of(printable(platform.node()), job.disk))
    within = now - job.check_within.before(now)
    due = due_for_check(groups, now, within, interval_of(job, now))
    for image, verdict, problem in chain.from_iterable(
        check_family(family, clock, progress) for family in due
    ):
        run.checked += 1
        if verdict == "failed":
            run.failures.append(
                ImageError(
                    f"{image.files.path} is damaged: {problem}; what is still on the disk "
                    "is stored again by the next run"
                )
            )


def interval_of(job: Job, now: datetime.datetime) -> datetime.timedelta:
    """The longest time between two runs, as far as can be told."""
    try:
        return calendar.longest_gap(calendar.upcoming(job.calendar, now)) or DAY
    except MissingToolError:
        return DAY  # run by something else than systemd


def _line(run: _Run, seconds: float) -> str:
    parts = []
    if run.captured is not None:
        kind = "incremental" if run.captured.parent else f"full: {run.captured.why_full}"
        parts.append(f"{run.captured.image.name}, {format_size(run.captured.size)} ({kind})")
    if run.pruned is not None and run.pruned.expired:
        parts.append(f"{len(run.pruned.expired)} given up")
    if run.checked:
        parts.append(f"{run.checked} checked")
    parts += (str(failure) for failure in run.failures)
    return f"{run.job.name}: {run.outcome}: {'; '.join(parts)}; {seconds:.0f} s"


def _keep(run: _Run, state: Path, line: str, started: datetime.datetime, seconds: float) -> None:
    """The result for `imager status` and for Prometheus."""
    job = run.job
    before = read_last_run(state, job.name)
    success = started if run.captured else before.last_success if before else None
    try:
        write_last_run(state, job.name, LastRun(started, run.outcome, line, success))
        if job.metrics:
            write_metrics(Path(job.metrics), _metrics(run, started, success, seconds), job.name)
    except OSError as error:
        run.warnings.append(f"{error.filename}: {error.strerror}")


def _metrics(
    run: _Run,
    started: datetime.datetime,
    success: datetime.datetime | None,
    seconds: float,
) -> list[Metric]:
    metrics = [
        Metric("run_timestamp_seconds", "When the last run began.", started.timestamp()),
        Metric("run_duration_seconds", "How long the last run took.", round(seconds, 3)),
        Metric("run_exit_status", "Exit status of the last run; 10: no store.", run.exit_code),
    ]
    if success is not None:
        metrics.append(
            Metric("image_timestamp_seconds", "When an image was last made.", success.timestamp())
        )
    if run.captured is not None:
        metrics.append(Metric("image_added_bytes", "Size of the last image.", run.captured.size))
        metrics.append(Metric("images", "Images of this disk in the store.", run.images))
    if run.free != (0, 0):
        metrics.append(Metric("store_free_bytes", "Free in the store.", run.free[0]))
        metrics.append(Metric("store_size_bytes", "Size of the store.", run.free[1]))
    return metrics
