"""`imager capture`: a disk into an image."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imager.capture import DEFAULT_LEVEL, CaptureOptions, CaptureResult, capture
from imager.cli.arguments import add_common, add_threads, partition_list
from imager.cli.passphrase import place_argument, read_passphrases
from imager.cli.progress import ProgressDisplay
from imager.cli.text import duration_argument, format_size, say, size_argument
from imager.errors import EXIT_DEGRADED, EXIT_OK, ImageError, UsageError
from imager.image.format import DEFAULT_CHUNK
from imager.image.sink import MAX_PART
from imager.preview import Preview, preview
from imager.store.capture import MAX_CHAIN, StoredCapture, capture_into, preview_into
from imager.store.folder import open_store
from imager.words.capture import result_lines
from imager.words.layout import layout_lines

if TYPE_CHECKING:
    from imager.live.disk import Instant

_EPILOG = """\
examples:
  imager capture /dev/sda /mnt/usb/sda.img           the whole disk, what is in use
  imager capture /dev/sda --dry-run                  what would be stored, and why
  imager capture --verify /dev/sda sda.img           check the image right afterwards
  imager capture --split 4G /dev/sda /mnt/fat/sda    parts for a FAT32 stick
  imager capture --exclude 3 /dev/sda sda.img        without partition 3
  imager capture --unlock 3 /dev/sda sda.img         an encrypted disk, only what is in use
  imager capture --resume /dev/sda sda.img           go on after a crash
  imager capture --parent mon.img /dev/sda tue.img   only what differs from mon.img
  imager capture /dev/sda - | ssh nas 'cat > sda.img'
  imager capture /dev/sda --store /mnt/backup        what changed since the last image there
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "capture",
        help="store a disk in an image file",
        description="Store the used sectors of a disk, partition or disk-image file in an image. "
        "The source is only ever read.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="disk, partition or disk-image file")
    parser.add_argument(
        "image", metavar="IMAGE", nargs="?", help="file to write; - for standard output"
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="instead of IMAGE: into this store, against the newest good image of the same disk",
    )
    parser.add_argument(
        "--full", action="store_true", help="with --store: store everything, not what changed"
    )
    parser.add_argument(
        "--max-chain",
        type=int,
        default=MAX_CHAIN,
        metavar="N",
        help="with --store: begin with a full image anew after N that build upon each other "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=DEFAULT_LEVEL,
        metavar="N",
        help="zstd compression level, 1 to 19 (default %(default)s)",
    )
    add_threads(parser)
    parser.add_argument(
        "--chunk-size",
        type=size_argument,
        default=DEFAULT_CHUNK,
        metavar="SIZE",
        help="64KiB to 16MiB, a power of two (default 1MiB)",
    )
    parser.add_argument(
        "--only",
        type=partition_list,
        default=(),
        metavar="N[,N...]",
        help="store only these partitions; a restore leaves the others alone",
    )
    parser.add_argument(
        "--exclude",
        type=partition_list,
        default=(),
        metavar="N[,N...]",
        help="leave out these partitions",
    )
    parser.add_argument(
        "--unlock",
        type=place_argument,
        action="append",
        default=[],
        metavar="N",
        help="read what is in use in the LUKS volume in this partition (or disk: the whole disk) "
        "by its passphrase, which is asked for; it is stored encrypted all the same. One that is "
        "open needs no passphrase. May be given more than once",
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="with --unlock: a file that is the passphrase"
    )
    parser.add_argument("--raw", action="store_true", help="store every sector, used or not")
    parser.add_argument(
        "--keep-gaps", action="store_true", help="store large unpartitioned space, too"
    )
    parser.add_argument(
        "--split",
        type=size_argument,
        metavar="SIZE",
        help="write parts IMAGE.0001 and so on of at most SIZE, 64MiB to 4GiB",
    )
    parser.add_argument(
        "--parent",
        type=Path,
        metavar="IMAGE",
        help="store only what differs from this image of the same disk, which lies in the same "
        "folder and must be kept; it also gives the chunk size",
    )
    parser.add_argument("--note", default="", help="a line to be kept in the image")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be stored and about how large the image would be",
    )
    parser.add_argument(
        "--continue-on-read-error",
        action="store_true",
        help="go on past unreadable sectors: they become zeros, the verdict is degraded",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with an interrupted capture of the same disk"
    )
    parser.add_argument("--verify", action="store_true", help="check the image right afterwards")
    parser.add_argument(
        "--consistency",
        choices=("auto", "offline", "frozen", "snapshot", "crash"),
        default="auto",
        help="auto (default): offline where nothing on the disk is mounted read-write, else frozen; "
        "frozen: the disk as it is at one instant, at which its file systems stand still; "
        "snapshot: likewise, but what LVM volumes hold is read later, from snapshots (auto does so "
        "where the standstill would be too long); offline: refuse a disk in use; "
        "crash: store what is mounted whole, as a power cut would leave it",
    )
    parser.add_argument(
        "--target-pause",
        type=duration_argument,
        default=0.15,
        metavar="TIME",
        help="how short the standstill of a disk in use should be, such as 150ms (default)",
    )
    parser.add_argument(
        "--max-pause",
        type=duration_argument,
        default=2.0,
        metavar="TIME",
        help="the longest standstill: what cannot be shorter fails (default 2s)",
    )
    parser.add_argument(
        "--before-freeze",
        default="",
        metavar="COMMAND",
        help="shell command to be run just before the standstill, such as one that has a database "
        "write everything out; if it fails there is no image",
    )
    parser.add_argument(
        "--after-thaw",
        default="",
        metavar="COMMAND",
        help="shell command to be run just after it, whatever became of it",
    )
    parser.add_argument(
        "--sector-size",
        type=int,
        choices=(512, 4096),
        help="of a disk-image file (default 512)",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    options = CaptureOptions(
        level=arguments.level,
        threads=arguments.threads,
        chunk_size=arguments.chunk_size,
        only=arguments.only,
        exclude=arguments.exclude,
        raw=arguments.raw,
        keep_gaps=arguments.keep_gaps,
        unlock=read_passphrases(arguments.unlock, arguments.key_file),
        split=_part_size(arguments.split),
        note=arguments.note,
        continue_on_read_error=arguments.continue_on_read_error,
        resume=arguments.resume,
        verify=arguments.verify,
        consistency=arguments.consistency,
        target_pause=arguments.target_pause,
        max_pause=arguments.max_pause,
        before_freeze=arguments.before_freeze,
        after_thaw=arguments.after_thaw,
        sector_size=arguments.sector_size,
        parent=arguments.parent,
    )
    if arguments.store is not None:
        return _run_store(arguments, options)
    if arguments.full:
        raise UsageError("--full is for --store: without --parent an image is a full one anyway")
    if arguments.dry_run:
        with ProgressDisplay(arguments.quiet) as progress:
            _print_preview(preview(arguments.source, options, progress), arguments.json)
        return EXIT_OK
    if arguments.image is None:
        raise UsageError("name the image file to write, or - for standard output")
    piped = arguments.image == "-"
    if piped and sys.stdout.isatty():
        raise UsageError("an image is not written to a terminal: redirect standard output")
    image = sys.stdout.fileno() if piped else Path(arguments.image)
    with ProgressDisplay(arguments.quiet) as progress:
        result = capture(arguments.source, image, options, progress)
    out = sys.stderr if piped else sys.stdout
    if arguments.json:
        print(json.dumps(_result_json(result), indent=2), file=out)
    elif not arguments.quiet:
        print("\n".join(result_lines(result)), file=out)
    if result.parent_problem:
        raise ImageError(f"the image was written, but cannot be read: {result.parent_problem}")
    if result.check is not None:
        result.check.require_good()
    return EXIT_DEGRADED if result.verdict == "degraded" else EXIT_OK


def _run_store(arguments: argparse.Namespace, options: CaptureOptions) -> int:
    if arguments.image is not None:
        raise UsageError("name an image or a store, not both")
    if arguments.parent is not None:
        raise UsageError("a store finds the parent by itself: leave out --parent")
    store = open_store(arguments.store)
    with ProgressDisplay(arguments.quiet) as progress:
        if arguments.dry_run:
            found, plan = preview_into(
                store,
                arguments.source,
                options,
                full=arguments.full,
                max_chain=arguments.max_chain,
                progress=progress,
            )
        else:
            done = capture_into(
                store,
                arguments.source,
                options,
                full=arguments.full,
                max_chain=arguments.max_chain,
                progress=progress,
            )
    if arguments.dry_run:
        _print_preview(found, arguments.json)
        if not arguments.json:
            say(plan)
        return EXIT_OK
    result = done.result
    if arguments.json:
        print(json.dumps(_stored_json(done), indent=2))
    elif not arguments.quiet:
        print("\n".join(result_lines(result)))
        say(f"incremental, against {done.parent.name}" if done.parent else f"full: {done.why_full}")
        if done.healed:
            say(f"stored again, as a check found it damaged: {format_size(done.healed.total)}")
    if result.check is not None:
        result.check.require_good()
    return EXIT_DEGRADED if result.verdict == "degraded" else EXIT_OK


def _stored_json(done: StoredCapture) -> dict[str, object]:
    return {
        **_result_json(done.result),
        "image": str(done.image),
        "why_full": done.why_full or None,
        "healed": [list(pair) for pair in done.healed],
    }


def _part_size(value: int | None) -> int | None:
    """4GiB stands for the largest file that FAT32 holds, which is one byte less."""
    return value - 1 if value == MAX_PART + 1 else value


def _result_json(result: CaptureResult) -> dict[str, object]:
    return {
        "verdict": result.verdict,
        "files": [str(path) for path in result.image.files],
        "image_size": result.image.size,
        "uuid": result.uuid,
        "content_digest": result.image.content_digest.hex(),
        "disk_size": result.disk_size,
        "used": result.used,
        "zero": result.zero,
        "unreadable": [list(pair) for pair in result.unreadable],
        "resumed": result.resumed,
        "consistency": result.consistency,
        "instant": _instant_json(result.instant),
        "parent": result.parent.to_json() if result.parent else None,
        "inherited": result.inherited,
        "revised": result.revised,
        "begun_anew": result.begun_anew,
        "parent_problem": result.parent_problem or None,
        "seconds": round(result.seconds, 3),
        "check": result.check.verdict if result.check else None,
        "layout": result.layout.to_json(),
    }


def _instant_json(instant: Instant | None) -> dict[str, object] | None:
    if instant is None:
        return None
    return {
        "time": instant.pause.instant,
        "pause": round(instant.pause.seconds, 4),
        "read_again": list(instant.rounds),
        "written_meanwhile": instant.written,
        "warning": instant.warning or None,
    }


def _print_preview(found: Preview, as_json: bool) -> None:
    if as_json:
        facts = {
            "layout": found.layout.to_json(),
            "used": found.used,
            "expected_image_size": found.expected_size,
            "sampled": found.sampled,
            "parent": found.parent.to_json() if found.parent else None,
            "changed": found.changed if found.parent else None,
            "smallest_disk": found.layout.size,
        }
        print(json.dumps(facts, indent=2))
        return
    print("\n".join(layout_lines(found.layout)))
    if found.parent is None:
        print(f"{format_size(found.used)} in use would be stored")
        how = f"compressing {format_size(found.sampled)} of it"
    else:
        print(f"of {format_size(found.used)} in use, what differs from its parent would be stored:")
        say(f"  {found.parent.describe()}")
        how = f"{format_size(found.changed)} that differ of {format_size(found.sampled)} compared"
    print(f"expected image: about {format_size(found.expected_size)} (from {how})")
    print(f"smallest disk for a restore: {found.layout.size} bytes")
