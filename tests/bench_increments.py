"""The nightly part of `make bench`: what a night of small writes costs, and a chain's restore."""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from blake3 import blake3

from imager.extents import Extents
from imager.filesystems import read_allocation
from tests.loop import LoopDevice, mounted, sparse_file
from tests.volumes import FileVolume

IMAGER = f"{sys.executable} -m imager"
NIGHTS = 3
CHAIN = 30
MIB = 1 << 20
_ROWS = 40_000
_UPDATES = 300
_LOGS = 40


def prepare(folder: Path, source: Path) -> None:
    """Put a database of some 40 MB and some logs onto the disk."""
    with LoopDevice(source) as loop, mounted(loop.path, folder / "mount") as mount:
        noise = random.Random(1)
        with closing(sqlite3.connect(mount / "mail.db")) as database:
            database.execute("create table mail (id integer primary key, body text)")
            database.executemany(
                "insert into mail values (?, ?)",
                ((number, noise.randbytes(500).hex()) for number in range(_ROWS)),
            )
            database.commit()
        for number in range(_LOGS):
            (mount / f"log-{number}").write_text("begun\n" * 1000)


def live_a_day(folder: Path, source: Path, day: int) -> None:
    """300 rows of the database change, 40 logs grow."""
    with LoopDevice(source) as loop, mounted(loop.path, folder / "mount") as mount:
        noise = random.Random(day)
        with closing(sqlite3.connect(mount / "mail.db")) as database:
            for _ in range(_UPDATES):
                change = (noise.randbytes(50).hex(), noise.randrange(_ROWS))
                database.execute(
                    "update mail set body = ? || substr(body, 101) where id = ?", change
                )
            database.commit()
        for number in range(_LOGS):
            with (mount / f"log-{number}").open("a") as log:
                log.write(f"day {day}: {noise.randbytes(16).hex()}\n" * 20)


def timed(command: str) -> float:
    """Seconds of a shell command that must succeed."""
    begun = time.monotonic()
    environment = {
        **os.environ,
        "RESTIC_PASSWORD": "x",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }
    words = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stderr}")
    return time.monotonic() - begun


def stored(path: Path) -> int:
    """Bytes below a folder, or of a file."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


class Peer:
    """A program, what it stores into, and what it runs for a night."""

    def __init__(self, name: str, place: Path, begin: str, command: str) -> None:
        self.name = name
        self.place = place
        self.begin = begin
        self.command = command

    def night(self, number: int) -> tuple[float, int]:
        """Seconds, and bytes added."""
        before = stored(self.place)
        seconds = timed(self.command.format(night=number, last=number - 1))
        return seconds, stored(self.place) - before


def peers(folder: Path, source: Path) -> list[Peer]:
    """Ourselves first; others as far as they are installed."""
    places = {name: folder / name for name in ("imager", "borg", "restic", "partclone")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    capture = f"{IMAGER} capture -q {source} {places['imager']}"
    found = [
        Peer(
            "imager capture --parent",
            places["imager"],
            f"{capture}/0.img",
            f"{capture}/{{night}}.img --parent {places['imager']}/{{last}}.img",
        )
    ]
    if shutil.which("borg"):
        place = places["borg"]
        create = f"borg create --read-special -C zstd,3 {place}::{{night}} {source}"
        begin = f"borg init -e none {place} && {create.format(night=0)}"
        found.append(Peer("borg create", place, begin, create))
    if shutil.which("restic"):
        restic = f"restic -q -r {places['restic']}"
        backup = f"{restic} backup --stdin < {source}"
        begin = f"{restic} init --repository-version 2 && {backup}"
        found.append(Peer("restic backup --stdin", places["restic"], begin, backup))
    clone = (
        f"partclone.ext4 -c -s {source} -o - -L {folder}/partclone.log "
        f"| zstd -3 -T0 -q -f -o {places['partclone']}/{{night}}.zst"
    )
    name = "partclone.ext4 \\| zstd -3 (full)"
    found.append(Peer(name, places["partclone"], clone.format(night=0), clone))
    return found


def increments(folder: Path, source: Path, runs: int) -> None:
    """Nights against others; an unchanged night against its bound; a long chain's restore."""
    prepare(folder, source)
    everyone = peers(folder, source)
    print(f"\n### Nights of small writes ({_UPDATES} rows of a database, {_LOGS} logs)\n")
    print(
        "| command | first MB | "
        + " | ".join(f"night {n}: MB, s" for n in range(1, NIGHTS + 1))
        + " |"
    )
    print("|---" * (NIGHTS + 2) + "|")
    rows: dict[str, list[str]] = {}
    for peer in everyone:
        timed(peer.begin)
        rows[peer.name] = [f"{stored(peer.place) / 1e6:.0f}"]
    for night in range(1, NIGHTS + 1):
        live_a_day(folder, source, night)
        for peer in everyone:
            seconds, size = peer.night(night)
            rows[peer.name].append(f"{size / 1e6:.2f}, {seconds:.2f}")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    for peer in everyone[1:]:
        shutil.rmtree(peer.place)
    unchanged(folder, source, runs)
    huge(folder)
    long_chain(folder, source, runs)


def unchanged(folder: Path, source: Path, runs: int) -> None:
    """A night in which nothing happened: reading and hashing is all there is to do.

    Of a disk whose content is in no cache. Processor time, too: on a machine that has other work it
    tells more than the clock.
    """
    parent = folder / "imager" / f"{NIGHTS}.img"
    image = folder / "imager" / "same.img"
    used = read_allocation("ext4", FileVolume(source)).allocated
    times: dict[str, list[tuple[float, float]]] = {}
    with LoopDevice(source, direct=True) as disk:
        capture = f"{IMAGER} capture -q --parent {parent} {disk.path} {image}"
        work: dict[str, Callable[[], object]] = {
            "reading what is used, a thread for each core": lambda: read_all(disk.path, used),
            "hashing as much, BLAKE3, a thread for each core": lambda: hash_all(used.total),
            "imager capture --parent, whole process": lambda: timed(capture),
        }
        for _ in range(runs):
            image.unlink(missing_ok=True)
            for name, function in work.items():
                forget(disk.path, source)
                before, begun = processor_time(), time.monotonic()
                function()
                spent = time.monotonic() - begun, processor_time() - before
                times.setdefault(name, []).append(spent)
    print(f"\n### An unchanged night ({used.total / 1e6:.0f} MB used)\n")
    print("| what | seconds | processor seconds | MB/s |\n|---|---|---|---|")
    clocks, processors = [], []
    for name, found in times.items():
        clock, processor = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"| {name} | {clock:.2f} | {processor:.2f} | {used.total / 1e6 / clock:.0f} |")
        clocks.append(clock)
        processors.append(processor)
    print(
        f"\nThat is {max(clocks[:2]) / clocks[2]:.2f} x the slower of the two by the clock, "
        f"{sum(processors[:2]) / processors[2]:.2f} x both by processor time. "
        f"The image takes {image.stat().st_size} bytes.",
        flush=True,
    )
    image.unlink()


def huge(folder: Path) -> None:
    """Unchanged nights of disks that are full of different chunks, reading and hashing left out."""
    print("\n### Unchanged nights of huge disks, all of it in use\n")
    print("| disk | first night: bytes, s | second: bytes, s | peak MiB |\n|---|---|---|---|")
    for size in (1 << 10, 4 << 10):
        place = folder / "huge"
        place.mkdir()
        command = [sys.executable, "-m", "tests.huge_disk", str(place), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        nights = (f"{s}, {t:.1f}" for s, t in zip(found["sizes"], found["seconds"], strict=True))
        print(f"| {size >> 10} TiB | {' | '.join(nights)} | {found['peak']} |", flush=True)
        shutil.rmtree(place)


def forget(*paths: Path) -> None:
    """Drop what the page cache has of these."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def processor_time() -> float:
    """Seconds of this process and its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def read_all(disk: Path, used: Extents) -> None:
    """Read these ranges in order, a mebibyte at a time, past the page cache: the fastest way."""
    cores = os.cpu_count() or 1
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    places = iter(
        [(at, min(end - at, MIB)) for start, end in used for at in range(start, end, MIB)]
    )

    def work(_: int) -> None:
        view = memoryview(mmap.mmap(-1, MIB))
        for offset, size in places:
            os.preadv(fd, [view[:size]], offset)

    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(work, range(cores)))
    os.close(fd)


def hash_all(size: int) -> None:
    """Hash so many bytes, in chunks of a mebibyte, in a thread for each core."""
    cores = os.cpu_count() or 1
    chunk = os.urandom(MIB)

    def work(count: int) -> None:
        for _ in range(count):
            blake3(chunk).digest()

    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(work, [size // MIB // cores] * cores))


def long_chain(folder: Path, source: Path, runs: int) -> None:
    """The restore of the last of thirty nights against that of a full image of the same disk."""
    images = folder / "imager"
    for night in range(NIGHTS + 1, CHAIN + 1):
        live_a_day(folder, source, night)
        timed(
            f"{IMAGER} capture -q --parent {images}/{night - 1}.img {source} {images}/{night}.img"
        )
    full = folder / "full.img"
    timed(f"{IMAGER} export -q {images}/{CHAIN}.img {full}")
    options = "-q --yes --verify-while-writing --no-read-back"
    times: dict[Path, list[float]] = {full: [], images / f"{CHAIN}.img": []}
    target = sparse_file(folder / "target.raw", source.stat().st_size)
    with LoopDevice(target) as loop:
        for _ in range(runs):
            for image, found in times.items():
                found.append(
                    timed(f"{IMAGER} restore {options} {image} {loop.path}; sync {loop.path}")
                )
        check = timed(f"{IMAGER} check -q {images}/{CHAIN}.img")
    target.unlink()
    whole, chained = (statistics.median(found) for found in times.values())
    print(f"\n### A chain of {CHAIN} nights\n\n| restore of | seconds | |\n|---|---|---|")
    print(f"| a full image of the last night | {whole:.2f} | |")
    print(
        f"| the last night's incremental image | {chained:.2f} | {whole / chained:.2f} x as fast |"
    )
    sizes = [(images / f"{night}.img").stat().st_size for night in range(1, CHAIN + 1)]
    print(
        f"\nThe {CHAIN} nights take {sum(sizes) / 1e6:.2f} MB; a check of the last: {check:.2f} s.",
        flush=True,
    )
