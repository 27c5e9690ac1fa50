"""Bare-metal disk imaging: capture a disk into one image file, check it, restore it.

    capture(source, image, options, progress)      a disk into an image
    preview(source, options, progress)             what that would do
    check(image, ...)                              is an image good?
    open_image(image), plan_restore, restore       an image onto a disk
    export(image, out, form)                       an incremental image as a full one, or as raw or qcow2
    diff(first, second)                            where two images differ

Nothing here prints; progress goes to a callback; every foreseen failure is an `ImagerError`.
"""

from imager.capture import CaptureOptions, CaptureResult, capture
from imager.check import CheckResult, check
from imager.diff import DiffResult, diff
from imager.errors import ImagerError
from imager.export import ExportFormat, ExportResult, export
from imager.image.origin import FileOrigin as open_image
from imager.preview import Preview, preview
from imager.restore import RestoreOptions, RestorePlan, RestoreResult, plan_restore, restore
from imager.version import VERSION as __version__

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
