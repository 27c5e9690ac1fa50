"""The options `imager.key=value` that a medium's boot entry can be given: read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from imager.errors import UsageError
from imager.rescue.kernel_line import parse_kernel_line

JOB_KEYS = frozenset(
    {"imager.restore", "imager.image", "imager.target", "imager.after", "imager.job"}
)
"""What makes up an unattended job; the other options also apply to work by hand."""
_VALUE = re.compile(r"[A-Za-z0-9_.:/@,+=%-]+")
"""Nothing that GRUB or the kernel reads as anything but itself."""


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
        key, equals, value = line.partition("=")
        if not equals or not key.startswith("imager."):
            raise UsageError(f"{path}, line {number}: {line!r} is not imager.KEY=VALUE")
        if key in options:
            raise UsageError(f"{path}, line {number}: {key} is given twice")
        if not _VALUE.fullmatch(value):
            raise UsageError(
                f"{path}, line {number}: {value!r} is empty or has characters that a boot menu "
                "cannot carry"
            )
        options[key] = value
    try:
        check_options(options)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return options


def check_options(options: Mapping[str, str]) -> None:
    """UsageError unless the rescue program will understand the options."""
    parse_kernel_line(" ".join(f"{key}={value}" for key, value in options.items()))
