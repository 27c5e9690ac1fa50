"""The part of `make bench` on disks in use: how long everything stands still, and what following costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imager.capture import CaptureOptions, capture
from imager.live.dirty import DirtyMap
from imager.live.tracing import Recorder
from tests.loop import LoopDevice, mounted, run

RATES = (0, 10, 50, 100)
"""MB/s of mixed writes."""
_SECONDS = 6.0
"""How long foreground throughput is measured at a time."""

_WRITER = """
import os, random, sys, time
place, rate, seconds = sys.argv[1], float(sys.argv[2]) * 1e6, float(sys.argv[3])
rng = random.Random(1)
noise = rng.randbytes(1 << 20)
database = os.open(f"{place}/database", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(database, 0, 256 << 20)
log, number = os.open(f"{place}/log-0", os.O_RDWR | os.O_CREAT), 0
done = grown = 0
begun = time.monotonic()
print("ready", flush=True)
while time.monotonic() - begun < seconds:
    if rate and done > (time.monotonic() - begun) * rate:
        time.sleep(0.002)
        continue
    size = rng.choice((4096, 8192, 16384, 65536))
    at = rng.randrange(len(noise) - size)
    if rng.random() < 0.5:
        os.pwrite(database, noise[at : at + size], rng.randrange((256 << 20) // 4096 - 16) * 4096)
    else:
        os.write(log, noise[at : at + size])
        grown += size
    done += size
    if rng.random() < 0.01:
        os.fsync(rng.choice((database, log)))
    if grown > 64 << 20:
        os.close(log)
        number, grown = (number + 1) % 4, 0
        log = os.open(f"{place}/log-{number}", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
print(done / (time.monotonic() - begun) / 1e6)
"""


def live(folder: Path, source: Path, runs: int) -> None:
    """Pauses against write rates, and the foreground's throughput while it is followed."""
    print("\n## A disk in use\n")
    print("| writes, MB/s | standstill ms, median (all) | read again MB | written MB | capture s |")
    print("|---|---|---|---|---|")
    for rate in RATES:
        print(pauses(folder, source, rate, runs), flush=True)
    print(pauses(folder, source, 50, runs, True), flush=True)
    ratios = [throughput(folder, source, number) for number in range(runs)]
    print(
        f"\nForeground throughput while only followed: {statistics.median(ratios):.3f} of that "
        f"without ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )
    print(
        f"\n{_FRAGMENTS} fragments in use, 4 threads; peak MiB, standstill s:", end="", flush=True
    )
    for piped in (False, True):
        told = f"{fragmented(folder, piped)} ({'pipe' if piped else 'file'})"
        print(f" {told}", end="", flush=True)
    print()


def pauses(folder: Path, source: Path, rate: int, runs: int, piped: bool = False) -> str:
    """One row of the table; of captures as into a pipe, if so."""
    found = []
    with LoopDevice(source) as loop, mounted(loop.path, folder / "mount") as mount:
        for _ in range(runs):
            image = folder / "live.img"
            with writing(mount, rate, 1000.0 if rate else 0.0):
                time.sleep(2)
                if piped:
                    with image.open("wb") as out:
                        result = capture(loop.path, out.fileno(), CaptureOptions(max_pause=20))
                else:
                    result = capture(loop.path, image, CaptureOptions(max_pause=20))
            image.unlink()
            if result.instant is None:
                raise SystemExit("the disk was not in use")
            found.append((result.instant, result.seconds))
    standstills = [1000 * instant.pause.seconds for instant, _ in found]
    again = statistics.median(sum(instant.rounds) for instant, _ in found) / 1e6
    written = statistics.median(instant.written for instant, _ in found) / 1e6
    seconds = statistics.median(seconds for _, seconds in found)
    listed = ", ".join(f"{pause:.0f}" for pause in standstills)
    middle = statistics.median(standstills)
    how = ", to a pipe" if piped else ""
    return (
        f"| {rate}{how} | {middle:.0f} ({listed}) | {again:.0f} | {written:.0f} | {seconds:.1f} |"
    )


_FRAGMENTS = 1_000_000
_PEAK = """
import os, re, sys
from pathlib import Path
from imager.capture import CaptureOptions, capture
disk, image, piped = sys.argv[1:]
out = os.open(image, os.O_WRONLY | os.O_CREAT) if piped else Path(image)
options = CaptureOptions(threads=4, target_pause=5, max_pause=50)
pause = capture(disk, out, options).instant.pause.seconds
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(f"{int(peak[1]) // 1024}, {pause:.2f}")
"""


def fragmented(folder: Path, piped: bool) -> str:
    """Peak memory of a capture, and its standstill, where every second block is in use."""
    volume, image, commands = (folder / name for name in ("fragments", "live.img", "commands"))
    with volume.open("xb") as file:
        file.truncate((_FRAGMENTS * 2 + (1 << 17)) * 4096)
    run("mkfs.ext4", "-q", "-F", "-i", "1048576", "-O", "^metadata_csum,^uninit_bg", volume)
    first = 1 << 16
    commands.write_text("".join(f"setb {first + 2 * n} 1\n" for n in range(_FRAGMENTS)))
    run("debugfs", "-w", "-f", commands, volume)
    try:
        with LoopDevice(volume) as loop, mounted(loop.path, folder / "mount"):
            how = "piped" if piped else ""
            return run(sys.executable, "-c", _PEAK, loop.path, image, how).strip()
    finally:
        for path in (volume, image, commands):
            path.unlink(missing_ok=True)


def throughput(folder: Path, source: Path, number: int) -> float:
    """How fast a writer without limit is while its writes are recorded, against not."""
    rates: dict[bool, float] = {}
    with LoopDevice(source) as loop, mounted(loop.path, folder / "mount") as mount:
        for followed in (True, False) if number % 2 else (False, True):
            if followed:
                with Recorder(loop.path, DirtyMap(0, source.stat().st_size)):
                    rates[followed] = unlimited(mount)
            else:
                rates[followed] = unlimited(mount)
    return rates[True] / rates[False]


def unlimited(mount: Path) -> float:
    """MB/s of the writer when nothing holds it back."""
    words = [sys.executable, "-c", _WRITER, str(mount), "0", str(_SECONDS)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    subprocess.run(["sync", "-f", mount], check=True)
    return float(done.stdout.split()[-1])


@contextmanager
def writing(mount: Path, rate: int, seconds: float) -> Iterator[None]:
    """A writer of `rate` MB/s in the background; none for 0 seconds."""
    if not seconds:
        yield
        return
    words = [sys.executable, "-c", _WRITER, str(mount), str(rate), str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise SystemExit("the writer does not start")
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
