"""The options `imager.key=value` that a medium's boot entry can be given: read and checked."""

from __future__ import annotations

import re
from pathlib import Path

from imager.errors import UsageError

JOB_KEYS = frozenset(
    {
        "imager.restore",
        "imager.image",
        "imager.target",
        "imager.after",
        "imager.job",
        "imager.share",
    }
)
"""What makes up an unattended job; the other options also apply to work by hand."""
_KEYS = JOB_KEYS | {"imager.net", "imager.console", "imager.keymap"}
_VALUE = re.compile(r"[A-Za-z0-9_.:/@,+=-]+")
"""Nothing that GRUB or the kernel reads as anything but itself."""
_KEYMAP = re.compile(r"[A-Za-z0-9_.-]+")


def read_options(path: Path) -> dict[str, str]:
    """The lines `imager.key=value` of a file; UsageError, which names the line, for any other."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    options: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        key, separator, value = line.partition("=")
        if not separator or key not in _KEYS:
            raise UsageError(f"{path}, line {number}: {line!r} is not one of {_names()}")
        if key in options:
            raise UsageError(f"{path}, line {number}: {key} is given twice")
        if not _VALUE.fullmatch(value):
            raise UsageError(
                f"{path}, line {number}: {value!r} has characters that a kernel line cannot carry"
            )
        options[key] = value
    check_options(options)
    return options


def check_options(options: dict[str, str]) -> None:
    """UsageError unless the options make sense together."""
    job = JOB_KEYS & options.keys()
    if job and "imager.restore" not in options:
        raise UsageError(f"{min(job)} needs imager.restore=auto beside it")
    if options.get("imager.restore", "auto") != "auto":
        raise UsageError("imager.restore can only be auto")
    if not _KEYMAP.fullmatch(options.get("imager.keymap", "us")):
        raise UsageError(f"{options['imager.keymap']!r} is not a keyboard layout")


def _names() -> str:
    return ", ".join(f"{key}=" for key in sorted(_KEYS))
