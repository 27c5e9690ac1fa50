"""`imager devices`: which disks there are, what is on them, and which the system runs from."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from imager.cli.inside import with_inside
from imager.cli.text import format_size, format_table, printable, say, shorten
from imager.disk.identity import transport_name
from imager.disk.inventory import Contents, Disk, Inside, list_disks
from imager.disk.source import SourceDevice
from imager.disk.system import System
from imager.errors import EXIT_OK, ImagerError, NotUnderstoodError
from imager.filesystems import Volume, read_allocation

UsedBytes = Callable[[str, Volume], int | None]
"""Bytes in use of a volume of blkid's kind, or None where that cannot be told."""

_WIDEST, _NARROWEST = 100, 60
_EPILOG = """\
examples:
  imager devices                the disks, as a table
  sudo imager devices           the same, with what only root may read
  imager devices --json         for a program

A disk's serial number or WWN names it for good, its path only until the next boot:
  imager restore disk.img serial:S6P1NX0R123456
"""
_NOT_ROOT = "run as root to see the file systems and use of every disk"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "devices",
        help="list the disks and what is on them",
        description="List disks with model, serial number, size, sector sizes and transport, and "
        "their partitions with file system, label, size, used space and mount points. "
        "Nothing is changed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON; sizes are in bytes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the disks; raises ImagerError where they cannot be looked at at all."""
    system = System()
    disks = [with_inside(with_used_bytes(disk), system) for disk in list_disks()]
    is_root = os.geteuid() == 0
    if args.json:
        report = {"complete": is_root, "disks": [disk.to_json() for disk in disks]}
        print(json.dumps(report, indent=2))
        return EXIT_OK
    columns = shutil.get_terminal_size((_WIDEST, 24)).columns
    width = min(max(columns, _NARROWEST), _WIDEST)
    for disk in disks:
        for line in describe_disk(disk, width):
            say(line)
        say("")
    if not disks:
        say("no disks found")
    if not is_root:
        print(f"imager: {_NOT_ROOT}", file=sys.stderr)
    return EXIT_OK


def allocated_bytes(kind: str, volume: Volume) -> int | None:
    """Bytes that a file system has in use, where its allocation is understood and readable."""
    try:
        return read_allocation(kind, volume).allocated.total
    except (NotUnderstoodError, ImagerError):
        return None


def with_used_bytes(disk: Disk, used_bytes: UsedBytes = allocated_bytes) -> Disk:
    """`disk` with the used bytes of what is not mounted added, as far as it may be read."""
    partitions = tuple(
        replace(part, contents=_with_used(part.path, part.contents, used_bytes))
        for part in disk.partitions
    )
    contents = _with_used(disk.identity.path, disk.contents, used_bytes)
    return replace(disk, partitions=partitions, contents=contents)


def describe_disk(disk: Disk, width: int) -> list[str]:
    """Lines of at most `width` columns: the disk, then a table of what is on it."""
    identity = disk.identity
    mark = "  <- this system runs from here" if disk.is_system else ""
    return [
        shorten(identity.path, width - len(mark)) + mark,
        *_wrapped(_disk_facts(disk), width),
        *_contents_table(disk, width),
    ]


def _disk_facts(disk: Disk) -> list[str]:
    identity = disk.identity
    name = identity.model or ("loop device" if identity.kind == "loop" else "unknown model")
    sectors = f"{identity.logical_sector}-byte sectors"
    if identity.physical_sector != identity.logical_sector:
        sectors = f"{identity.logical_sector}/{identity.physical_sector}-byte sectors"
    return [
        name,
        format_size(identity.size),
        sectors,
        *([transport_name(identity.transport)] if identity.transport else []),
        *([f"serial {identity.serial}"] if identity.serial else []),
        *([f"WWN {identity.wwn}"] if identity.wwn else []),
        *(["read-only"] if identity.read_only else []),
        *(["removable"] if identity.removable else []),
        *([f"file {printable(identity.backing_file)}"] if identity.backing_file else []),
        *([f"{disk.table} partition table"] if disk.table else []),
    ]


def _wrapped(facts: list[str], width: int) -> list[str]:
    """Facts separated by commas, in as few indented lines as they fit in."""
    lines = ["  " + facts[0]]
    for fact in facts[1:]:
        if len(lines[-1]) + len(fact) + 3 > width:
            lines[-1] += ","
            lines.append("  " + fact)
        else:
            lines[-1] += ", " + fact
    return [shorten(line, width) for line in lines]


def _contents_table(disk: Disk, width: int) -> list[str]:
    rows = [["PARTITION", "FILE SYSTEM", "LABEL", "SIZE", "USED", "MOUNTED ON"]]
    if disk.contents.kind and not disk.partitions:
        rows.append(_row("(whole disk)", disk.identity.size, disk.contents, None))
        rows += _inside_rows(disk.contents.inside, 1)
    for part in disk.partitions:
        rows.append(_row(part.name, part.size, part.contents, part.label))
        rows += _inside_rows(part.contents.inside, 1)
    if len(rows) == 1:
        empty = "no partitions" if disk.table is None else "no partitions in the table"
        return [f"    {empty}"]
    return ["    " + line for line in format_table(rows, right=(3, 4), width=width - 4)]


def _inside_rows(volumes: Iterable[Inside], depth: int) -> list[list[str]]:
    """A tree: what lies in something stands below it, farther to the right."""
    rows = []
    for volume in volumes:
        name = "  " * depth + printable(volume.name or "(inside)")
        rows.append(_row(name, volume.size, volume.contents, None))
        rows += _inside_rows(volume.contents.inside, depth + 1)
    return rows


def _row(name: str, size: int, contents: Contents, title: str | None) -> list[str]:
    return [
        name,
        contents.kind or "-",
        printable(contents.label or title or "-"),
        format_size(size),
        "-" if contents.used is None else format_size(contents.used),
        printable(", ".join(contents.mount_points)) or "-",
    ]


def _with_used(path: str, contents: Contents, used_bytes: UsedBytes) -> Contents:
    if contents.kind is None or contents.used is not None or contents.mount_points:
        return contents
    try:
        with SourceDevice(Path(path)) as volume:
            return replace(contents, used=used_bytes(contents.kind, volume))
    except ImagerError:
        return contents
