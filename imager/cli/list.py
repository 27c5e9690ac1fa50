"""`imager list`: what is in a store."""

from __future__ import annotations

import argparse
import datetime
import json
import shutil

from imager.cli.stores import add_store, chosen_stores
from imager.cli.text import format_age, format_size, format_table, say
from imager.errors import EXIT_OK
from imager.store.catalog import DiskFolder, State, StoredImage, read_store
from imager.store.folder import Store, open_store

_EPILOG = """\
examples:
  imager list /mnt/backup            machines, disks and their images
  imager list                        the stores of this machine's schedules, or $IMAGER_STORE
  imager list --json /mnt/backup     the same for programs
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "list",
        help="list the images in a store",
        description="List the machines, disks and images in a store: when each image was captured, "
        "what it added, how its capture went and when it was last checked.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_store(parser, "?")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    stores = [open_store(path) for path in chosen_stores(arguments.store)]
    contents = [(store, read_store(store)) for store in stores]
    if arguments.json:
        print(json.dumps([_store_json(store, folders) for store, folders in contents], indent=2))
        return EXIT_OK
    now = datetime.datetime.now(datetime.UTC)
    for store, folders in contents:
        free, total = store.free()
        say(f"{store.path}: {format_size(free)} of {format_size(total)} free")
        for folder in folders:
            _print_folder(folder, now)
    return EXIT_OK


def _print_folder(folder: DiskFolder, now: datetime.datetime) -> None:
    for host, disk in folder.disks():
        say(f"{host}: {disk}, in {folder.path.parent.name}/{folder.path.name}")
        rows: list[tuple[str, ...]] = [("  CAPTURED", "ADDED", "", "VERDICT", "LAST CHECKED", "")]
        rows += (_row(image, now) for image in folder.of(host, disk))
        for line in format_table(rows, (1,), shutil.get_terminal_size().columns):
            say(line)
    for image in folder.images:
        if image.state is State.PARTIAL:
            say(f"  {image.name}: unfinished, of {image.created:%Y-%m-%d %H:%M}")
    expired = [image.files.allocated() for image in folder.images if image.state is State.EXPIRED]
    if expired:
        say(
            f"  {len(expired)} given up, which still take {format_size(sum(expired))}: "
            "others borrow from them, or they wait for the next prune"
        )
    for unreadable in folder.unreadable:
        say(f"  {unreadable.files.path.name}: cannot be read: {unreadable.reason}")


def _row(image: StoredImage, now: datetime.datetime) -> tuple[str, ...]:
    checked = "never"
    if image.check is not None:
        age = format_age((now - image.check.when).total_seconds())
        checked = f"{image.check.verdict}, {age}"
    return (
        f"  {image.created:%Y-%m-%d %H:%M}",
        format_size(image.files.allocated()),
        "incremental" if image.parents else "full",
        "orphaned" if image.orphaned else image.verdict,
        checked,
        "pinned" if image.pinned else "",
    )


def _store_json(store: Store, folders: tuple[DiskFolder, ...]) -> dict[str, object]:
    free, total = store.free()
    return {
        "store": str(store.path),
        "id": store.id,
        "free": free,
        "size": total,
        "folders": [
            {
                "path": str(folder.path),
                "images": [_image_json(image) for image in folder.images],
                "unreadable": [
                    {"path": str(each.files.path), "reason": each.reason}
                    for each in folder.unreadable
                ],
            }
            for folder in folders
        ],
    }


def _image_json(image: StoredImage) -> dict[str, object]:
    check = image.check
    return {
        "path": str(image.files.opened_as),
        "state": image.state.value,
        "host": image.host,
        "disk": image.disk,
        "created": image.created.isoformat(),
        "uuid": image.uuid,
        "parents": list(image.parents),
        "disk_size": image.head.disk_size,
        "size": image.files.size(),
        "allocated": image.files.allocated(),
        "verdict": image.verdict,
        "orphaned": image.orphaned,
        "checked": check.when.isoformat() if check else None,
        "check_verdict": check.verdict if check else None,
        "lost": [list(pair) for pair in check.lost] if check else [],
        "pinned": image.pinned,
    }
