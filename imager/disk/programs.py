"""Running the standard programs that know a thing better than we do."""

from __future__ import annotations

import os
import shutil
import subprocess

from imager.errors import MissingToolError

_ADMIN_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find(program: str, package: str) -> str:
    """The full path of `program`, also where an ordinary user's PATH leaves out /sbin.

    Raises MissingToolError naming the Debian `package`.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_ADMIN_DIRECTORIES))
    found = shutil.which(program, path=path)
    if found is None:
        raise MissingToolError(f"{program} is not installed: apt-get install {package}")
    return found


def run(program: str, package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `program` to its end with its messages in English; its exit status is the caller's."""
    return subprocess.run(
        (find(program, package), *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
