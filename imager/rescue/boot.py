"""Whether the machine will start what was restored, and a help where its firmware does not know it.

UEFI starts what its own memory (NVRAM) names, or else \\EFI\\BOOT\\BOOTX64.EFI of a disk. A restored
disk brings its loaders, but not the firmware's memory: on a new machine, or after the old entry was
dropped because the disk was missing, an entry has to be made. The disk is not written to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imager.disk.identity import Identity
from imager.disk.inventory import Partition
from imager.errors import ImagerError, ReadFailedError
from imager.rescue.lock import working
from imager.rescue.media import MediaVolume, mounted_read_only
from imager.rescue.session import Run, Session
from imager.wording import printable

TITLE = "Try the boot"
_ESP = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef")
_FALLBACK = "\\EFI\\BOOT\\BOOTX64.EFI"
_LOADERS = ("shimx64.efi", "grubx64.efi", "bootmgfw.efi", "systemd-bootx64.efi")
"""Those that are started by the firmware, the one that passes Secure Boot first."""
_MAX_FOLDERS = 200
_ENTRY = re.compile(r"Boot(?P<number>[0-9A-F]{4})(?P<active>\*?)\s+(?P<rest>.*)")
_BIOS = (
    "This machine was started by a BIOS, which simply takes the first disk that can be started: "
    "remove the stick, then restart. If it does not start, set the disk's place in the BIOS "
    "setup."
)


@dataclass(frozen=True)
class Entry:
    """One of the firmware's boot entries."""

    number: str
    """Four hexadecimal digits."""
    text: str
    """Its label and device path, as efibootmgr prints them."""

    def is_for(self, partition_uuid: str) -> bool:
        """Whether it names a GPT partition."""
        return partition_uuid.lower() in self.text.lower()


def parse_entries(text: str) -> tuple[Entry, ...]:
    """The boot entries in efibootmgr's (verbose) answer."""
    matches = (_ENTRY.match(line) for line in text.splitlines())
    return tuple(Entry(match["number"], printable(match["rest"])) for match in matches if match)


def loaders(root: Path) -> tuple[str, ...]:
    """The loaders on an EFI system partition, as firmware writes their paths, the fallback first.

    FAT does not tell capitals from small letters; a folder with very many is not looked through.
    """
    found = []
    efi = _child(root, "efi")
    boot = _child(efi, "boot") if efi else None
    if boot and _child(boot, "bootx64.efi"):
        found.append(_FALLBACK)
    for folder in _folders(efi):
        names = [_child(folder, name) for name in _LOADERS]
        if folder.name.lower() == "microsoft":
            inner = _child(folder, "boot")
            names.append(_child(inner, "bootmgfw.efi") if inner else None)
        found += ["\\" + str(name.relative_to(root)).replace("/", "\\") for name in names if name]
    return tuple(path for path in found if path.isprintable())


def try_the_boot(session: Session, target: Identity) -> None:
    """Look whether the firmware will start the restored disk; offer an entry where it will not."""
    session.screen.show(TITLE, _help_to_boot(session, target))


def _help_to_boot(session: Session, target: Identity) -> str:
    """What was found and done, as text."""
    if not session.machine.is_uefi:
        return _BIOS
    try:
        with working(session.lock, session.words("looking at the restored disk's loaders")):
            return _prepare(session, target)
    except ImagerError as error:
        session.journal.note(f"try the boot: {error}")
        return f"That could not be found out: {error}. Remove the stick and restart: it may work."


def _prepare(session: Session, target: Identity) -> str:
    disk = next((d for d in session.machine.disks() if d.identity.path == target.path), None)
    partition = next((part for part in disk.partitions if _is_esp(part)), None) if disk else None
    if disk is None or partition is None:
        return (
            "There is no EFI system partition on the restored disk: it comes from a machine that "
            "started by BIOS. Switch its firmware setup to BIOS (legacy, CSM) mode, then restart."
        )
    contents = partition.contents
    volume = MediaVolume(
        partition.path, contents.kind or "vfat", contents.label, contents.uuid, partition.size,
        disk.identity,
    )  # fmt: skip
    with mounted_read_only(volume) as root:
        found = loaders(root)
    if not found:
        return "There is no loader on the disk's EFI system partition: it will not start by UEFI."
    entries = read_entries(session.machine.run)
    known = next((e for e in entries if partition.uuid and e.is_for(partition.uuid)), None)
    if known is not None:
        start_next(session.machine.run, known)
        session.journal.note(f"BootNext set to Boot{known.number} {known.text}")
        return (
            f"The firmware knows this disk (entry Boot{known.number}). It was told to start it "
            "next: remove the stick and restart."
        )
    if found[0] == _FALLBACK:
        return (
            f"The firmware has no entry for this disk, but the disk has {_FALLBACK}, which every "
            "UEFI starts: remove the stick and restart. Nothing was changed."
        )
    if not session.screen.confirm(
        TITLE,
        "The machine's firmware has no entry for this disk, and would not find its loader "
        f"{found[0]} by itself.\n\nShall an entry be added to the firmware's memory, and be "
        "started next? The disk is not written to.",
    ):
        return "Nothing was changed."
    entry = add_entry(session.machine.run, target, partition, found[0])
    session.journal.note(f"firmware entry Boot{entry.number} added: {entry.text}")
    start_next(session.machine.run, entry)
    return (
        f"The entry Boot{entry.number} was added, and will be started next: remove the stick and "
        "restart."
    )


def read_entries(run: Run) -> tuple[Entry, ...]:
    """The firmware's boot entries; ReadFailedError where it does not tell."""
    done = run("efibootmgr", "efibootmgr", "-v")
    if done.returncode:
        raise ReadFailedError(f"efibootmgr failed: {printable(done.stderr.strip())}")
    return parse_entries(done.stdout)


def add_entry(run: Run, disk: Identity, partition: Partition, loader: str) -> Entry:
    """Make an entry for `loader`, first in the boot order; ImagerError where the firmware refuses."""
    before = {entry.number for entry in read_entries(run)}
    done = run(
        *("efibootmgr", "efibootmgr", "--create", "--disk", disk.path),
        *("--part", str(partition.number), "--label", "Restored by imager", "--loader", loader),
    )
    if done.returncode:
        raise ImagerError(f"the firmware takes no entry: {printable(done.stderr.strip())}")
    new = [entry for entry in read_entries(run) if entry.number not in before]
    if len(new) != 1:
        raise ImagerError("the firmware did not keep the entry")
    return new[0]


def start_next(run: Run, entry: Entry) -> None:
    """Have the firmware start `entry` at the next start, that once."""
    done = run("efibootmgr", "efibootmgr", "--bootnext", entry.number)
    if done.returncode:
        raise ImagerError(f"BootNext cannot be set: {printable(done.stderr.strip())}")


def _is_esp(partition: Partition) -> bool:
    return (partition.type or "").lower() in _ESP


def _folders(efi: Path | None) -> Iterator[Path]:
    if efi is None:
        return
    for name in sorted(os.listdir(efi))[:_MAX_FOLDERS]:
        folder = efi / name
        if folder.is_dir() and name.lower() != "boot":
            yield folder


def _child(folder: Path, name: str) -> Path | None:
    """An entry of a FAT folder, whatever its capitals."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    return next((folder / one for one in names if one.lower() == name), None)
