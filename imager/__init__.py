"""Bare-metal disk imaging: capture a disk into one image file, check it, restore it.

    capture(source, image, options, progress)      a disk into an image
    preview(source, options, progress)             what that would do
    check(image, ...)                              is an image good?
    open_image(image), plan_restore, restore       an image onto a disk
    export(image, out, form)                       an incremental image as a full one, or as raw or qcow2
    diff(first, second)                            where two images differ

Nothing here prints; progress goes to a callback; every foreseen failure is an `ImagerError`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from imager.errors import ImagerError
from imager.version import VERSION as __version__

if TYPE_CHECKING:
    from imager.capture import CaptureOptions, CaptureResult, capture
    from imager.check import CheckResult, check
    from imager.diff import DiffResult, diff
    from imager.export import ExportFormat, ExportResult, export
    from imager.image.origin import FileOrigin as open_image
    from imager.preview import Preview, preview
    from imager.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore, restore

__all__ = [
    "CaptureOptions",
    "CaptureResult",
    "CheckResult",
    "DiffResult",
    "ExportFormat",
    "ExportResult",
    "ImagerError",
    "Preview",
    "RestoreOptions",
    "RestorePlan",
    "RestoreResult",
    "__version__",
    "capture",
    "check",
    "diff",
    "export",
    "open_image",
    "plan_restore",
    "preview",
    "restore",
]

_HOMES = {
    "capture": ("CaptureOptions", "CaptureResult", "capture"),
    "check": ("CheckResult", "check"),
    "diff": ("DiffResult", "diff"),
    "export": ("ExportFormat", "ExportResult", "export"),
    "preview": ("Preview", "preview"),
    "restore": ("RestoreOptions", "RestorePlan", "RestoreResult", "plan_restore", "restore"),
}
_PLACES = {name: (f"imager.{home}", name) for home, names in _HOMES.items() for name in names}
_PLACES["open_image"] = ("imager.image.origin", "FileOrigin")


class _Api(ModuleType):
    """Imports what is asked for when it is asked for: each command would pay for all verbs otherwise.

    A function `__getattr__` would not do: the verbs' modules have their names, and once imported would
    stand for them.
    """

    def __getattribute__(self, name: str) -> object:
        place = _PLACES.get(name)
        if place is None:
            return super().__getattribute__(name)
        return getattr(import_module(place[0]), place[1])


sys.modules[__name__].__class__ = _Api
