"""Progress for a person: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from imager.cli.text import format_duration, format_size

if TYPE_CHECKING:
    from tqdm import tqdm

_LINE_SECONDS = 30.0
"""How often a line is written where there is no terminal."""

_WORDS = {
    "capture": "Capturing",
    "resume": "Comparing what is there",
    "sample": "Sampling",
    "changes": "Following what is written, then one standstill",
    "check": "Checking",
    "merge": "Bringing in what has changed",
    "compare": "Comparing with the disk",
    "survey": "Going through the image",
    "export": "Exporting",
    "diff": "Comparing the images",
    "write": "Writing",
    "read back": "Reading back",
}


_BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left"


class ProgressDisplay:
    """A progress callback that shows itself on standard error; use it in a `with` statement."""

    def __init__(self, quiet: bool) -> None:
        """Show nothing at all if `quiet`."""
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._phase = ""
        self._bar: tqdm[NoReturn] | None = None
        self._begun = self._shown = 0.0

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """As `imager.pipeline.Progress`."""
        if self._quiet:
            return
        if phase != self._phase:
            self._begin(phase, total)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif done < total and time.monotonic() - self._shown >= _LINE_SECONDS:
            self._line(done, total)

    def _begin(self, phase: str, total: int) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._phase = phase
        self._begun = self._shown = time.monotonic()
        if self._terminal:
            from tqdm import tqdm  # takes a while, and jobs have no terminal

            self._bar = tqdm(
                desc=_title(phase),
                total=total or None,
                leave=total > 0,
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
                bar_format=_BAR if total else "{desc} ...",
            )

    def _line(self, done: int, total: int) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._begun
        rate = done / seconds if seconds else 0
        left = format_duration((total - done) / rate) if rate else "?"
        print(
            f"{_title(self._phase)}: {100 * done // total}% of {format_size(total)}, "
            f"{format_size(int(rate))}/s, {left} left",
            file=sys.stderr,
            flush=True,
        )


def _title(phase: str) -> str:
    return _WORDS.get(phase, phase.capitalize())
