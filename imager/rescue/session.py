"""What all flows share: the screen, the machine they act on, and what is known of the person."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from subprocess import CompletedProcess

from imager.disk import programs
from imager.disk.inventory import Disk, list_disks
from imager.errors import ImagerError
from imager.rescue.answers import Answers, read_answers, write_answers
from imager.rescue.journal import Journal, now
from imager.rescue.lock import console
from imager.rescue.media import (
    STATE,
    MediaVolume,
    data_volume,
    media_volumes,
    mounted_for_writing,
    mounted_read_only,
)
from imager.rescue.screen import Screen
from imager.rescue.shares import Share

Run = Callable[..., CompletedProcess[str]]
"""As `imager.disk.programs.run`."""


def without_mounts(text: str) -> str:
    """A sentence about a file as a person knows it: from the root of its disk or share."""
    return re.sub(r"/\S*/(?:mount|share)-\w+/", "", text)


def real_disks() -> tuple[Disk, ...]:
    """The machine's disks; loop devices are not what a person wants to overwrite."""
    return tuple(disk for disk in list_disks() if disk.identity.kind != "loop")


def stick_data() -> MediaVolume | None:
    """The stick's own partition for data."""
    return data_volume(media_volumes())


@dataclass(frozen=True)
class Machine:
    """The machine that the program runs on; tests give it another one."""

    state: Path = STATE
    disks: Callable[[], tuple[Disk, ...]] = real_disks
    volumes: Callable[[], tuple[MediaVolume, ...]] = media_volumes
    data: Callable[[], MediaVolume | None] = stick_data
    run: Run = programs.run
    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    clock: Callable[[], datetime] = now
    pause: Callable[[], None] = signal.pause
    """Waits for the end, once the machine has been told to restart."""

    @property
    def is_uefi(self) -> bool:
        """Whether the firmware is UEFI's, or at least booted this system that way."""
        return (self.sys / "firmware/efi").is_dir()


@dataclass
class Session:
    """One console's program."""

    screen: Screen
    machine: Machine
    journal: Journal
    shares: list[Share] = field(default_factory=list)
    """Those that were connected to; mounted only while they are needed."""
    _answers: Answers | None = None

    @property
    def lock(self) -> Path:
        """The file that says who is at work."""
        return self.machine.state / "lock"

    def words(self, what: str) -> str:
        """What others are told while this console is at work."""
        return f"{console()}: {what}, since {self.machine.clock():%H:%M}"

    def fail(self, error: ImagerError, more: str = "") -> None:
        """Show and note why something did not succeed, and what is true now."""
        sentence = without_mounts(str(error))
        self.journal.note(f"failed: {sentence}", *filter(None, [more]))
        text = f"{sentence[:1].upper()}{sentence[1:]}."
        self.screen.show("That did not work", f"{text}\n\n{more}" if more else text)

    @property
    def answers(self) -> Answers:
        """Those of last time: read when they are first asked for, as the menu does without."""
        if self._answers is None:
            self._answers = Answers()
            with suppress(ImagerError, OSError):
                volume = self.machine.data()
                if volume is not None:
                    with mounted_read_only(volume) as root:
                        self._answers = read_answers(root)
        return self._answers

    def remember(self, **changed: str) -> None:
        """Keep answers for next time; where they cannot be kept the journal says so."""
        new = replace(self.answers, **changed)
        if new == self.answers:
            return
        self._answers = new
        try:
            volume = self.machine.data()
            if volume is not None:
                with mounted_for_writing(volume) as root:
                    write_answers(root, new)
        except (ImagerError, OSError) as error:
            self.journal.note(f"the answers are not kept: {error}")
