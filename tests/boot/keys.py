"""The rescue program on a machine's serial line, driven key by key."""

from __future__ import annotations

import re
import time

from tests.boot.vm import Vm

ENTER = "\r"
ESCAPE = "\x1b"
DOWN = "\x1b[B"
UP = "\x1b[A"
SECONDS = 400
_REST = 0.7
"""So long nothing may come before a screen counts as complete."""
_BOOT = 900
_TITLE = "one step back"
"""What is drawn first of every box."""


class Keys:
    """What a person sees and presses."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.pressed = 0
        """Keys, without those of `type`."""
        self._mark = 0
        """What had been said when a box was left: the next one may look the same."""

    def start(self) -> str:
        """The menu, once the medium has started."""
        return self.see("Bring this machine back", "Restart or switch off", seconds=_BOOT)

    def see(self, *words: str, seconds: float = SECONDS) -> str:
        """The screen, once it shows all `words` (wherever lines are broken) and is at rest."""
        serial = self._vm.serial
        end = time.monotonic() + seconds
        length, since = len(serial.text), time.monotonic()
        while True:
            open_still = serial.poll()
            now = time.monotonic()
            if len(serial.text) != length:
                length, since = len(serial.text), now
            flat = " ".join(re.sub(r"\|", " ", serial.screen).split())
            is_new = _TITLE in serial.text[self._mark :]
            is_complete = all(" ".join(word.split()) in flat for word in words)
            if is_new and is_complete and now - since > _REST:
                return serial.screen
            assert open_still and now < end, f"{words} did not appear:\n{serial.screen}"

    def catch(self, word: str, seconds: float = SECONDS) -> str:
        """The screen while it changes, as soon as it shows `word`."""
        return self._vm.serial.wait_screen(re.escape(word), seconds)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            if key in (ENTER, ESCAPE):
                self._mark = len(self._vm.serial.text)
            self._vm.serial.send(key)
            self.pressed += 1

    def type(self, text: str) -> None:
        """Type text and Enter."""
        self._mark = len(self._vm.serial.text)
        self._vm.serial.send(text + ENTER)

    def name_of(self, words: str) -> str:
        """The kernel's name of the disk in whose line of the list `words` are."""
        return self._disks()[self._line_of(words)][0]

    def move(self, here: str, there: str) -> None:
        """Move the cursor in the list of disks, from the line with the words `here` to `there`."""
        lines = self._line_of(there) - self._line_of(here)
        self.press(*[DOWN if lines > 0 else UP] * abs(lines))

    def to_the_last_question(self, target: str) -> str:
        """From the list of images to the question for the name of the disk with `target` in its line.

        Returns that name.
        """
        self.press(ENTER)
        self.see("Onto which disk", target, "< Back >")
        name = self.name_of(target)
        self.press(ENTER)
        self.see("The plan", target, "Go on")
        self.press(ENTER)
        self.see("The last question", f"Type {name} to begin")
        return name

    def _line_of(self, words: str) -> int:
        for number, (_, line) in enumerate(self._disks()):
            if words in line:
                return number
        raise AssertionError(f"no disk {words!r} is listed:\n{self._vm.serial.screen}")

    def _disks(self) -> list[tuple[str, str]]:
        """Names and lines of the list of disks."""
        matches = (
            re.match(r"[ |]*(\w+)  can(not)? be used", line)
            for line in self._vm.serial.screen.splitlines()
        )
        return [(match[1], match.string) for match in matches if match]
