"""`imager info`: what is inside an image."""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from imager.check import layout_of
from imager.cli.arguments import add_common, add_parents
from imager.cli.text import format_age, format_size, printable, say
from imager.disk.identity import Identity
from imager.errors import EXIT_DEGRADED, EXIT_OK, ImageError
from imager.image.chain import Chain
from imager.image.format import INCOMPATIBLE_PARTIAL, ChunkKind, RangeKind
from imager.image.reader import Completeness, ImageReader, LostRange
from imager.words.layout import layout_lines

_EPILOG = """\
examples:
  imager info sda.img          machine, date, disk, partitions, verdict
  imager info --map sda.img    where on the disk something is
  imager info --json sda.img   all that the image says of itself
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "info",
        help="say what is inside an image",
        description="Say what is inside an image: machine, date, disk, partitions, verdict, "
        "and how to restore it without this program.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", type=Path)
    parser.add_argument("--map", action="store_true", help="draw the disk's ranges")
    add_parents(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    with Chain(arguments.image, arguments.parents) as chain:
        image = chain.image
        if arguments.json:
            print(json.dumps(_facts(chain), indent=2))
        elif not arguments.quiet:
            for line in _lines(chain):
                say(line)
            if arguments.map:
                for line in _map_lines(chain):
                    say(line)
        if image.completeness is not Completeness.COMPLETE or chain.broken:
            return ImageError.exit_code
        if image.manifest is not None and image.manifest.verdict == "degraded":
            return EXIT_DEGRADED
        return EXIT_OK


def _facts(chain: Chain) -> dict[str, object]:
    image = chain.image
    return {
        "image": str(image.file.path),
        "files": [str(path) for path in image.file.paths],
        "image_size": image.file.size,
        "uuid": str(uuid.UUID(bytes=image.uuid)),
        "hash": image.algorithm.name,
        "completeness": image.completeness.value,
        "problems": [problem.message for problem in image.problems],
        "content_digest": image.footer.content_digest.hex() if image.footer else None,
        "chain": [_link(each) for each in chain.images[1:]],
        "broken": chain.broken or None,
        "head": image.head.to_json(),
        "manifest": dict(image.manifest.facts) if image.manifest else None,
    }


def _link(image: ImageReader) -> dict[str, object]:
    """An image that is needed to read another one."""
    return {
        "image": str(image.file.path),
        "uuid": str(uuid.UUID(bytes=image.uuid)),
        "created": image.head.facts.get("created"),
        "image_size": image.file.size,
    }


def _lines(chain: Chain) -> Iterator[str]:
    image = chain.image
    facts = image.head.facts
    host = _mapping(facts.get("host"))
    yield f"image      {image.file.path} ({_size_of(image)})"
    yield (
        f"machine    {_text(host, 'name')}, {_text(host, 'system')}, "
        f"{_text(host, 'firmware').upper()} firmware"
    )
    yield f"captured   {_when(facts)}, {_text(facts, 'tool')}, {_text(facts, 'consistency')}"
    if image.manifest is not None and "instant" in image.manifest.facts:
        caught = image.manifest.facts
        yield f"instant    {_text(caught, 'instant')}, standstill of {_text(caught, 'pause')} s"
    if facts.get("note"):
        yield f"note       {_text(facts, 'note')}"
    yield f"disk       {_disk(facts)}, {image.head.disk_size} bytes"
    yield from _chain_lines(chain)
    for number, line in enumerate(layout_lines(layout_of(image.head))):
        yield ("layout     " if number == 0 else "         ") + line
    yield f"verdict    {f'failed: {chain.broken}' if chain.broken else _verdict(image)}"
    for problem in image.problems:
        yield f"damage     {problem.message}"
    if image.completeness is Completeness.COMPLETE:
        yield from _without_imager(image)


_SHOWN = 5
"""Ancestors that are listed."""


def _chain_lines(chain: Chain) -> Iterator[str]:
    """The images that an incremental one needs."""
    for number, image in enumerate(chain.images[1 : _SHOWN + 1]):
        size = format_size(image.file.size)
        yield f"{'needs' if number == 0 else '':10} {image.file.path.name}, {_when(image.head.facts)}, {size}"
    if len(chain.images) > _SHOWN + 1:
        yield f"{'':10} and {len(chain.images) - _SHOWN - 1} more"


def _without_imager(image: ImageReader) -> Iterator[str]:
    if image.head.incremental:
        yield "without    needs its parents: imager restore, or imager export, which makes a full image"
        return
    if image.head.revised:
        yield "without    some chunks replace others: needs imager restore, or imager export, which"
        yield "           makes an image that zstd can restore"
        return
    if image.head.incompatible & INCOMPATIBLE_PARTIAL:
        yield "without    not a whole disk: needs imager restore"
        return
    name = f"{image.file.path.name}.[0-9]*" if image.head.split else image.file.path.name
    source = f"cat {name} | zstd -dc" if image.head.split else f"zstd -dc {name}"
    test = f"cat {name} | zstd -t" if image.head.split else f"zstd -t {name}"
    yield "without    imager, from a shell (everything on /dev/sdX is overwritten):"
    yield f"             {test} && [ $({source} | wc -c) = {image.head.disk_size} ] &&"
    yield f"             {source} | dd of=/dev/sdX bs=4M iflag=fullblock conv=fsync"


def _size_of(image: ImageReader) -> str:
    parts = f" in {len(image.file.paths)} parts" if len(image.file.paths) > 1 else ""
    return f"{format_size(image.file.size)}{parts}, {image.algorithm.name}"


def _verdict(image: ImageReader) -> str:
    if image.completeness is not Completeness.COMPLETE:
        return f"failed: the image is {image.completeness.value}"
    if image.manifest is None:
        return "unknown: the manifest is damaged"
    unreadable = image.manifest.facts.get("unreadable_bytes")
    degraded = f" ({unreadable} bytes could not be read)" if unreadable else ""
    return f"{image.manifest.verdict}{degraded}; imager check proves the content"


def _when(facts: Mapping[str, object]) -> str:
    text = _text(facts, "created")
    try:
        when = datetime.datetime.fromisoformat(text)
        age = format_age((datetime.datetime.now(datetime.UTC) - when).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return text
    return f"{when:%Y-%m-%d %H:%M:%S %z} ({age})"


def _disk(facts: Mapping[str, object]) -> str:
    try:
        return printable(Identity.from_json(facts.get("source")).describe())
    except ValueError:
        return "unknown disk"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _text(facts: Mapping[str, object], key: str) -> str:
    return printable(str(facts.get(key, "unknown")))


_LEGEND = "# used   0 zero   . unused   x left out   ! unreadable   ? lost"
_PRIORITY = "?!#0x."


def _map_lines(chain: Chain) -> Iterator[str]:
    """The disk as a grid of letters, each for an equal share; the most telling kind wins."""
    image = chain.image
    columns = max(20, min(shutil.get_terminal_size().columns - 20, 100))
    cells = columns * 16
    share = max(-(-image.head.disk_size // cells), image.head.sector_size)
    grid = bytearray(b"." * -(-image.head.disk_size // share))

    def paint(letter: str, start: int, end: int) -> None:
        for cell in range(start // share, -(-end // share)):
            if _PRIORITY.index(letter) < _PRIORITY.index(chr(grid[cell])):
                grid[cell] = ord(letter)

    for piece in chain.pieces():
        if isinstance(piece, LostRange):
            paint("?", piece.start, piece.end)
            continue
        segment = piece.segment
        absent = segment.map(RangeKind.UNUSED) | segment.map(RangeKind.EXCLUDED)
        held = absent.complement(segment.start, segment.end)
        for start, end, entry in segment.placed(image.head.chunk_size):
            letter = "0" if entry.kind == ChunkKind.ZERO else "#"
            for low, high in held.clip(start, end).without_gaps(share):
                paint(letter, low, high)
        for letter, kind in (("x", RangeKind.EXCLUDED), ("!", RangeKind.UNREADABLE)):
            for low, high in segment.map(kind):
                paint(letter, low, high)
    yield ""
    for row in range(0, len(grid), columns):
        yield f"{format_size(row * share):>10}  {grid[row : row + columns].decode()}"
    yield f"{'':>10}  {_LEGEND}"
