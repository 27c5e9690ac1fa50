"""The folders that disks and shares are mounted on, and what a killed program left on them.

Each is called after the process that made it, KIND-PROCESS_xxxxxxxx. Where that process is gone nobody
else unmounts it, and the disk below would count as in use until the machine is restarted.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imager.disk import programs
from imager.disk.mounts import Mount, parse_mountinfo

PLACE = re.compile(r"(?P<kind>mount|share)-(?P<process>\d+)_\w+")
"""The name of such a folder."""


@contextmanager
def mount_place(state: Path, kind: str) -> Iterator[Path]:
    """An empty folder in `state` to mount a "mount" (a disk) or a "share" on."""
    state.mkdir(mode=0o755, parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f"{kind}-{os.getpid()}_", dir=state))
    try:
        yield place
    finally:
        with suppress(OSError):  # still mounted
            place.rmdir()


def clear_leftovers(state: Path, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> list[str]:
    """Unmount what processes that are gone have left mounted in `state`; what was, for a log."""
    cleared = []
    for place, process in _places(state):
        if (proc / str(process)).exists():
            continue
        for mount in reversed(_mounts_on(place, proc)):
            # A server that does not answer any more must not keep us waiting.
            lazily = ("--lazy",) if place.name.startswith("share") else ()
            done = programs.run("umount", "util-linux", *lazily, "--", str(place))
            if done.returncode == 0:
                cleared.append(f"{mount.source} was left mounted, and is not any more")
                _let_go(mount.source, sys)
        with suppress(OSError):
            place.rmdir()
    return cleared


def _places(state: Path) -> Iterator[tuple[Path, int]]:
    """The folders in `state`, each with the process that made it."""
    try:
        names = sorted(os.listdir(state))
    except OSError:
        return
    for name in names:
        match = PLACE.fullmatch(name)
        if match is not None:
            yield state / name, int(match["process"])


def _mounts_on(place: Path, proc: Path) -> list[Mount]:
    text = (proc / "self/mountinfo").read_text("utf-8", "replace")
    return [mount for mount in parse_mountinfo(text) if mount.mount_point == str(place)]


def _let_go(source: str, sys: Path) -> None:
    """Detach a write-protected loop device over a disk, which is how volumes are looked into."""
    loop = sys / "block" / os.path.basename(source)
    with suppress(OSError):
        is_ours = (loop / "ro").read_text().strip() == "1"
        backing = (loop / "loop/backing_file").read_text()
        if source.startswith("/dev/loop") and is_ours and backing.startswith("/dev/"):
            programs.run("losetup", "util-linux", "--detach", source)
