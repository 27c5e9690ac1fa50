"""Everything that can go wrong, one class per kind of failure, each with one documented exit code.

A message is one sentence that says what happened and, where there is something to do, what to do.
The command line prints it behind `imager: ` and exits with `exit_code`; the table of exit codes in
the manual is checked against this module.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_DEGRADED = 3


class ImagerError(Exception):
    """Base of all failures that `imager` foresees: the operation did not succeed."""

    exit_code: ClassVar[int] = 1


class UsageError(ImagerError):
    """The arguments do not make sense together; nothing was touched."""

    exit_code = 2


class ImageError(ImagerError):
    """The image is damaged, cut short or not an image."""

    exit_code = 4


class UnsupportedImageError(ImageError):
    """The image is of a format version or uses a feature that this release does not know."""


class RefusedError(ImagerError):
    """A safety rule forbids it (mounted, too small, would overwrite); nothing was written."""

    exit_code = 5


class ReadFailedError(ImagerError):
    """Reading a disk or an image failed (EIO, device gone, short read)."""

    exit_code = 6


class WriteFailedError(ImagerError):
    """Writing failed (disk full, EIO, device gone)."""

    exit_code = 7


class VerifyError(ImagerError):
    """What was read back differs from what was written, or a disk from its image."""

    exit_code = 8


class MissingToolError(ImagerError):
    """A standard program or Python package is not installed; the message names it."""

    exit_code = 9


class StoreAbsentError(ImagerError):
    """The store is not there: its disk is not connected, or not mounted."""

    exit_code = 10


class NotCaughtError(ImagerError):
    """A disk in use could not be caught at one instant; no image was kept. Worth another try."""

    exit_code = 11


class NotUnderstoodError(Exception):
    """A parser's proof failed: the structure is unknown, inconsistent or damaged.

    Never reaches the user as an error: the caller stores the whole range and records the reason.
    The message is a short lower-case clause, fit to follow "stored whole: ".
    """
