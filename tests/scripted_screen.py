"""A screen that answers by itself, as a test has written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from imager.rescue.screen import Choice, Gauge

ENTER = object()
"""Whatever is under the cursor."""
Answer = object | Callable[[], object]


class Step(NamedTuple):
    """A box that is expected, by words in its title or text, and what is answered."""

    words: str
    answer: Answer = ENTER


Scripted = Step | tuple[str, Answer] | str
"""A step, in full or as short as possible."""


class ScriptedScreen:
    """A `Screen` for tests; a box that the script does not expect is an AssertionError."""

    def __init__(self, *steps: Scripted) -> None:
        self._steps = [
            step if isinstance(step, Step) else Step(*((step,) if isinstance(step, str) else step))
            for step in steps
        ]
        self.boxes: list[str] = []
        """What was shown and had to be answered: title, text and choices."""
        self.notices: list[str] = []
        self.gauges: list[tuple[str, int | None, str]] = []
        self.on_gauge: Callable[[], bool] = lambda: False
        """Whether Escape is pressed while a bar is shown."""

    @property
    def last(self) -> str:
        """The last box."""
        return self.boxes[-1]

    def finished(self) -> bool:
        """Whether the script came to its end."""
        assert not self._steps, f"not reached: {self._steps}; last box: {self.last}"
        return True

    def _answer(self, title: str, text: str, default: object) -> object:
        box = f"{title}\n{text}"
        self.boxes.append(box)
        assert self._steps, f"unexpected: {box}"
        step = self._steps.pop(0)
        assert step.words in box, f"expected {step.words!r}, not: {box}"
        answer = step.answer() if callable(step.answer) else step.answer
        return default if answer is ENTER else answer

    def menu(
        self, title: str, text: str, choices: Sequence[Choice], chosen: str | None = None
    ) -> str | None:
        rows = "\n".join(f"{choice.tag}  {choice.text}  [{choice.help}]" for choice in choices)
        tags = [choice.tag for choice in choices]
        assert chosen is None or chosen in tags, (chosen, tags)
        answer = self._answer(title, f"{text}\n{rows}", chosen or tags[0])
        assert answer is None or answer in tags, (answer, tags)
        return answer if isinstance(answer, str) else None

    def confirm(
        self, title: str, text: str, yes: str = "Yes", no: str = "No", careful: bool = False
    ) -> bool | None:
        answer = self._answer(title, f"{text}\n<{yes}> <{no}>", not careful)
        assert answer in (True, False, None)
        return answer if isinstance(answer, bool) else None

    def ask(self, title: str, text: str, initial: str = "") -> str | None:
        answer = self._answer(title, f"{text}\n[{initial}]", initial)
        return answer if isinstance(answer, str) else None

    def password(self, title: str, text: str) -> str | None:
        answer = self._answer(title, text, "")
        return answer if isinstance(answer, str) else None

    def show(self, title: str, text: str) -> None:
        self._answer(title, text, None)

    def notice(self, title: str, text: str) -> None:
        self.notices.append(f"{title}\n{text}")

    @contextmanager
    def gauge(self, title: str) -> Iterator[Gauge]:
        yield ScriptedGauge(self)

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield


class ScriptedGauge:
    """The bar of a scripted screen."""

    def __init__(self, screen: ScriptedScreen) -> None:
        self._screen = screen

    def show(self, heading: str, percent: int | None, line: str) -> None:
        self._screen.gauges.append((heading, percent, line))

    def left(self) -> bool:
        return self._screen.on_gauge()
