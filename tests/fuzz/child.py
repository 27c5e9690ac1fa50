"""Many damaged volumes for one reader, in a process of its own with bounded memory.

The child tells of findings through a pipe. What it works on stands in memory that both share, so
that the parent knows it even when the child was killed.
"""

from __future__ import annotations

import mmap
import pickle
import random
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.coverage import Lines
from tests.fuzz.damage import Damage, Mutator, Recorder
from tests.fuzz.judge import judge
from tests.fuzz.targets import Target
from tests.volumes import FileVolume

MEMORY = 256 << 20
"""Bytes of address space beyond what the process has when it begins."""
WALL_SECONDS = 300.0
"""Without a word for so long the child hangs in code that no signal interrupts."""

_NOTE_BYTES = 1 << 20
_MOST_SEEDS = 400
_TRACED = 0.3
_NEWS_SECONDS = 1.0


@dataclass
class Summary:
    """What came of one target."""

    target: str
    executions: int = 0
    answered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """How often the reader refused, and why."""
    lines: int = 0
    """Lines of the program that were reached."""
    findings: dict[str, tuple[str, Damage]] = field(default_factory=dict)
    """By kind and place: the whole text, and the first damage that led to it."""

    def add(self, finding: str, damage: Damage) -> None:
        """Remember a finding, unless there is one of its kind from its place."""
        self.findings.setdefault(finding.partition("\n")[0], (finding, damage))


class Limits(NamedTuple):
    """When a run ends: what comes first."""

    until: float
    """On the monotonic clock, in seconds."""
    executions: int
    first_finding: bool
    """Whether one finding is enough."""

    def allow(self, summary: Summary) -> bool:
        """Whether to go on."""
        enough = self.first_finding and summary.findings
        return summary.executions < self.executions and time.monotonic() < self.until and not enough


def fuzz(
    target: Target,
    path: Path,
    seed: int,
    seconds: float,
    executions: int = sys.maxsize,
    first_finding: bool = False,
) -> Summary:
    """Damage the volume in `path` for so long, or so often if that is less."""
    summary = Summary(target.name)
    limits = Limits(time.monotonic() + seconds, executions, first_finding)
    while limits.allow(summary):
        _run_child(summary, target, path, seed, limits)
        seed += 1
    return summary


def _run_child(summary: Summary, target: Target, path: Path, seed: int, limits: Limits) -> None:
    """One child, until all is done or it dies."""
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    note = mmap.mmap(-1, _NOTE_BYTES)
    left = limits._replace(executions=limits.executions - summary.executions)
    child = context.Process(target=_work, args=(target, path, seed, left, theirs, note))
    child.start()
    theirs.close()
    before = replace(summary, reasons=Counter(summary.reasons))
    try:
        while ours.poll(WALL_SECONDS):
            news: Summary = ours.recv()
            summary.executions = before.executions + news.executions
            summary.answered = before.answered + news.answered
            summary.reasons = before.reasons + news.reasons
            summary.lines = max(before.lines, news.lines)
            for finding, damage in news.findings.values():
                summary.add(finding, damage)
        child.kill()
        how = f"no word for {WALL_SECONDS:g} seconds"
    except EOFError:
        child.join()
        how = f"the process ended with status {child.exitcode}" if child.exitcode else ""
    child.join()
    if how and not note[0]:
        raise RuntimeError(f"{target.name}: the sound volume cannot be read")
    if how:
        summary.executions += 1
        summary.add(how, pickle.loads(note[:]))


def _work(
    target: Target,
    path: Path,
    seed: int,
    limits: Limits,
    news: Connection,
    note: mmap.mmap,
) -> None:
    """The child: change, judge, keep what is new as a seed of further changes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sound = FileVolume(path)
    recorder = Recorder(sound)
    kept = target.read(recorder)
    noise = random.Random(f"{target.name} {seed}")
    mutator = Mutator(sound, list(recorder.reads), noise)
    summary, lines = Summary(target.name), Lines()
    seeds = [Damage(sound.size, forged=forging) for forging in ({False, bool(target.checksums)})]
    _bound_memory()
    told = time.monotonic()
    while limits.allow(summary):
        damage = mutator.mutate(noise.choice(seeds[:2] if noise.random() < 0.4 else seeds))
        note[:] = pickle.dumps(damage).ljust(_NOTE_BYTES, b"\0")
        known = len(lines), len(summary.reasons)
        with lines.watched() if noise.random() < _TRACED else nullcontext():
            reason, finding = judge(target, sound, kept, damage)
        summary.executions += 1
        if finding:
            summary.add(finding, damage)
        elif reason:
            summary.reasons[reason] += 1
        else:
            summary.answered += 1
        if (len(lines), len(summary.reasons)) != known and not finding:
            seeds.append(damage)
            del seeds[2:-_MOST_SEEDS]
        if time.monotonic() - told > _NEWS_SECONDS:
            summary.lines = len(lines)
            news.send(summary)
            told = time.monotonic()
    summary.lines = len(lines)
    news.send(summary)


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
