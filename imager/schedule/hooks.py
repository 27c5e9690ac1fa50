"""What a run calls besides: the user's commands, and a URL that a watchdog waits for."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping

_PING_SECONDS = 20.0


def run_hook(command: str, facts: Mapping[str, str]) -> int:
    """Run a shell command with `facts` in its environment; its exit status.

    What it prints goes where ours goes.
    """
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **{f"IMAGER_{key}": value for key, value in facts.items()}},
        check=False,
    )
    return done.returncode


def ping(url: str) -> str:
    """Fetch `url`; why that failed, or an empty text."""
    request = urllib.request.Request(url, headers={"User-Agent": "imager"})
    try:
        with urllib.request.urlopen(request, timeout=_PING_SECONDS) as answer:
            answer.read(1)
    except (OSError, ValueError, urllib.error.URLError) as error:
        return str(getattr(error, "reason", error))
    return ""
