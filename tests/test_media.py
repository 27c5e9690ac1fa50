"""Looking into volumes: what is offered, that nothing on them changes, and that nothing stays."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imager.disk.inventory import Disk, list_disks
from imager.errors import ReadFailedError, WriteFailedError
from imager.rescue import media
from imager.rescue.media import (
    MediaVolume,
    data_volume,
    folder_volume,
    media_volumes,
    medium_disk,
    mounted_for_writing,
    mounted_read_only,
)
from tests.comparing import digest
from tests.loop import LoopDevice, mounted, run
from tests.ordinary_user import as_nobody

MIB = 1 << 20
MAKE = {
    "ext2": ("mkfs.ext2", "-q", "-L", "volume"),
    "ext4": ("mkfs.ext4", "-q", "-L", "volume"),
    "xfs": ("mkfs.xfs", "-q", "-L", "volume"),
    "btrfs": ("mkfs.btrfs", "-q", "-L", "volume"),
    "ntfs": ("mkfs.ntfs", "-q", "-f", "-F", "-L", "volume"),
}
SIZES = {"xfs": 320 * MIB, "btrfs": 128 * MIB}


def disks_of(*devices: LoopDevice) -> tuple[Disk, ...]:
    """Loop devices as if they were attached disks."""
    paths = {str(device.path) for device in devices}
    return tuple(disk for disk in list_disks() if disk.identity.path in paths)


def volumes_of(*devices: LoopDevice) -> tuple[MediaVolume, ...]:
    return media_volumes(disks_of(*devices))


def mounts() -> list[str]:
    """Mounts and loop devices of this test that looking might leave behind, by their path."""
    folder = f"{media.STATE.parent}/"
    table = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    listing = run("losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE")
    loops = dict(line.split(" ", 1) for line in listing.splitlines())
    own = [name for name, file in loops.items() if file.startswith(folder)]
    found = [fields[4] for fields in table if fields[4].startswith(f"{media.STATE}/")]
    return found + [name for name, file in loops.items() if file.startswith(tuple(own))]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDevice]:
    with LoopDevice(tmp_path / "disk", 64 * MIB) as device:
        yield device


@pytest.mark.parametrize("kind", MAKE)
def test_looking_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Each file system shows its file, keeps every byte, and is let go again."""
    with LoopDevice(tmp_path / "disk", SIZES.get(kind, 64 * MIB)) as device:
        run(*MAKE[kind], device.path)
        driver = "ntfs-3g" if kind == "ntfs" else kind
        with mounted(device.path, tmp_path / "place", fs_type=driver) as place:
            (place / "hello").write_text("content")
        before = digest(device.file)
        (volume,) = volumes_of(device)
        assert (volume.kind, volume.label) == (kind, "volume")
        with mounted_read_only(volume) as root:
            assert (root / "hello").read_text() == "content"
            with pytest.raises(OSError):
                (root / "more").write_text("no")
        assert digest(device.file) == before
        assert mounts() == []


def dirty_copy(device: LoopDevice, place: Path, copy: Path) -> None:
    """What a power cut leaves of an ext4: the journal holds what is not in its place yet."""
    with mounted(device.path, place):
        (place / "hello").write_text("content")
        os.sync()
        for number in range(50):
            (place / f"{number}").write_text("more")
            fd = os.open(place / f"{number}", os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        run("cp", "--sparse=always", device.path, copy)


def test_dirty_journal_is_not_replayed(disk: LoopDevice, tmp_path: Path) -> None:
    run(*MAKE["ext4"], disk.path)
    dirty_copy(disk, tmp_path / "place", tmp_path / "copy")
    with LoopDevice(tmp_path / "copy") as device:
        features = run("dumpe2fs", "-h", device.path)
        assert "needs_recovery" in features
        before = digest(device.file)
        (volume,) = volumes_of(device)
        with mounted_read_only(volume) as root:
            assert (root / "hello").read_text() == "content"
        run("sync")
        assert digest(device.file) == before


def test_damaged_ext4_does_not_note_the_damage(disk: LoopDevice, tmp_path: Path) -> None:
    """Mounted read-only, ext4 still counts errors in its superblock unless its device forbids it."""
    run(*MAKE["ext4"], "-O", "^metadata_csum", disk.path)
    with mounted(disk.path, tmp_path / "place") as place:
        (place / "folder").mkdir()
    number = run("debugfs", "-R", "stat folder", disk.path).split("Inode:")[1].split()[0]
    subprocess.run(
        ["debugfs", "-w", "-R", f"sif <{number}> block[0] 0xfffffff0", disk.path],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        ["debugfs", "-w", "-R", f"sif <{number}> flags 0", disk.path],
        check=True,
        capture_output=True,
    )
    before = digest(disk.file)
    (volume,) = volumes_of(disk)
    with mounted_read_only(volume) as root, pytest.raises(OSError):
        os.listdir(root / "folder")
    run("sync")
    assert digest(disk.file) == before


def test_mounted_volume_is_shown_read_only(disk: LoopDevice, tmp_path: Path) -> None:
    run(*MAKE["ext4"], disk.path)
    with mounted(disk.path, tmp_path / "place") as place:
        (place / "hello").write_text("content")
        (volume,) = volumes_of(disk)
        with mounted_read_only(volume) as root:
            assert (root / "hello").read_text() == "content"
            with pytest.raises(OSError, match="Read-only"):
                (root / "more").write_text("no")
        (place / "more").write_text("still writable")
    assert mounts() == []


def test_partitions_and_what_is_not_offered(disk: LoopDevice, tmp_path: Path) -> None:
    """Swap and empty partitions hold no files; loop devices are no disks unless given."""
    run("sfdisk", disk.path, stdin="label: gpt\nsize=16MiB\nsize=16MiB\n-\n")
    disk.scan()
    run(*MAKE["ext4"], disk.partition(1))
    run("mkswap", disk.partition(2))
    (volume,) = volumes_of(disk)
    assert volume.path == str(disk.partition(1))
    assert volume.title == f"{disk.partition(1).name} (volume)"
    assert "ext4, 16.8 MB" in volume.describe() and disk.path.name in volume.describe()
    assert str(disk.partition(1)) not in [found.path for found in media_volumes()]


def test_volume_that_cannot_be_mounted(disk: LoopDevice) -> None:
    run(*MAKE["ext4"], disk.path)
    (volume,) = volumes_of(disk)
    with disk.file.open("r+b") as file:
        file.seek(1024 + 0x18)
        file.write(b"\xff" * 4)  # s_log_block_size
    run("blockdev", "--flushbufs", disk.path)
    with pytest.raises(ReadFailedError) as caught, mounted_read_only(volume):
        pass
    assert str(caught.value).startswith(f"{disk.path.name} (volume) (ext4) cannot be mounted: ")
    assert "\n" not in str(caught.value) and str(media.STATE) not in str(caught.value)
    assert mounts() == []


def test_device_that_is_gone() -> None:
    volume = MediaVolume("/dev/imager-none", "ext4", None, None, 0, None)
    with pytest.raises(ReadFailedError, match="cannot be read"), mounted_read_only(volume):
        pass


def test_folder_is_used_as_it_is(tmp_path: Path) -> None:
    volume = folder_volume(tmp_path, "share")
    with mounted_read_only(volume) as root:
        assert root == tmp_path
    assert volume.title == f"{tmp_path} (share)"


def test_ordinary_user_is_told() -> None:
    volume = MediaVolume("/dev/null", "ext4", None, None, 0, None)

    def look() -> str:
        with mounted_read_only(volume):
            return "mounted"

    assert as_nobody(look) == "RefusedError: only root may mount a disk: run as root"


def test_data_partition_of_the_stick(disk: LoopDevice, tmp_path: Path) -> None:
    """Only that of the very stick that was booted counts, and only if there is one."""
    run("sfdisk", disk.path, stdin="label: gpt\nsize=16MiB\nsize=16MiB\n-\n")
    disk.scan()
    run("mkfs.ext4", "-q", "-L", "LIVE", disk.partition(1))
    run("mkfs.ext4", "-q", "-L", "IMAGER_DATA", disk.partition(2))
    found = volumes_of(disk)
    assert data_volume(found, tmp_path) is None and medium_disk(tmp_path) is None
    with mounted(disk.partition(1), tmp_path / "medium", "ro") as medium:
        assert medium_disk(medium) == disk.path.name
        data = data_volume(found, medium)
        assert data is not None and data.path == str(disk.partition(2))
        with mounted_for_writing(data) as root:
            (root / "note").write_text("kept")
        with mounted_read_only(data) as root:
            assert (root / "note").read_text() == "kept"
        assert data_volume((*found, *found), medium) is None
    assert mounts() == []


def test_read_only_stick_is_not_written(disk: LoopDevice) -> None:
    run(*MAKE["ext4"], disk.path)
    (volume,) = volumes_of(disk)
    run("blockdev", "--setro", disk.path)
    try:
        with pytest.raises(WriteFailedError), mounted_for_writing(volume):
            pass
    finally:
        run("blockdev", "--setrw", disk.path)  # the next user of the loop device would inherit it
    assert mounts() == []
