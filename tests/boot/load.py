"""Writes so that the order of all that was written can be proven, and proves it; runs in the machine.

    step n   1. record n, with the hash of the content to come    HOME/log
             2. content n, as a new file or over an old one         ROOT/(n mod 50)
             3. record n                                            ROOT/log
             4. of each 25th: record n                              ESP/load

    rewriting: block n of 1 MiB, which holds nothing but n          ROOT/blocks, block n mod 48

One thread does each. So a state is of one instant only if all steps up to some n are done, wholly, on
every file system, and of n + 1 only the first few parts; and the blocks are the last 48 numbers.

    load.py write ROOT HOME ESP PAUSE BLOCK_PAUSE    until it is killed
    load.py check ROOT HOME ESP                      says "STATE ok steps=N blocks=N", or what is wrong
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
from pathlib import Path

SLOTS, BLOCKS, EACH = 50, 48, 25
RECORD = 128
"""Bytes of a record in a log."""
_BLOCK = 1 << 20


class Wrong(Exception):
    """A state that no instant ever had."""


def write(root: Path, home: Path, esp: Path, pause: float, block_pause: float) -> None:
    """Write until killed; `pause` seconds between steps, `block_pause` between blocks."""
    for folder in (root, home):
        folder.mkdir(parents=True, exist_ok=True)
    threading.Thread(target=_rewrite, args=(root / "blocks", block_pause), daemon=True).start()
    rng = random.Random(1)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    logs = [os.open(folder / "log", flags, 0o600) for folder in (home, root)]
    last = os.open(esp / "load", os.O_WRONLY | os.O_CREAT, 0o600)
    number = 0
    while True:
        number += 1
        content = rng.randbytes(rng.randrange(1, 60_000))
        record = _record(number, content)
        os.write(logs[0], record)
        _put(root / str(number % SLOTS), content, rng.random())
        os.write(logs[1], record)
        if number % EACH == 0:
            os.pwrite(last, record, 0)
            os.fsync(last)
        time.sleep(pause)


def _put(place: Path, content: bytes, choice: float) -> None:
    """Write a whole file: over the old one, or beside it, at times with fsync."""
    new = place if choice < 0.3 else place.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT, 0o600)
    os.ftruncate(fd, min(os.fstat(fd).st_size, len(content)))
    os.pwrite(fd, content, 0)
    if choice > 0.8:
        os.fsync(fd)
    os.close(fd)
    if new != place:
        new.rename(place)


def _rewrite(place: Path, pause: float) -> None:
    fd = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
    number = 0
    while True:
        number += 1
        os.pwrite(fd, _block(number), number % BLOCKS * _BLOCK)
        if number % 8 == 0:
            os.fdatasync(fd)
        time.sleep(pause)


def _block(number: int) -> bytes:
    return number.to_bytes(8, "little") * (_BLOCK // 8)


def _record(number: int, content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    return f"{number:012d} {digest} {len(content)}".ljust(RECORD - 1).encode() + b"\n"


def check(root: Path, home: Path, esp: Path) -> tuple[int, int]:
    """How many steps and blocks were written before the instant; Wrong where there was none."""
    begun, done = _log(home / "log"), _log(root / "log")
    if len(begun) - len(done) not in (0, 1) or done != begun[: len(done)]:
        raise Wrong(f"{len(begun)} steps were begun, {len(done)} are done")
    for slot in range(SLOTS):
        if len(begun) > len(done) and len(begun) % SLOTS == slot:
            continue  # it may be at work on this one: cut short, old or new
        known = [number for number in range(1, len(done) + 1) if number % SLOTS == slot]
        expected = begun[known[-1] - 1] if known else hashlib.sha256(b"").hexdigest()
        if hashlib.sha256(_read(root / str(slot))).hexdigest() != expected:
            raise Wrong(f"file {slot} is not that of the last step before {len(done)}")
    _check_esp(_read(esp / "load"), len(done))
    return len(done), _check_blocks(root / "blocks")


def _check_esp(data: bytes, done: int) -> None:
    number = int(data[:12]) if data[:12].isdigit() else 0
    expected = done // EACH * EACH
    if number != expected and not (done == expected and number == expected - EACH):
        raise Wrong(f"the ESP has record {number}, but {done} steps are done")


def _check_blocks(place: Path) -> int:
    numbers: list[int] = []
    with place.open("rb") as file:
        while block := file.read(_BLOCK):
            number = int.from_bytes(block[:8], "little")
            if block != _block(number)[: len(block)]:
                raise Wrong(f"block {len(numbers)} is a mixture")
            numbers.append(number)
    last = max(numbers)
    for position, number in enumerate(numbers):
        expected = last - (last - position) % BLOCKS
        if number != max(expected, 0):
            raise Wrong(f"block {position} is {number} instead of {expected}, the last is {last}")
    return last


def _log(place: Path) -> list[str]:
    """The hashes of a log's records; Wrong unless these are numbered from 1, without a gap."""
    data = place.read_bytes()
    records = [data[at : at + RECORD] for at in range(0, len(data), RECORD)]
    for number, record in enumerate(records, 1):
        if len(record) != RECORD or not record.startswith(b"%012d " % number):
            raise Wrong(f"{place}: record {number} is {record!r}")
    return [record.split()[1].decode() for record in records]


def _read(place: Path) -> bytes:
    return place.read_bytes() if place.exists() else b""


def main(words: list[str]) -> None:
    """Run what the command line says."""
    root, home, esp = map(Path, words[1:4])
    if words[0] == "write":
        write(root, home, esp, float(words[4]), float(words[5]))
    elif not (home / "log").exists():
        print("STATE new", flush=True)
    else:
        try:
            steps, blocks = check(root, home, esp)
            print(f"STATE ok steps={steps} blocks={blocks}.", flush=True)
        except Exception as error:  # what is damaged may fail anywhere; it is said, not hidden
            print(f"STATE wrong: {error!r}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
