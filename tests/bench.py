"""`make bench`: us and the peers on the same data in one run; prints ratios as Markdown.

    python -m tests.bench [--size GB] [--runs N] [--folder DIR] [PART ...]

Runs are interleaved, whole processes are timed, medians compared. Needs root (loop devices).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from imager.filesystems import read_allocation
from imager.image.codec import ChunkDecoder
from imager.image.format import ChunkKind
from imager.image.index import Segment
from imager.image.reader import ImageReader
from tests import exfat_images, f2fs_images, hfsplus_images, xfs_images
from tests.bench_increments import increments
from tests.bench_live import live
from tests.bench_prune import pruned
from tests.loop import LoopDevice, mounted, sparse_file
from tests.lvm_volumes import Lvm
from tests.volumes import FileVolume

IMAGER = f"{sys.executable} -m imager"
MIB = 1 << 20
_PARTS = ["capture", "check", "restore", "chunks", "memory", "maps", "increments", "prune", "live"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--size", type=float, default=4, help="GB of file data (default 4)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--data", type=Path, default=Path("/usr"), help="files to copy")
    parser.add_argument("what", nargs="*", default=_PARTS, metavar="PART", help=", ".join(_PARTS))
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled once
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        source = make_source(folder, arguments.data, int(arguments.size * 1e9))
        print(f"{os.cpu_count()} cores, medians of {arguments.runs} runs", flush=True)
        for part in (capture, check, restore, chunks):
            if part.__name__ in arguments.what:
                part(folder, source, arguments.runs)
        if "increments" in arguments.what:
            increments(folder, source, arguments.runs)
        if "prune" in arguments.what:
            pruned(folder)
        if "live" in arguments.what:
            live(folder, source, arguments.runs)
        if "memory" in arguments.what:
            memory(folder)
        if "maps" in arguments.what:
            maps(folder)


def make_source(folder: Path, data: Path, size: int) -> Path:
    """An ext4 file system in a file, filled with real files through the kernel."""
    source = sparse_file(folder / "source.raw", (size * 5 // 4 // MIB + 1024) * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", source], check=True)
    with LoopDevice(source) as loop, mounted(loop.path, folder / "mount") as mount:
        copied = 0
        while copied < size:
            before = copied
            for file in files_of(data):
                target = mount / str(copied % 997) / f"{copied}"
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
                copied += file.stat().st_size
                if copied >= size:
                    break
            if copied == before:
                raise SystemExit(f"{data} holds no files to copy")
    return source


def files_of(folder: Path) -> Iterator[Path]:
    """Plain files below `folder`, in a fixed order, none of them larger than 256 MiB."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 256 * MIB:
                yield path


def used_bytes(source: Path, target: Path) -> int:
    """Copy only what is in use, for the bound that no imager can beat."""
    volume = FileVolume(source)
    total = 0
    with target.open("wb") as out:
        for start, end in read_allocation("ext4", volume).allocated:
            for offset in range(start, end, 16 * MIB):
                out.write(volume.read(offset, min(16 * MIB, end - offset)))
            total += end - start
    return total


def timed(command: str) -> float:
    begun = time.monotonic()
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stderr}")
    return time.monotonic() - begun


def interleaved(
    commands: dict[str, str], runs: int, before: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """The median time of each command, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            before()
            times[name].append(timed(command))
    return {name: statistics.median(values) for name, values in times.items()}


def table(title: str, times: dict[str, float], ours: str, size: int) -> None:
    print(f"\n### {title}\n\n| command | seconds | MB/s of used data | imager is |")
    print("|---|---|---|---|")
    for name, seconds in times.items():
        ratio = "" if name == ours else f"{seconds / times[ours]:.2f} x as fast"
        print(f"| {name} | {seconds:.2f} | {size / 1e6 / seconds:.0f} | {ratio} |")
    sys.stdout.flush()


def warm(*files: Path) -> Callable[[], None]:
    """Brings files into the page cache: what is compared is programs, not the disk below them."""

    def read() -> None:
        os.sync()  # nobody pays for what the one before left to be written
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.read(16 * MIB):
                    pass

    return read


def captured(folder: Path, source: Path) -> tuple[Path, int]:
    """An image of `source`, and how many bytes of it are in use."""
    image = folder / "a.img"
    if not image.exists():
        timed(f"{IMAGER} capture -q {source} {image}")
    return image, read_allocation("ext4", FileVolume(source)).allocated.total


def capture(folder: Path, source: Path, runs: int) -> None:
    used, image = folder / "used.bin", folder / "a.img"
    clone, dump = folder / "p.zst", folder / "dd.zst"
    size = used_bytes(source, used)
    warm_up = warm(source, used)

    def before() -> None:
        image.unlink(missing_ok=True)
        warm_up()

    commands = {
        "imager capture": f"{IMAGER} capture -q {source} {image}",
        "partclone.ext4 -c \\| zstd -3 -T0": clone_command(folder, source, clone),
        "bound: zstd -3 -T2 of the used bytes": f"zstd -3 -T2 -q -c {used} > /dev/null",
        "dd \\| zstd -3 -T0 (whole disk)": f"dd if={source} bs=4M | zstd -3 -T0 -q -f -o {dump}",
    }
    table("Capture", interleaved(commands, runs, before), "imager capture", size)
    image, _ = captured(folder, source)
    sizes = [path.stat().st_size / 1e6 for path in (image, clone, dump)]
    print("\nsizes: imager {:.0f} MB, partclone {:.0f} MB, dd {:.0f} MB".format(*sizes))
    used.unlink()
    dump.unlink()


def check(folder: Path, source: Path, runs: int) -> None:
    image, size = captured(folder, source)
    commands = {"imager check": f"{IMAGER} check -q {image}", "zstd -t": f"zstd -tq {image}"}
    table("Check", interleaved(commands, runs, warm(image)), "imager check", size)


def restore(folder: Path, source: Path, runs: int) -> None:
    image, size = captured(folder, source)
    clone = folder / "p.zst"
    if not clone.exists():
        timed(clone_command(folder, source, clone))
    target = sparse_file(folder / "target.raw", source.stat().st_size)
    with LoopDevice(target) as loop:
        way = f"{image} {loop.path}"
        commands = {
            "imager restore --verify-while-writing --no-read-back": f"{IMAGER} restore -q --yes "
            f"--verify-while-writing --no-read-back {way}; sync {loop.path}",
            "zstd -dc \\| partclone.restore": f"zstd -dcq {clone} | partclone.restore -s - "
            f"-o {loop.path} -L {folder}/partclone.log; sync {loop.path}",
            "zstd -dc \\| dd (whole disk)": f"zstd -dcq {image} "
            f"| dd of={loop.path} bs=4M iflag=fullblock conv=fsync",
            "imager restore (verify, write, read back)": f"{IMAGER} restore -q --yes {way}",
        }
        ours = next(iter(commands))
        times = interleaved(commands, runs, warm(image, clone))
        table("Restore to a loop device", times, ours, size)
    target.unlink()


def clone_command(folder: Path, source: Path, clone: Path) -> str:
    """What Clonezilla runs."""
    return (
        f"partclone.ext4 -c -s {source} -o - -L {folder}/partclone.log "
        f"| zstd -3 -T0 -q -f -o {clone}"
    )


def chunks(folder: Path, source: Path, runs: int) -> None:
    """What the default chunk size and level were chosen by."""
    print("\n### Chunk size and level\n")
    print(
        "| chunk | level | image MB | capture s | random 4 KiB read, median ms |\n|---|---|---|---|---|"
    )
    image = folder / "chunks.img"
    variants = [(kib, 3) for kib in (64, 256, 1024, 4096)] + [(1024, 1), (1024, 6)]
    for kib, level in variants:
        times = []
        for _ in range(min(runs, 3)):
            image.unlink(missing_ok=True)
            times.append(
                timed(f"{IMAGER} capture -q --chunk-size {kib}KiB --level {level} {source} {image}")
            )
        print(
            f"| {kib} KiB | {level} | {image.stat().st_size / 1e6:.0f} | "
            f"{statistics.median(times):.2f} | {random_read(image):.2f} |",
            flush=True,
        )
    image.unlink()


def random_read(path: Path, reads: int = 200) -> float:
    """Milliseconds to fetch and verify a chunk at random, as a 4 KiB read needs it."""
    with ImageReader(path) as image:
        decoder = ChunkDecoder(image.algorithm, image.head.chunk_size)
        entries = [
            item
            for segment in image.segments()
            if isinstance(segment, Segment)
            for item in segment.placed(image.head.chunk_size)
            if item[2].kind == ChunkKind.DATA
        ]
        times = []
        for start, end, entry in random.Random(1).sample(entries, min(reads, len(entries))):
            begun = time.perf_counter()
            (frame,) = image.read_frames([entry])
            if not isinstance(frame, memoryview):
                raise frame
            decoder.decode(frame, entry, end - start)
            times.append(time.perf_counter() - begun)
        return statistics.median(times) * 1000


def memory(folder: Path) -> None:
    """Peak memory of a capture and a check, small disk against 2 TiB sparse disk."""
    print("\n### Memory and metadata\n\n| disk | command | seconds | peak MiB |\n|---|---|---|---|")
    for name, size in (("10 GiB", 10 << 30), ("2 TiB", 2 << 40)):
        for kind, mkfs in (
            ("ext4", ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1"]),
            ("ntfs", ["mkfs.ntfs", "-q", "-Q", "-F"]),
        ):
            disk = sparse_file(folder / f"{kind}.raw", size)
            subprocess.run([*mkfs, disk], check=True, capture_output=True)
            image = folder / "memory.img"
            image.unlink(missing_ok=True)
            for command in (f"capture -q {disk} {image}", f"check -q {image}"):
                seconds, peak = measured(command)
                print(
                    f"| {name} {kind} | {command.split()[0]} | {seconds:.2f} | {peak} |", flush=True
                )
            disk.unlink()


def maps(folder: Path) -> None:
    """How long reading the allocation of a fragmented 2 TiB volume takes."""
    print("\n### Allocation maps of fragmented 2 TiB volumes\n")
    print("| file system | ranges | seconds | peak MiB of the process |\n|---|---|---|---|")
    makers: dict[str, Callable[[Path], Path]] = {
        "btrfs": fragmented_btrfs,
        "exfat": exfat_images.fragmented,
        "ext4": fragmented_ext4,
        "f2fs": f2fs_images.fragmented,
        "hfsplus": lambda volume: hfsplus_images.fragmented(volume, (2 << 40) // 2048, 80),
        "ntfs": fragmented_ntfs,
        "xfs": fragmented_xfs,
    }
    for kind, make in makers.items():
        volume = make(sparse_file(folder / f"{kind}.raw", 2 << 40))
        code = (
            "import re, time; from imager.disk.source import SourceDevice; "
            "from imager.filesystems import read_allocation; from pathlib import Path; "
            f"device = SourceDevice(Path('{volume}')); begun = time.monotonic(); "
            f"found = read_allocation('{kind}', device).allocated; "
            "seconds = time.monotonic() - begun; "
            "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()); "
            "print(f'{len(found)} | {seconds:.2f} | {int(peak[1]) // 1024}')"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
        print(f"| {kind} | {done.stdout.decode().strip()} |", flush=True)
        volume.unlink()
    logical_volume(folder)


def logical_volume(folder: Path) -> None:
    """The same ext4 in a logical volume of two pieces that are the wrong way round."""
    size = 2 << 40
    disk = sparse_file(folder / "lvm.raw", size + MIB)
    with LoopDevice(disk) as device:
        lvm = Lvm(folder, (device.path,))
        lvm.run("pvcreate", "--dataalignment", "1m", device.path)
        lvm.run("vgcreate", "-s", "1m", "bench", device.path)
        lvm.create("bench", "gone", 64, device.path)
        lvm.create("bench", "root", (size >> 20) - 64, device.path)
        lvm.run("lvremove", "-y", "bench/gone")
        lvm.extend("bench", "root", 64, device.path)
        pieces = lvm.pieces("bench", "root")
    os.truncate(disk, size + 128 * MIB)
    fragmented_ext4(disk, pieces[0].offset, size)
    with disk.open("r+b") as file:  # the end of it comes before its beginning
        file.seek(pieces[0].offset + pieces[1].logical)
        end = file.read(pieces[1].size)
        file.seek(pieces[1].offset)
        file.write(end)
    code = (
        "import re, time; from imager.disk.source import SourceDevice; "
        "from imager.layout.analyse import analyse; from pathlib import Path; "
        f"path = Path('{disk}'); device = SourceDevice(path); begun = time.monotonic(); "
        "found = analyse(device, path); seconds = time.monotonic() - begun; "
        "assert found.layout.volumes[0].children[0].stored == 'used', found.layout; "
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()); "
        "print(f'{len(found.used)} | {seconds:.2f} | {int(peak[1]) // 1024}')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    print(f"| ext4 in LVM | {done.stdout.decode().strip()} |", flush=True)
    disk.unlink()


def fragmented_btrfs(volume: Path) -> Path:
    """An extent of 132 KiB in each 5 MiB: what lay between them is deleted.

    Smaller ones would get chunks of their own.
    """
    subprocess.run(["mkfs.btrfs", "-q", volume], check=True, capture_output=True)
    small, large = 132 << 10, 4988 << 10
    place = volume.with_suffix(".mount")
    with LoopDevice(volume) as loop, mounted(loop.path, place, fs_type="btrfs"):
        kept, deleted = (os.open(place / name, os.O_RDWR | os.O_CREAT) for name in ("a", "b"))
        for number in range((volume.stat().st_size * 9 // 10) // (small + large)):
            os.posix_fallocate(kept, number * 2 * small, small)
            os.posix_fallocate(deleted, number * 2 * large, large)
        os.close(kept)
        os.close(deleted)
        (place / "b").unlink()
    return volume


def fragmented_ext4(volume: Path, offset: int = 0, size: int | None = None) -> Path:
    """One block in use of each 640, set by debugfs; `size` bytes at `offset` of a file."""
    options = ["-i", "67108864", "-O", "^metadata_csum,^uninit_bg", "-E", f"offset={offset}"]
    length = [f"{size >> 10}k"] if size else []
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, volume, *length], check=True)
    commands = volume.with_suffix(".debugfs")
    commands.write_text("".join(f"setb {block} 1\n" for block in range(10**5, 1 << 29, 640)))
    debugfs = ["debugfs", "-w", "-f", str(commands), f"{volume}?offset={offset}"]
    subprocess.run(debugfs, check=True, capture_output=True)
    return volume


def fragmented_ntfs(volume: Path) -> Path:
    """One cluster in use of each 640: mkfs.ntfs, and a pattern in the free part of $Bitmap."""
    subprocess.run(["mkfs.ntfs", "-q", "-Q", "-F", volume], check=True, capture_output=True)
    told = subprocess.run(
        ["ntfsinfo", "-i", "6", "-v", volume], check=True, capture_output=True, text=True
    ).stdout
    runs = re.search(r"0x0\s+(0x[0-9a-f]+)\s+(0x[0-9a-f]+)", told)
    if runs is None:
        raise SystemExit("ntfsinfo does not tell where $Bitmap is")
    with volume.open("r+b") as file:
        offset = int(runs[1], 16) * 4096
        file.seek(offset)
        bitmap = bytearray(file.read(int(runs[2], 16) * 4096))
        for position in range(1 << 20, len(bitmap) - (1 << 20), 80):
            bitmap[position] |= 1
        file.seek(offset)
        file.write(bitmap)
    return volume


def fragmented_xfs(volume: Path) -> Path:
    """One block free of each 640: mkfs.xfs, and holes punched into files as large as the volume."""
    subprocess.run(["mkfs.xfs", "-q", "-l", "size=64m", volume], check=True, capture_output=True)
    place = volume.with_suffix(".mounted")
    with LoopDevice(volume) as loop, mounted(loop.path, place, fs_type="xfs"):
        for number in range(8):
            xfs_images.fragment(place / str(number), 240 << 30, 640 * 4096)
    return volume


PEAK = """
import re, sys
from pathlib import Path
from imager.cli import main
if main(sys.argv[1:]):
    sys.exit("failed")
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def measured(command: str) -> tuple[float, int]:
    """Seconds and peak MiB of an imager command."""
    begun = time.monotonic()
    # The kernel's ru_maxrss of a child begins at its parent's size; VmHWM does not.
    words = [sys.executable, "-c", PEAK, *command.split()]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
    return time.monotonic() - begun, int(done.stdout) // 1024


if __name__ == "__main__":
    main()
