"""Something long that runs while a bar shows it, and that is broken off only after asking.

    main thread:  draws the bar, listens for Escape and Ctrl-C
    work thread:  runs the verb; its progress callback fills the meter, or ends it

The verb does not end at once when it is told to: at its next progress. Where the terminal goes away
meanwhile (a serial cable is pulled) the work goes on to its end and its result is in the journal: a
restore half done helps nobody.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, TypeVar

from imager.errors import ImagerError
from imager.pipeline import Progress
from imager.rescue.screen import Screen, TerminalGoneError
from imager.wording import format_size
from imager.words.progress import phase_words, rate_and_rest

Result = TypeVar("Result")

_TICK = 0.25
"""Seconds between two looks at the meter: a serial line of 9600 baud keeps up with that."""


class BrokenOffError(ImagerError):
    """The person had the work stopped."""


class Meter:
    """How far the work is; written by one thread, read by another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.phase = ""
        self._state = (0, 0)
        self._begun = clock()
        self.stop = threading.Event()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """As `imager.pipeline.Progress`; BrokenOffError once `stop` is set."""
        self.check()
        if phase != self.phase:
            self._begun = self._clock()
            self.phase = phase
        self._state = (done, total)

    def check(self) -> None:
        """BrokenOffError once `stop` is set."""
        if self.stop.is_set():
            raise BrokenOffError("it was broken off")

    def lines(self) -> tuple[str, int | None, str]:
        """What a `Gauge` shows."""
        done, total = self._state
        heading = phase_words(self.phase) if self.phase else "Beginning"
        if not total:
            return f"{heading} ...", None, ""
        rest = rate_and_rest(done, total, self._clock() - self._begun)
        return (
            heading,
            min(100, 100 * done // total),
            f"{format_size(done)} of {format_size(total)}, {rest}",
        )


class _Thread(threading.Thread, Generic[Result]):
    """A thread that keeps what its function gave, or raised."""

    def __init__(self, function: Callable[[Progress], Result], meter: Meter) -> None:
        super().__init__(name="work")
        self._function = function
        self._meter = meter
        self.done = threading.Event()
        self._result: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._function(self._meter))
        except BaseException as error:  # raised again where the result is asked for
            self._error = error
        finally:
            self.done.set()

    def result(self) -> Result:
        self.join()
        if self._error is not None:
            raise self._error
        return self._result[0]


def run_work(
    screen: Screen,
    title: str,
    function: Callable[[Progress], Result],
    question: str,
    meter: Meter | None = None,
) -> Result:
    """What `function` gives; `question` is asked before it is broken off.

    Raises what it raises, as an ImagerError; BrokenOffError where it was stopped by the person.
    """
    meter = meter or Meter()
    thread = _Thread(function, meter)
    with _hangup_ignored():
        thread.start()
        try:
            _watch(screen, title, thread, meter, question)
        except TerminalGoneError:
            pass  # nobody watches any more
        except BaseException:
            meter.stop.set()  # the machine is being shut down
            raise
        finally:
            thread.join()
    try:
        return thread.result()
    except ImagerError:
        raise
    except Exception as error:
        raise foreseen(error) from error


def foreseen(error: Exception) -> ImagerError:
    """Any failure as one that a person can be told of: the program must not end by it."""
    if isinstance(error, ImagerError):
        return error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return ImagerError(f"{where}{error.strerror or error}")
    return ImagerError(
        f"internal error ({type(error).__name__}: {error}); please report it with the log"
    )


def _watch(
    screen: Screen, title: str, thread: _Thread[Result], meter: Meter, question: str
) -> None:
    while not thread.done.is_set():
        with screen.gauge(title) as gauge:
            while not thread.done.wait(_TICK):
                gauge.show(*meter.lines())
                if gauge.left():
                    break
        if not thread.done.is_set() and screen.confirm(
            title, question, yes="Break off", no="Go on", careful=True
        ):
            meter.stop.set()
            screen.notice(title, "Stopping ...")
            thread.done.wait()


@contextmanager
def _hangup_ignored() -> Iterator[None]:
    """Live on when the terminal hangs up (SIGHUP), as long as this lasts."""

    def go_on(number: int, frame: FrameType | None) -> None:
        """Not SIG_IGN, which the programs started would inherit."""

    before = signal.signal(signal.SIGHUP, go_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
