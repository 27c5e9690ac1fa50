"""The rescue program on a machine's serial line, driven key by key."""

from __future__ import annotations

import re
import time

from tests.boot.vm import Vm

ENTER = "\r"
ESCAPE = "\x1b"
DOWN = "\x1b[B"
UP = "\x1b[A"
SECONDS = 120
_REST = 0.7
"""So long nothing may come before a screen counts as complete."""
_BOOT = 400


class Keys:
    """What a person sees and presses."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.pressed = 0
        """Keys, without those of `type`."""

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
            if now - since > _REST and all(" ".join(word.split()) in flat for word in words):
                return serial.screen
            assert open_still and now < end, f"{words} did not appear:\n{serial.screen}"

    def catch(self, word: str, seconds: float = SECONDS) -> str:
        """The screen while it changes, as soon as it shows `word`."""
        return self._vm.serial.wait_screen(re.escape(word), seconds)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            self._vm.serial.send(key)
            self.pressed += 1

    def type(self, text: str) -> None:
        """Type text and Enter."""
        self._vm.serial.send(text + ENTER)

    def name_of(self, words: str) -> str:
        """The kernel's name of the disk in whose line of the list `words` are."""
        for line in self._vm.serial.screen.splitlines():
            match = re.match(r"[ |]*(\w+)  can(not)? be used", line)
            if match and words in line:
                return match[1]
        raise AssertionError(f"no disk {words!r} is listed:\n{self._vm.serial.screen}")
