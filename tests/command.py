"""`imager` as a user runs it: a process of its own, judged by exit status and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.disks import get

ROOT = Path(__file__).resolve().parent.parent
IMAGER = (sys.executable, "-m", "imager")
SECONDS = 60


class Done(NamedTuple):
    """A finished run."""

    status: int
    out: str
    err: str


def imager(
    *words: str | Path | int,
    status: int = 0,
    program: tuple[str, ...] = IMAGER,
    environ: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
) -> Done:
    """Run it; AssertionError for another exit status, or any traceback."""
    done = subprocess.run(
        [*program, *map(str, words)],
        stdin=stdin or subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(environ or {})},
        timeout=SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, f"{words}: {done}"
    return Done(done.returncode, done.stdout, done.stderr)


def failure(
    *words: str | Path | int,
    status: int,
    program: tuple[str, ...] = IMAGER,
    environ: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
) -> str:
    """Run it to fail with `status`; the one line that it says, without `imager: `."""
    done = imager(*words, status=status, program=program, environ=environ, stdin=stdin)
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("imager: "), f"{words}: {done}"
    return lines[0].removeprefix("imager: ")


def plain_zstd(image: Path | tuple[Path, ...], folder: Path) -> Path:
    """The disk as others' tools restore it: `zstd -dc`, onto nothing; AssertionError if it fails."""
    disk = folder / "by-zstd"
    files = image if isinstance(image, tuple) else (image,)
    with disk.open("wb") as out:
        cat = subprocess.Popen(["cat", *files], stdout=subprocess.PIPE)
        zstd = subprocess.run(["zstd", "-dc"], stdin=cat.stdout, stdout=out, check=False)
        assert (cat.wait(), zstd.returncode) == (0, 0)
    return disk


def zstd_refuses(image: Path) -> bool:
    """Whether `zstd -t` says that the image is not good."""
    done = subprocess.run(["zstd", "-q", "-t", image], capture_output=True, check=False)
    assert done.returncode in (0, 1), done
    return done.returncode == 1


def same_bytes(one: Path, other: Path, start: int = 0, size: int | None = None) -> bool:
    """Whether two files or devices hold the same, as cmp sees it."""
    words = ["cmp", "--silent", f"--ignore-initial={start}"]
    if size is not None:
        words.append(f"--bytes={size}")
    done = subprocess.run([*words, one, other], capture_output=True, check=False)
    assert done.returncode in (0, 1), done
    return done.returncode == 0


def all_zero(path: Path, start: int, end: int) -> bool:
    """Whether a range of a file or device reads as zeros."""
    return not any(get(path, start, end - start))


def info(image: Path) -> Any:
    return json.loads(imager("info", "--json", image).out)


def volumes(described: Any) -> list[dict[str, object]]:
    found: list[dict[str, object]] = described["head"]["layout"]["volumes"]
    return found
