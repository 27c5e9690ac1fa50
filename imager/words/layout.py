"""A disk's layout in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from imager.extents import Extents
from imager.layout.model import DiskLayout, NestedVolume, VolumeLayout
from imager.wording import format_size, printable

_TABLES = {"gpt": "GPT", "mbr": "MBR", "none": "no partition table"}
_CONTAINERS = {
    "LVM2_member": "LVM",
    "crypto_LUKS": "LUKS, encrypted",
    "linux_raid_member": "RAID member",
}
"""Words for what blkid names in its own way."""


def layout_lines(layout: DiskLayout) -> Iterator[str]:
    """The partition table and its volumes, one a line, with what is stored whole and why."""
    yield f"{_TABLES[layout.table.kind]}, sectors of {layout.sector_size} bytes"
    rows = [("", "file system", "label", "size", "stored")]
    for volume in layout.volumes:
        rows.append(_row(volume))
        rows += _nested_rows(volume.children, 1)
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        yield (
            f"  {row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}"
            f"  {row[3]:>{widths[3]}}  {row[4]:>{widths[4]}}"
        ).rstrip()
    for volume in layout.volumes:
        yield from _remarks(volume, volume_name(volume))
    for gap in layout.gaps:
        if gap.size > 16 << 20:
            stored = "stored" if gap.stored else "not stored"
            yield (
                f"  unpartitioned, {format_size(gap.size)} at {format_size(gap.start)}: "
                f"{stored} ({printable(gap.reason)})"
            )
    for note in (*layout.table.notes, *layout.notes):
        yield f"  note: {printable(note)}"


def volume_name(volume: VolumeLayout) -> str:
    """How a sentence calls a volume."""
    return "the whole disk" if volume.number is None else f"partition {volume.number}"


def volumes_hit(layout: DiskLayout, ranges: Extents) -> list[str]:
    """The volumes that any of these disk ranges meet, in words; and what lies outside of all."""
    found: dict[str, None] = {}
    for start, end in ranges:
        meets = [v for v in layout.volumes if v.start < end and start < v.end]
        for volume in meets:
            label = f" ({printable(volume.label)})" if volume.label else ""
            found[f"{volume_name(volume)}{label}"] = None
        if not meets:
            found["the space outside of partitions"] = None
    return list(found)


def _remarks(volume: VolumeLayout | NestedVolume, name: str) -> Iterator[str]:
    """Why a volume and those in it are stored whole, and what else is to be said of them."""
    if volume.stored == "raw" and volume.reason:
        yield f"  {name} is stored whole: {printable(volume.reason)}"
    elif volume.stored == "excluded":
        yield f"  {name} is left out by request"
    for note in volume.notes:
        yield f"  {name}: {printable(note)}"
    for child in volume.children:
        what = printable(child.name) if child.name else f"the {_kind(child)}"
        yield from _remarks(child, f"{what} in {name}")


def _nested_rows(
    volumes: Iterable[NestedVolume], depth: int
) -> Iterator[tuple[str, str, str, str, str]]:
    """A tree: what lies in something stands below it, farther to the right."""
    for volume in volumes:
        label = f"({printable(volume.label)})" if volume.label and volume.name else volume.label
        yield (
            "",
            "  " * depth + _kind(volume),
            " ".join(printable(word) for word in (volume.name, label) if word) or "-",
            format_size(volume.size),
            format_size(volume.used),
        )
        yield from _nested_rows(volume.children, depth + 1)


def _kind(volume: VolumeLayout | NestedVolume) -> str:
    return _CONTAINERS.get(volume.kind or "", volume.kind or "-")


def _row(volume: VolumeLayout) -> tuple[str, str, str, str, str]:
    return (
        "disk" if volume.number is None else str(volume.number),
        _kind(volume),
        printable(volume.label or "-"),
        format_size(volume.size),
        "-" if volume.stored == "excluded" else format_size(volume.used),
    )
