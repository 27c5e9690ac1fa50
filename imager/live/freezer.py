"""Holds file systems still for a moment, and cannot leave them so.

Each freeze is announced to the watchdog before it is made, so that there is no instant in which one
is frozen and nobody but us knows.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from imager.errors import NotCaughtError, RefusedError
from imager.live import abi, watchdog

_PATIENCE = 10.0
"""Seconds in which the watchdog must have come up."""


class FreezeError(NotCaughtError):
    """The file systems could not be held still, or not for as long as was needed."""


class Held(Protocol):
    """A file system to be frozen."""

    @property
    def fd(self) -> int:
        """An open descriptor on it."""

    @property
    def place(self) -> str:
        """Where it is mounted, for a person."""

    @property
    def wave(self) -> int:
        """Those of one wave are frozen together, the lowest first."""


class Pause(NamedTuple):
    """A freeze that is over."""

    instant: float
    """When everything was still: seconds since the epoch."""
    seconds: float
    """From before the first freeze until after the last thaw."""


class Freezer:
    """Freezes and thaws a list of file systems, under the eyes of a watchdog."""

    def __init__(self, held: Sequence[Held], limit: float) -> None:
        """For these, in the order of their waves, for at most `limit` seconds."""
        self._held = held
        self._threads = ThreadPoolExecutor(max(len(held), 1), thread_name_prefix="freeze")
        self._limit = limit
        self._frozen: list[int] = []
        self._lock = threading.Lock()
        self._expired = False
        self._pause: Pause | None = None
        self.unable: set[int] = set()
        """Positions of those that turned out to be of a kind that cannot be frozen."""

    def __enter__(self) -> Self:
        """Start the watchdog; FreezeError where it does not come up."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = [one.fd for one in self._held]
        words = [str(theirs.fileno()), str(self._limit), *map(str, descriptors)]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(Path(watchdog.__file__)), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *descriptors],
                # A signal to the terminal's or the job's group is not meant for it.
                start_new_session=True,
                cwd="/",
            )
        self._channel = ours
        ours.settimeout(_PATIENCE)
        try:
            ready = ours.recv(1) == watchdog.READY
        except OSError:
            ready = False
        if not ready:
            self._end()
            raise FreezeError("the process that limits the pause does not start: nothing is frozen")
        ours.setblocking(True)
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def watchdog(self) -> int:
        """The process that ends a freeze which we do not end."""
        return self._process.pid

    @property
    def pause(self) -> Pause:
        """Of the freeze that is over."""
        if self._pause is None:
            raise ValueError("nothing was frozen yet")
        return self._pause

    @contextmanager
    def frozen(self, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
        """Everything still within the block.

        Raises FreezeError where one of them is frozen by somebody else or fails to be, and at the
        end where one had gone on meanwhile: what was read is then not of one instant.
        """
        begun = clock()
        self._expired = False  # what became of an earlier freeze does not matter
        try:
            for _, wave in groupby(range(len(self._held)), lambda at: self._held[at].wave):
                self._freeze_together(list(wave))
            instant = time.time()
            yield
        except BaseException:
            self._thaw_all()
            raise
        lost = self._thaw_all()
        self._pause = Pause(instant, clock() - begun)
        if lost or self._expired:
            raise FreezeError(
                f"{lost or 'a file system'} went on before everything was read (limit "
                f"{self._limit:g} s): nothing of this capture is kept; try again, or allow more "
                "with --max-pause"
            )

    def _freeze_together(self, positions: list[int]) -> None:
        """Freeze one wave; whatever happens, none of it is still under way afterwards."""
        running = [self._threads.submit(self._freeze, position) for position in positions]
        try:
            wait(running)
        finally:
            wait(running)
        for one in running:
            one.result()

    def _freeze(self, position: int) -> None:
        if position in self.unable:
            return
        self._tell(watchdog.FREEZING, position)
        held = self._held[position]
        try:
            abi.freeze(held.fd)
        except OSError as error:
            self._tell(watchdog.THAWED, position)
            if error.errno == errno.EOPNOTSUPP:  # vfat, for one
                self.unable.add(position)
                return
            if error.errno == errno.EBUSY:
                raise RefusedError(
                    f"{held.place} is frozen by another program: let that finish, or thaw it with "
                    f"fsfreeze --unfreeze {held.place}"
                ) from None
            raise FreezeError(f"{held.place} cannot be frozen: {error.strerror}") from None
        except BaseException:
            self._tell(watchdog.THAWED, position)
            raise
        with self._lock:
            self._frozen.append(position)

    def _thaw_all(self) -> str:
        """Thaw in the opposite order; returns a place that was not frozen any more, or nothing."""
        lost = ""
        self._frozen.sort()  # the last wave goes on first
        while self._frozen:
            position = self._frozen.pop()
            try:
                abi.thaw(self._held[position].fd)
            except OSError:
                lost = self._held[position].place
            self._tell(watchdog.THAWED, position)
        with contextlib.suppress(OSError):  # it has nothing to say
            self._expired = (
                self._expired or self._channel.recv(1, socket.MSG_DONTWAIT) == watchdog.EXPIRED
            )
        return lost

    def _tell(self, kind: bytes, position: int) -> None:
        try:
            self._channel.send(watchdog.message(kind, position))
        except OSError:
            if kind == watchdog.FREEZING:
                raise FreezeError(
                    "the process that limits the pause has ended: nothing is frozen without it"
                ) from None

    def _end(self) -> None:
        self._threads.shutdown()
        self._channel.close()
        self._process.wait()
