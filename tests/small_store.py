"""A store and a disk of a few chunks, for histories of captures and prunes."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

from imager.capture import CaptureOptions
from imager.check import check
from imager.image.chain import Chain
from imager.store.capture import StoredCapture, capture_into
from imager.store.catalog import DiskFolder, read_folder
from imager.store.folder import Store, create_store
from imager.store.prune import PruneReport, prune
from imager.store.retention import Rules
from tests.image_files import small_parts

CHUNK = 1 << 16
FIRST = datetime.datetime(2026, 11, 1, 2, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


class SmallStore:
    """Captures a disk that changes at random, and knows what each image must give back."""

    def __init__(
        self, folder: Path, seed: int = 1, chunks: int = 24, split: int | None = None
    ) -> None:
        self.store: Store = create_store(folder / "store")
        self.disk = folder / "disk"
        self.random = random.Random(seed)
        self.options = CaptureOptions(chunk_size=CHUNK, threads=1, split=split)
        self.disk.write_bytes(self.random.randbytes(chunks * CHUNK))
        self.now = FIRST
        self.digests: dict[str, bytes] = {}
        """The content digest of each image, by its name."""

    @property
    def folder(self) -> Path:
        (folder,) = self.store.disk_folders()
        return folder

    def write(self, *chunks: int, size: int = 100) -> None:
        """Change `size` bytes in each of these chunks."""
        with self.disk.open("r+b") as file:
            for chunk in chunks:
                file.seek(chunk * CHUNK + 7)
                file.write(self.random.randbytes(size))

    def capture(self, **more: Any) -> StoredCapture:
        with small_parts():
            done = capture_into(self.store, self.disk, self.options, self.now, **more)
        self.digests[done.image.name] = done.result.image.content_digest
        self.now += DAY
        return done

    def night(self, *chunks: int, size: int = 100) -> StoredCapture:
        """Change the disk and capture it."""
        self.write(*chunks, size=size)
        return self.capture()

    def prune(self, rules: Rules, grace: datetime.timedelta = DAY) -> PruneReport:
        return prune(self.store, rules, self.now, grace=grace)

    def look(self) -> DiskFolder:
        return read_folder(self.folder)

    def require_good(self) -> list[str]:
        """AssertionError unless each complete image gives what was captured; their names."""
        names = []
        for image in self.look().complete:
            require_content(image.files.opened_as, self.digests[image.name])
            names.append(image.name)
        return names


def require_content(path: Path, digest: bytes) -> None:
    """AssertionError unless the image is good, and its content what `digest` says."""
    result = check(path, threads=1)
    assert result.verdict == "ok", [problem.message for problem in result.problems]
    with Chain(path) as chain:
        assert chain.image.footer is not None
        assert chain.image.footer.content_digest == digest
