"""Which unattended jobs have run, kept on the stick, so that none runs a second time by itself.

    imager/jobs/ID.json         attempt 1 is about to write to its target
    imager/jobs/ID.2.json       attempt 2, and so on
    imager/jobs/ID.end.json     it came to an end: finished, or failed for a reason

Why power may go at any moment. A file is only ever created, never changed, and its *name* is the
fact: a file whose content is torn still says that it was created. An attempt's file, its folder and
the file system are synced, and the file is read back through a new mount, before the first byte of
the target changes. So:

* no file: nothing was written to the target. The job may run.
* an attempt without an end: power went (or the machine hung) while the target was written, or after
  it was written and before that was noted. Until its last step a restore leaves the target without
  a partition table and without any signature. So the job is repeated only if its target is found
  blank; there is then nothing on it to lose. If anything is on it, the restore may have been done
  and the machine may have been used since: nothing happens, and the screen says so.
* no more than three attempts: a machine that dies each time must not do so for ever.
* an end: nothing happens, whether it succeeded or failed; a person decides.

A stick that cannot be written (a CD, full, write-protected) keeps nothing: the job's caller must
then not restart the machine. A stick that cannot be read may hold an end: the job must not run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imager.disk import abi
from imager.errors import ReadFailedError, WriteFailedError
from imager.rescue.media import MediaVolume, mounted_for_writing, mounted_read_only
from imager.wording import printable

FOLDER = "imager/jobs"
MAX_ATTEMPTS = 3
_MAX_FILE = 64 << 10
_MAX_WORDS = 300


@dataclass(frozen=True)
class Past:
    """What is known of a job from earlier starts."""

    attempts: int
    """How often it began to write."""
    end: str | None
    """How it ended, in words; None where it has not, as far as is known."""


class Ledger:
    """The record of jobs on a stick's partition for data."""

    def __init__(self, volume: MediaVolume | None) -> None:
        """`volume`: None where there is no such partition; then nothing is ever known or kept."""
        self._volume = volume

    def look(self, job: str) -> Past:
        """What is known of `job`; ReadFailedError where the stick cannot be read."""
        if self._volume is None:
            return Past(0, None)
        with mounted_read_only(self._volume) as root:
            try:
                names = set(os.listdir(_inside(root)))
            except FileNotFoundError:
                return Past(0, None)
            except OSError as error:
                raise ReadFailedError(
                    f"{self._volume.title}: the record of jobs cannot be read: {error.strerror}"
                ) from None
            attempts = sum(_attempt(job, number) in names for number in range(1, MAX_ATTEMPTS + 1))
            end = _read_end(root / FOLDER / _end(job)) if _end(job) in names else None
            return Past(attempts, end)

    def begin(self, job: str, facts: Mapping[str, object]) -> None:
        """Note durably that the target is about to be written; `facts` are for people.

        Raises WriteFailedError where that cannot be done.
        """
        number = self.look(job).attempts + 1
        if number > MAX_ATTEMPTS:
            raise WriteFailedError(f"job {job} has begun {MAX_ATTEMPTS} times already")
        self._create(_attempt(job, number), facts)

    def end(self, job: str, words: str, facts: Mapping[str, object]) -> None:
        """Note durably how the job ended, in `words`; WriteFailedError where that cannot be done."""
        self._create(_end(job), {**facts, "end": words})

    def _create(self, name: str, facts: Mapping[str, object]) -> None:
        if self._volume is None:
            raise WriteFailedError("there is no partition for data: this is a CD or a plain ISO")
        data = json.dumps(facts, indent=2).encode() + b"\n"
        try:
            with mounted_for_writing(self._volume) as root:
                folder = _inside(root)
                for place in (folder.parent, folder):
                    place.mkdir(exist_ok=True)
                    _sync(place.parent)
                with _created(folder / name) as fd:
                    if os.write(fd, data) != len(data):
                        raise WriteFailedError(f"{self._volume.title} is full")
                    os.fsync(fd)
                _sync(folder)
            # A new mount reads what the stick really holds: cheap ones acknowledge what they lose.
            with mounted_read_only(self._volume) as root:
                kept = (root / FOLDER / name).read_bytes() == data
        except (OSError, ReadFailedError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise WriteFailedError(f"{self._volume.title} cannot be written: {reason}") from None
        if not kept:
            raise WriteFailedError(f"{self._volume.title} does not keep what is written to it")


def _attempt(job: str, number: int) -> str:
    return f"{job}.json" if number == 1 else f"{job}.{number}.json"


def _end(job: str) -> str:
    return f"{job}.end.json"


def _inside(root: Path) -> Path:
    """The folder of jobs, which must not be a link to somewhere else."""
    folder = root / FOLDER
    if folder.is_symlink() or folder.parent.is_symlink():
        raise ReadFailedError(f"{FOLDER} on the stick leads elsewhere")
    return folder


@contextlib.contextmanager
def _created(path: Path) -> Iterator[int]:
    """A new file, open for writing."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync(folder: Path) -> None:
    """Make a folder's names durable, and all of its file system with them."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        abi.sync_file_system(fd)
    finally:
        os.close(fd)


def _read_end(path: Path) -> str:
    """How a job ended; the file was created when it did, whatever is left of its content."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            value = json.loads(file.read(_MAX_FILE))
        words = value["end"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        words = None
    return printable(words)[:_MAX_WORDS] if isinstance(words, str) else "how is not recorded"
