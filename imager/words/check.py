"""A check in words."""

from __future__ import annotations

from imager.check import CheckResult, layout_of
from imager.errors import ImageError
from imager.extents import Extents
from imager.image.reader import Completeness
from imager.wording import format_duration, format_size
from imager.words.layout import volumes_hit

_SHOWN = 20


def report_lines(result: CheckResult) -> list[str]:
    """The verdict, and what is wrong where."""
    how = "structure only" if result.quick else "every chunk decoded and hashed"
    lines = [
        f"{result.path}: {result.verdict} ({format_size(result.image_size)}, {how}, "
        f"{format_duration(result.seconds)})"
    ]
    if result.completeness is not Completeness.COMPLETE:
        lines.append(f"  the image is {result.completeness.value}: its end is missing")
    lines += [f"  {problem.message}" for problem in result.problems[:_SHOWN]]
    if len(result.problems) > _SHOWN:
        lines.append(f"  and {len(result.problems) - _SHOWN} more problems")
    if result.lost:
        lines.append(f"  lost: {_where(result, result.lost)}")
        intact = result.head.disk_size - result.lost.total
        lines.append(f"  can still be read: {format_size(intact)} of the disk (--salvage)")
    elif result.problems:
        lines.append("  nothing of the disk is lost by it: imager restore still works")
    if result.unreadable:
        hit = _where(result, result.unreadable)
        lines.append(f"  could not be read when it was captured: {hit}")
    if result.differing:
        hit = _where(result, result.differing)
        lines.append(f"  the disk differs: {hit}")
    return lines


def _where(result: CheckResult, ranges: Extents) -> str:
    """How much, and which partitions it hits."""
    hit = ", ".join(lost_volumes(result, ranges))
    return f"{format_size(ranges.total)} in {len(ranges)} places: {hit}"


def lost_volumes(result: CheckResult, ranges: Extents) -> list[str]:
    """As `volumes_hit`, also where the image's layout makes no sense."""
    try:
        return volumes_hit(layout_of(result.head), ranges)
    except ImageError:
        return ["where, the image's layout does not tell"]
