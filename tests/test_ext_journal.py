"""Dirty ext3/4 volumes: the union of the allocation before and after the journal's replay."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from imager.errors import NotUnderstoodError
from imager.extents import Extents
from imager.filesystems import read_allocation
from tests.disks import scrubbed
from tests.ext_images import (
    MIB,
    allocated,
    allocated_by_dumpe2fs,
    commits,
    copy,
    crash,
    digest,
    fill,
    make,
    mounted,
    run,
    sync,
    write_files,
)
from tests.ext_logs import HandMade, journal_of
from tests.volumes import BytesVolume

CRASHES = {
    "ext3": ("-t ext3 -b 1024", ""),
    "ext4": ("-t ext4 -b 1024", ""),
    "ext4-4k": ("-t ext4 -b 4096 -g 1024", ""),
    "ext4-32bit": ("-t ext4 -b 1024 -O ^64bit", ""),
    "ext4-crc16": ("-t ext4 -b 1024 -O ^metadata_csum,uninit_bg", ""),
    "ext4-bigalloc": ("-t ext4 -b 1024 -O bigalloc -C 8192 -g 4096", ""),
    "ext4-meta-bg": ("-t ext4 -b 1024 -O meta_bg,^resize_inode", ""),
    "ext4-checksum-v1": ("-t ext4 -b 1024 -O ^metadata_csum", "journal_checksum"),
    "ext4-checksum-v1-32bit": ("-t ext4 -b 1024 -O ^metadata_csum,^64bit", "journal_checksum"),
    "ext4-async-commit": (
        "-t ext4 -b 1024 -O ^metadata_csum",
        "journal_async_commit,data=writeback",
    ),
    "ext4-async-commit-v3": ("-t ext4 -b 1024", "journal_async_commit,data=writeback"),
    "ext4-orphan-file": ("-t ext4 -b 1024 -O orphan_file", ""),
}
"""Name to mke2fs options and mount options."""

JOURNAL_MAGIC = bytes.fromhex("c03b3998")


def work(point: Path) -> None:
    """Changes that reach the log but, without a checkpoint, not their places."""
    for number in range(4):
        files = write_files(point, 12, 10 + number)
        for file in files:
            sync(file)
        for file in files[::2]:
            file.unlink()
    folder = point / "emptied"
    folder.mkdir()
    for file in write_files(folder, 60, 20):
        file.unlink()
    folder.rmdir()
    sync(write_files(point, 1, 21)[0])


def recovered(image: Path) -> Extents:
    """What is allocated once e2fsck has replayed the journal of a copy and repaired the rest."""
    repaired = copy(image, "recovered")
    done = subprocess.run(["e2fsck", "-fy", repaired], capture_output=True, text=True, check=False)
    assert done.returncode < 4, done.stdout
    return allocated_by_dumpe2fs(repaired)


@pytest.mark.parametrize("name", CRASHES)
def test_union_of_before_and_after(name: str, tmp_path: Path) -> None:
    options, mount_options = CRASHES[name]
    image = make(tmp_path / "image", 96 * MIB, *options.split())
    fill(image, 20)
    crashed = crash(
        image,
        mount_options,
        work,
        lambda copied: bool(recovered(copied) - allocated_by_dumpe2fs(copied)),
    )
    unchanged = digest(crashed)
    allocation = allocated(crashed, name[:4])
    assert allocation.allocated == allocated_by_dumpe2fs(crashed) | recovered(crashed)
    assert allocation.notes == ("journal not replayed: kept what is in use before and after",)
    assert digest(crashed) == unchanged


@pytest.mark.parametrize("feature", ["extents", "fast_commit"])
def test_log_that_goes_round(feature: str, tmp_path: Path) -> None:
    """With data in a journal of 1 MiB, the newest transactions soon lie before the older ones."""
    options = ("-t", "ext4", "-b", "1024", "-J", "size=1", "-O", feature)
    image = make(tmp_path / "image", 64 * MIB, *options)

    def goes_round(copied: Path) -> bool:
        return commits(copied) != sorted(commits(copied))

    def change(point: Path) -> None:
        for number in range(100):
            file = point / f"round{number}"
            file.write_bytes(b"x" * 30_000)
            sync(file)
            if goes_round(image):
                return

    crashed = crash(image, "data=journal", change, goes_round)
    assert allocated(crashed).allocated == allocated_by_dumpe2fs(crashed) | recovered(crashed)


@pytest.fixture(scope="module")
def fast_commits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A volume whose last changes are in fast commits only, and the files that were synced."""
    folder = tmp_path_factory.mktemp("fast-commits")
    image = make(folder / "image", 64 * MIB, "-t", "ext4", "-b", "1024", "-O", "fast_commit")
    fill(image, 10)
    synced: dict[str, bytes] = {}

    def change(point: Path) -> None:
        synced.clear()
        old = next((point / "folder").iterdir())
        os.truncate(old, 100)
        sync(old)
        for number in range(4):
            folder = point / f"new{number}"
            folder.mkdir(exist_ok=True)
            for file in write_files(folder, 6, 30 + number):
                sync(file)
                synced[str(file.relative_to(point))] = file.read_bytes()

    def good(copied: Path) -> bool:
        return "tag ADD_RANGE" in run("debugfs", "-R", "logdump", copied)

    return crash(image, "", change, good), synced


def remounted(image: Path) -> Extents:
    """What is allocated once the kernel has replayed the journal of a copy."""
    replayed = copy(image, "replayed")
    with mounted(replayed):
        pass
    return allocated_by_dumpe2fs(replayed)


def complaints(image: Path) -> list[str]:
    """What e2fsck finds wrong, but for the lines that name the file."""
    done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if image.name not in line]


def test_fast_commits(fast_commits: tuple[Path, dict[str, bytes]]) -> None:
    """What they put to use is kept, and with all else garbage no file is lost."""
    crashed, synced = fast_commits
    unchanged = digest(crashed)
    found = allocated(crashed).allocated
    before, after = allocated_by_dumpe2fs(crashed), remounted(crashed)
    assert (after - before).total > MIB
    assert not before - found
    # For directories the kernel allocates blocks anew; what stood in them does not matter.
    assert (after - found).total < 16 * 1024
    assert found.total <= (before | after).total * 1.02
    assert digest(crashed) == unchanged
    with mounted(scrubbed(crashed, found)) as point:
        assert {name: (point / name).read_bytes() for name in synced} == synced
    # The kernel's replay of new folders leaves link counts wrong, with or without the garbage.
    assert complaints(crashed.with_name("scrubbed-crashed")) == complaints(
        crashed.with_name("replayed")
    )


def test_fast_commits_without_end(
    fast_commits: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imager.filesystems.ext.fast_commit._MAX_RANGES", 5)
    with pytest.raises(NotUnderstoodError, match="too many fast commits"):
        allocated(fast_commits[0])


def test_damaged_fast_commits(fast_commits: tuple[Path, dict[str, bytes]]) -> None:
    """Refused, or not taken for commits, as they are not by the kernel."""
    crashed, _ = fast_commits
    sound = allocated(crashed).allocated
    sure = allocated_by_dumpe2fs(crashed)
    journal = journal_of(crashed)
    data = bytearray(crashed.read_bytes())
    refused = 0
    for block in range(journal.end, journal.end + 5):
        place = journal.file.place(block) * 1024
        for at in range(place, place + 1024, 31):
            data[at] ^= 0x10
            try:
                found = read_allocation("ext4", BytesVolume(data)).allocated
                assert not sure - found
                assert not found - sound
            except NotUnderstoodError as error:
                assert "fast commits in the journal are damaged" in str(error)
                refused += 1
            data[at] ^= 0x10
    assert refused > 5


def test_fast_commits_from_before_the_last_full_one(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64 * MIB, "-t", "ext4", "-b", "1024", "-O", "fast_commit")

    def change(point: Path) -> None:
        for file in write_files(point, 4, 30):
            sync(file)
        run("sync", "-f", point)
        (point / f"last{os.getpid()}").write_bytes(b"x")
        run("sync", "-f", point)

    crashed = crash(
        image,
        "",
        change,
        lambda copied: "Fast Commit Area" in run("debugfs", "-R", "logdump -O", copied),
    )
    assert allocated(crashed).allocated == allocated_by_dumpe2fs(crashed) | recovered(crashed)
    assert allocated(image).allocated == allocated_by_dumpe2fs(image)


LOGS = {
    "none": ("-t ext4 -O ^metadata_csum,^flex_bg", ""),
    "none-32bit": ("-t ext3", ""),
    "v1": ("-t ext4 -O ^metadata_csum", "-c"),
    "v1-32bit": ("-t ext3", "-c"),
    "v2": ("-t ext4", "-c -v 2"),
    "v2-32bit": ("-t ext4 -O ^64bit", "-c -v 2"),
    "v3": ("-t ext4", "-c -v 3"),
    "v3-32bit": ("-t ext4 -O ^64bit", "-c -v 3"),
}
"""Name to mke2fs options and how debugfs is asked for checksums in the log."""
FAR = (2000, 2001, 4000)


@pytest.mark.parametrize("name", LOGS)
class TestHandMadeLogs:
    def test_later_copy_replaces_earlier(self, name: str, tmp_path: Path) -> None:
        made = HandMade(tmp_path, LOGS[name][0])
        made.log(3000)
        made.log(*FAR)
        made.write(LOGS[name][1])
        assert made.extra() == made.recovered() == made.expected(*FAR)

    def test_copies_before_a_revoke_do_not_count(self, name: str, tmp_path: Path) -> None:
        made = HandMade(tmp_path, LOGS[name][0])
        made.log(3000)
        made.revoke()
        made.write(LOGS[name][1])
        if name.startswith("v1"):  # debugfs writes a checksum here that e2fsck does not believe
            with pytest.raises(NotUnderstoodError, match="journal is damaged"):
                made.extra()
        else:
            assert made.extra() == made.recovered() == Extents()

    def test_copy_after_a_revoke_counts(self, name: str, tmp_path: Path) -> None:
        made = HandMade(tmp_path, LOGS[name][0])
        made.log(3000)
        if not name.startswith("v1"):
            made.revoke()
        made.log(*FAR)
        made.write(LOGS[name][1])
        assert made.extra() == made.recovered() == made.expected(*FAR)

    def test_uncommitted_does_not_count(self, name: str, tmp_path: Path) -> None:
        made = HandMade(tmp_path, LOGS[name][0])
        made.log(*FAR)
        made.log(3000, flags="-c")
        made.write(LOGS[name][1])
        assert made.extra() == made.recovered() == made.expected(*FAR)

    def test_escaped_block(self, name: str, tmp_path: Path) -> None:
        made = HandMade(tmp_path, LOGS[name][0])
        made.log(*FAR, begin=JOURNAL_MAGIC)
        made.write(LOGS[name][1])
        first = [bit for bit in range(32) if JOURNAL_MAGIC[bit // 8] >> bit % 8 & 1]
        assert made.extra() == made.recovered() == made.expected(*first, *FAR)

    def test_sequence_wraps_around(self, name: str, tmp_path: Path) -> None:
        made = HandMade(tmp_path, LOGS[name][0])
        made.patch_journal(0x18, struct.pack(">I", 0xFFFFFFFF))
        made.log(3000)
        made.log(*FAR)
        made.write(LOGS[name][1])
        assert made.extra() == made.recovered() == made.expected(*FAR)

    @pytest.mark.parametrize("blocks", [4, 5, 6, 7])
    def test_log_goes_round(self, name: str, blocks: int, tmp_path: Path) -> None:
        made = HandMade(tmp_path, LOGS[name][0])
        made.log(3000)
        made.log(*FAR)
        made.write(LOGS[name][1])
        made.rotate(blocks)
        assert made.extra() == made.recovered() == made.expected(*FAR)

    def test_checkpoint_cut_short(self, name: str, tmp_path: Path) -> None:
        """A bitmap and the descriptor with its checksum are of different ages on disk."""
        made = HandMade(tmp_path, LOGS[name][0])
        made.log(3000)
        made.log(*FAR)
        made.write(LOGS[name][1])
        made.checkpoint(0, 1, 2)
        assert made.extra() == made.expected(*FAR)
        made.checkpoint(0, 3)
        assert made.extra() == made.expected(3000, *FAR)
        made.checkpoint(2)
        assert made.extra() == made.expected(*FAR)
