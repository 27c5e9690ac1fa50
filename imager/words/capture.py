"""A capture in words."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from imager.capture import CaptureResult
from imager.wording import format_duration, format_size, printable
from imager.words.layout import layout_lines, volumes_hit

if TYPE_CHECKING:
    from imager.live.disk import Instant


def result_lines(result: CaptureResult) -> list[str]:
    """What a capture stored, the verdict last."""
    lines = list(layout_lines(result.layout))
    if result.resumed:
        lines.append(f"{format_size(result.resumed)} of the disk were taken over from before")
    if result.unreadable:
        hit = ", ".join(volumes_hit(result.layout, result.unreadable))
        lines.append(
            f"{result.unreadable.total} bytes in {len(result.unreadable)} places could not be read "
            f"and are zeros in the image: {hit}"
        )
        lines += [f"  bytes {start} to {end - 1}" for start, end in list(result.unreadable)[:20]]
    if result.begun_anew:
        lines.append(
            "begun anew in spite of --resume: an interrupted capture of a disk in use is of no use, "
            "since nobody followed what was written in between"
        )
    if result.instant is not None:
        lines += _instant_lines(result.instant)
    elif result.consistency == "crash":
        lines.append("what is mounted was stored as a power cut would leave it")
    if result.parent is not None:
        lines.append(
            f"{format_size(result.inherited)} of the disk are as in {printable(result.parent.file)}"
        )
    names = ", ".join(str(path) for path in result.image.files) or "standard output"
    lines.append(
        f"{names}: {format_size(result.image.size)} for {format_size(result.used)} in use "
        f"on a disk of {format_size(result.disk_size)}, in {format_duration(result.seconds)}"
    )
    if result.revised:
        lines.append(
            "zstd alone cannot restore it, since some chunks replace others: imager export makes an "
            "image of it that zstd can"
        )
    if result.check is not None:
        lines.append(f"checked: {result.check.verdict}")
    lines.append(f"verdict: {result.verdict}")
    return lines


def _instant_lines(instant: Instant) -> list[str]:
    when = datetime.datetime.fromtimestamp(instant.pause.instant).astimezone()
    lines = [
        f"the disk as it was at {when.isoformat(' ', 'milliseconds')}; it stood still for "
        f"{round(1000 * instant.pause.seconds)} ms"
    ]
    if instant.consistency == "snapshot":
        lines.append("what LVM's volumes hold was read from snapshots of that instant")
    again = sum(instant.rounds)
    lines.append(
        f"{format_size(instant.written)} were written meanwhile, {format_size(again)} read again "
        f"in {len(instant.rounds)} rounds"
    )
    if instant.warning:
        lines.append(f"note: {instant.warning}")
    return lines
