"""A restore in words: its plan, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator

from imager.restore import RestorePlan, RestoreResult
from imager.wording import format_duration, format_size, printable
from imager.words.layout import layout_lines, volume_name, volumes_hit
from imager.words.target import current_lines


def plan_lines(plan: RestorePlan, image: str | None = None) -> Iterator[str]:
    """What a restore will do, and what will be lost; `image` is a better name of it than its path."""
    yield f"Image   {image or plan.image or 'standard input'}"
    facts = plan.head.facts
    host = facts.get("host")
    name = host.get("name") if isinstance(host, dict) else None
    yield f"        {printable(str(name))}, {printable(str(facts.get('created')))}"
    yield f"Target  {printable(plan.target.describe())}"
    yield "On it now (all of it will be lost):" if plan.options.partition is None else "On it now:"
    for line in current_lines(plan.target):
        yield f"  {line}"
    if plan.options.partition is None:
        yield "On it afterwards:"
        yield from (f"  {line}" for line in layout_lines(plan.layout))
    else:
        for volume in plan.volumes:
            label = f" {printable(volume.label)}" if volume.label else ""
            yield (
                f"On it afterwards: {volume_name(volume)} of the image, "
                f"{volume.kind or 'unknown content'}{label}, {format_size(volume.size)}"
            )
    for warning in plan.warnings:
        yield f"Note: {warning}"


def result_lines(plan: RestorePlan, result: RestoreResult) -> Iterator[str]:
    """What a restore did, the verdict last."""
    yield (
        f"{plan.target.path}: {format_size(result.written)} written, "
        f"{format_size(result.zeroed)} zeroed, in {format_duration(result.seconds)}"
    )
    if result.unchanged:
        yield f"{format_size(result.unchanged)} were right already"
    if result.discarded:
        yield f"{format_size(result.discarded)} of unused space discarded"
    if result.read_back:
        yield "read back and compared: equal"
    for note in result.notes:
        yield f"note: {note}"
    for words, ranges in (
        ("are zeros, as they could not be read when captured", result.unreadable),
        ("are damaged in the image and were left as they were on the target", result.lost),
    ):
        if ranges:
            hit = ", ".join(volumes_hit(plan.layout, ranges))
            yield f"{ranges.total} bytes in {len(ranges)} places {words}: {hit}"
    yield f"verdict: {result.verdict}"
