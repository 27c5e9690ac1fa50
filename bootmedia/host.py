"""The machine that builds: its programs, its package sources, where it keeps what can be used again."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bootmedia.recipe import COMPONENTS, EPOCH, SUITE
from imager.disk import programs
from imager.errors import ImagerError, MissingToolError, UsageError

_TOOLS = (
    ("mmdebstrap", "mmdebstrap"),
    ("mksquashfs", "squashfs-tools"),
    ("xorriso", "xorriso"),
    ("mformat", "mtools"),
)
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RELEASE = re.compile(
    r"(?:bullseye|bookworm|trixie|forky|sid|testing|stable|oldstable)(?P<part>-updates|-security)?"
)
"""Debian's releases as a source may name them; other archives have other names."""


def require_tools() -> None:
    """Raise MissingToolError, in one line with all packages to install, unless all is there."""
    tools = [*_TOOLS]
    if not is_root():
        tools.append(("newuidmap", "uidmap"))
    packages = [package for program, package in tools if not _is_there(program)]
    if not _KEYRING.exists():
        packages.append("debian-archive-keyring")
    if packages:
        raise MissingToolError(
            f"building the medium needs more programs: apt-get install {' '.join(packages)}"
        )


def is_root() -> bool:
    """Whether the build runs as root, so without user namespaces."""
    return os.geteuid() == 0


def epoch() -> int:
    """SOURCE_DATE_EPOCH, else the recipe's; UsageError where it is no number of seconds."""
    text = os.environ.get("SOURCE_DATE_EPOCH", str(EPOCH))
    if not text.isdecimal():
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}, which is not a number of seconds")
    return int(text)


def default_cache() -> Path:
    """The folder for what can be used again: below $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "imager" / "bootmedia"


def sources() -> tuple[str, ...]:
    """Lines of package sources for the recipe's release, from where this machine gets Debian.

    Empty where the machine has none: mmdebstrap then knows its own.
    """
    if shutil.which("apt-get") is None:
        return ()
    listing = subprocess.run(
        # What is configured; whether it has been downloaded does not matter here.
        (
            *("apt-get", "indextargets", "--no-release-info"),
            *("--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"),
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return translate(listing.stdout)


def translate(listing: str) -> tuple[str, ...]:
    """Source lines for the recipe's release from lines "release place" of this machine's."""
    places: dict[str, str] = {}
    for line in listing.splitlines():
        release, _, place = line.partition(" ")
        match = _RELEASE.fullmatch(release)
        if match:
            places.setdefault(SUITE + (match["part"] or ""), place)
    if SUITE not in places:
        return ()
    return tuple(
        f"deb [signed-by={_KEYRING}] {place} {suite} {' '.join(COMPONENTS)}"
        for suite, place in places.items()
    )


def run(
    command: Sequence[str | Path],
    what: str,
    log: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
) -> str:
    """Run a program of the host; returns what it printed, which goes to `log` too.

    Raises ImagerError, which says that `what` failed and the program's own reason.
    """
    program = programs.find(str(command[0]), str(command[0]))
    with subprocess.Popen(
        (program, *map(str, command[1:])),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        env={**os.environ, "PATH": _path(), "LC_ALL": "C", "TZ": "UTC", **(environment or {})},
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            # With all that it has started; what it has mounted and made goes before we do.
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if log is not None:
        with log.open("a") as file:
            file.write(f"+ {shlex.join(map(str, command))}\n{output}")
    if process.returncode:
        raise ImagerError(f"{what} failed: {_reason(output)}{f' (log: {log})' if log else ''}")
    return output


def _path() -> str:
    """PATH with the administrators' folders, which ordinary users lack and mmdebstrap looks in."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _reason(output: str) -> str:
    """The line of a program's output that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "FATAL", "xorriso : F"))]
    return (errors or lines[-1:] or ["it said nothing"])[0]


def _is_there(program: str) -> bool:
    try:
        programs.find(program, program)
    except MissingToolError:
        return False
    return True
