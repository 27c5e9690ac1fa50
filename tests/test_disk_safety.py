"""What is refused: on real mounts, swap, namespaces and loop devices, and on stacks that are fake.

(The test machine's kernel has no device-mapper and no md; a sysfs of their shape stands in.)
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imager.disk.mounts import parse_mountinfo
from imager.disk.safety import check_target, mounted_read_write, same_disk, summary, usage
from imager.disk.target import TargetDevice
from imager.errors import RefusedError, UsageError
from tests.fake_sysfs import FakeSystem
from tests.loop import LoopDevice, mounted, run, sparse_file, swapped_on

TABLE = "label: gpt\nsize=16MiB\nsize=16MiB\n-\n"


def make_disk(file: Path) -> Path:
    """A disk-image file with three partitions."""
    sparse_file(file, 64 << 20)
    run("sfdisk", file, stdin=TABLE)
    return file


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[LoopDevice]:
    with LoopDevice(make_disk(tmp_path / "disk.img")) as device:
        device.scan()
        yield device


@pytest.fixture
def mounted_loop(loop: LoopDevice, tmp_path: Path) -> Iterator[tuple[LoopDevice, Path]]:
    """Its second partition holds a mounted ext4."""
    run("mkfs.ext4", "-q", loop.partition(2))
    with mounted(loop.partition(2), tmp_path / "mount point") as place:
        yield loop, place


def test_free_disk_is_not_refused(loop: LoopDevice, tmp_path: Path) -> None:
    for path in (loop.path, loop.partition(1)):
        assert usage(path) == mounted_read_write(path) == ()
        check_target(path, [tmp_path / "disk.imager"])


def test_new_and_free_files_are_not_refused(tmp_path: Path) -> None:
    check_target(tmp_path / "new.img", [tmp_path / "image"])
    check_target(sparse_file(tmp_path / "old.img", 4096), [tmp_path / "image"])
    assert mounted_read_write(tmp_path / "old.img") == ()


@pytest.mark.parametrize("path", ["/dev/null", "/tmp"])
def test_what_is_no_target(path: str) -> None:
    with pytest.raises(UsageError, match="neither"):
        check_target(Path(path))


def test_mounted_partition(mounted_loop: tuple[LoopDevice, Path]) -> None:
    loop, place = mounted_loop
    reason = f"{loop.partition(2).name} is mounted on {place}"
    for path in (loop.path, loop.partition(2)):
        assert usage(path) == (reason,)
        assert mounted_read_write(path) == (str(place),)
        with pytest.raises(RefusedError, match="unmount or stop that first"):
            check_target(path)
        with pytest.raises(RefusedError, match=f"is in use: {reason}; unmount"):
            TargetDevice(path)
    for free in (1, 3):
        assert usage(loop.partition(free)) == ()
        check_target(loop.partition(free), [place / "image"])
        TargetDevice(loop.partition(free)).close()


def test_file_behind_a_mounted_loop_device(mounted_loop: tuple[LoopDevice, Path]) -> None:
    loop, place = mounted_loop
    assert usage(loop.file) == (f"it is attached to {loop.path}",)
    assert mounted_read_write(loop.file) == (str(place),)
    assert same_disk(place / "image", loop.file)
    with pytest.raises(RefusedError, match=f"it is attached to {loop.path}"):
        check_target(loop.file)


def test_read_only_mount_is_in_use_but_does_not_change(loop: LoopDevice, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", loop.partition(1))
    with mounted(loop.partition(1), tmp_path / "ro", "ro"):
        assert usage(loop.path) == (f"{loop.partition(1).name} is mounted on {tmp_path}/ro",)
        assert mounted_read_write(loop.path) == ()


def test_read_only_bind_of_a_writable_file_system_may_change(
    mounted_loop: tuple[LoopDevice, Path], tmp_path: Path
) -> None:
    loop, place = mounted_loop
    bound = tmp_path / "bound"
    bound.mkdir()
    run("mount", "--bind", "-o", "ro", place, bound)
    try:
        assert set(mounted_read_write(loop.path)) == {str(place), str(bound)}
    finally:
        run("umount", bound)


def test_swap(loop: LoopDevice) -> None:
    run("mkswap", loop.partition(3))
    with swapped_on(loop.partition(3)):
        for path in (loop.path, loop.partition(3)):
            assert (
                usage(path) == mounted_read_write(path) == (f"{loop.partition(3)} is swapped on",)
            )
            with pytest.raises(RefusedError, match="is swapped on"):
                check_target(path)
        assert usage(loop.partition(1)) == ()


def test_swap_file(mounted_loop: tuple[LoopDevice, Path]) -> None:
    _, place = mounted_loop
    file = place / "swapfile"
    file.write_bytes(bytes(2 << 20))
    file.chmod(0o600)
    run("mkswap", file)
    with swapped_on(file):
        assert usage(file) == ("it is swapped on",)
    assert usage(file) == ()


def test_mount_in_another_namespace(loop: LoopDevice, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", loop.partition(2))
    place = tmp_path / "hidden"
    place.mkdir()
    script = f"mount {loop.partition(2)} {place} && echo ready && read line"
    child = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout and child.stdout.readline() == "ready\n"
    try:
        assert not place.is_mount()
        seen = f"{place} (as seen by process {child.pid})"
        assert usage(loop.path) == (f"{loop.partition(2).name} is mounted on {seen}",)
        assert mounted_read_write(loop.path) == (seen,)
    finally:
        child.communicate("\n")
    assert usage(loop.path) == ()


def test_opened_exclusively(loop: LoopDevice) -> None:
    with TargetDevice(loop.partition(1)):
        assert usage(loop.partition(1)) == ("another program has it open exclusively",)
        assert usage(loop.path) == ("another program has it open exclusively",)
        assert usage(loop.partition(2)) == ()


def test_loop_device_over_a_partition(loop: LoopDevice) -> None:
    with LoopDevice(loop.partition(1)) as upper:
        reason = f"{loop.partition(1).name} is attached to {upper.path}"
        for path in (loop.path, loop.partition(1)):
            assert usage(path) == (reason,)
            with pytest.raises(RefusedError, match="is attached to"):
                check_target(path)
        assert usage(upper.path) == usage(loop.partition(2)) == ()


def test_what_is_below_a_loop_device_counts(mounted_loop: tuple[LoopDevice, Path]) -> None:
    loop, place = mounted_loop
    with LoopDevice(loop.path) as upper:
        assert usage(upper.path) == (f"{loop.partition(2).name} is mounted on {place}",)
        assert mounted_read_write(upper.path) == (str(place),)
        assert same_disk(place / "image", upper.path)


def test_second_loop_device_of_the_same_file(mounted_loop: tuple[LoopDevice, Path]) -> None:
    loop, place = mounted_loop
    with LoopDevice(loop.file) as other:
        uses = usage(other.path)
        assert f"its file is also attached to {loop.path}" in uses
        assert f"{loop.partition(2).name} is mounted on {place}" in uses
        assert mounted_read_write(other.path) == (str(place),)


def test_image_on_the_target(mounted_loop: tuple[LoopDevice, Path]) -> None:
    loop, place = mounted_loop
    image = place / "images/new.imager"
    image.parent.mkdir()
    for path in (loop.path, loop.partition(2)):
        assert same_disk(image, path)
        with pytest.raises(RefusedError, match=f"{path} holds the image {image}: restore to"):
            check_target(path, [image])
    assert not same_disk(image, loop.partition(1))
    assert not same_disk(Path("/proc/version"), loop.path)


def test_image_is_the_target(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "disk.imager", 4096)
    (tmp_path / "link").symlink_to(image)
    with pytest.raises(RefusedError, match="holds the image"):
        check_target(tmp_path / "link", [image])


def test_image_in_a_disk_image_on_the_target(
    mounted_loop: tuple[LoopDevice, Path], tmp_path: Path
) -> None:
    """The image's file system is in a file, which is on the target."""
    loop, place = mounted_loop
    inner_file = sparse_file(place / "inner.img", 8 << 20)
    run("mkfs.ext4", "-q", inner_file)
    with LoopDevice(inner_file) as inner, mounted(inner.path, tmp_path / "inner") as deep:
        assert same_disk(deep / "image", loop.path)
        assert same_disk(deep / "image", inner.path)
        assert not same_disk(place / "image", inner.path)
        with pytest.raises(RefusedError, match="holds the image"):
            check_target(loop.path, [deep / "image"])


def test_image_behind_standard_input(mounted_loop: tuple[LoopDevice, Path]) -> None:
    loop, place = mounted_loop
    (place / "image").write_bytes(b"x")
    with (place / "image").open("rb") as file:
        assert same_disk(Path(f"/proc/self/fd/{file.fileno()}"), loop.path)


def test_image_on_an_overlay(mounted_loop: tuple[LoopDevice, Path], tmp_path: Path) -> None:
    loop, place = mounted_loop
    lower, upper, work = tmp_path / "lower", place / "upper", place / "work"
    for directory in (lower, upper, work):
        directory.mkdir()
    options = (f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
    with mounted(Path("overlay"), tmp_path / "overlay", *options, fs_type="overlay") as overlay:
        assert same_disk(overlay / "image", loop.path)
        assert not same_disk(overlay / "image", loop.partition(1))


def test_btrfs_of_two_devices_with_a_subvolume(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(LoopDevice(tmp_path / f"{name}.img", 128 << 20)) for name in "ab"
        )
        run("mkfs.btrfs", "-q", "-d", "single", "-m", "raid1", first.path, second.path)
        place = stack.enter_context(mounted(first.path, tmp_path / "pool", fs_type="btrfs"))
        run("btrfs", "subvolume", "create", place / "sub")
        for device in (first, second):
            assert any(f"is mounted on {place}" in reason for reason in usage(device.path))
            assert mounted_read_write(device.path) == (str(place),)
            assert same_disk(place / "sub/image", device.path)
            with pytest.raises(RefusedError, match="holds the image"):
                check_target(device.path, [place / "sub/image"])


def test_read_only_target(tmp_path: Path) -> None:
    with (
        LoopDevice(tmp_path / "disk.img", 1 << 20, read_only=True) as loop,
        pytest.raises(RefusedError, match="is read-only"),
    ):
        check_target(loop.path)


def test_this_systems_disk_is_refused() -> None:
    root = run("findmnt", "--noheadings", "--output", "SOURCE", "/").strip()
    with pytest.raises(RefusedError, match=r"that this system runs from \(/ is on it\)"):
        check_target(Path(root))


def test_summary_counts_what_it_leaves_out() -> None:
    assert summary(("a", "b")) == "a; b"
    assert summary(tuple("abcdef")) == "a; b; c; d; and 2 more"


@pytest.fixture
def machine(tmp_path: Path) -> FakeSystem:
    """A disk sda with EFI (1), LVM (2) and a spare (3); sdb and sdc make md0, sdd holds LUKS.

    The logical volume's number is that of the file system that `tmp_path` is really on.
    """
    fake = FakeSystem(tmp_path)
    for minor, name in enumerate(("sda", "sdb", "sdc", "sdd")):
        fake.add_disk(name, os.makedev(240, 16 * minor))
        for part in (1, 2, 3):
            fake.add_partition(name, f"{name}{part}", os.makedev(240, 16 * minor + part))
    for name, number, kind, parts in (
        ("dm-0", tmp_path.stat().st_dev, "LVM-xyz", ("sda2",)),
        ("dm-1", os.makedev(241, 1), "LVM-abc", ("sda2",)),
        ("dm-2", os.makedev(241, 2), "CRYPT-LUKS2-x", ("sdd1",)),
        ("dm-3", os.makedev(241, 3), "LVM-top", ("dm-2",)),
    ):
        directory = fake.add_disk(name, number, made_of=parts)
        (directory / "dm").mkdir()
        (directory / "dm/uuid").write_text(kind)
        (directory / "dm/name").write_text(f"title-{name}")
    raid = fake.add_disk("md0", os.makedev(242, 0), made_of=("sdb1", "sdc1"))
    (raid / "md").mkdir()
    (raid / "md/level").write_text("raid1")
    fake.add_partition("md0", "md0p1", os.makedev(242, 1))
    fake.add_disk("bcache0", os.makedev(243, 0), made_of=("sdc2",))
    mounts = [
        fake.mount_line("dm-0", "/"),
        fake.mount_line("sda1", "/boot/efi"),
        fake.mount_line("md0p1", "/srv/data"),
        "99 1 0:50 / /net rw - nfs4 server:/export rw",
    ]
    fake.add_process("self", mounts)
    fake.add_process("1", mounts)
    fake.add_process("77", [*mounts, fake.mount_line("dm-3", "/secret", "ro")], "mnt:[2]")
    fake.add_process("78", [fake.mount_line("dm-3", "/again")], "mnt:[2]")  # as 77, not looked at
    (fake.proc / "swaps").write_text(
        f"Filename Type Size Used Priority\n{fake.node('dm-1')} partition 4 0 -2\n"
    )
    return fake


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "sda",
            {
                "sda2 is mounted on /",
                "sda1 is mounted on /boot/efi",
                "dm-1 is swapped on",
                "sda2 holds the active LVM volume title-dm-0",
                "sda2 holds the active LVM volume title-dm-1",
            },
        ),
        ("sda1", {"sda1 is mounted on /boot/efi"}),
        ("sda3", set()),
        ("sdb", {"sdb1 is mounted on /srv/data", "sdb1 is part of the RAID array md0"}),
        ("sdb2", set()),
        (
            "sdc",
            {
                "sdc1 is mounted on /srv/data",
                "sdc1 is part of the RAID array md0",
                "sdc2 is part of bcache0",
            },
        ),
        ("md0", {"md0p1 is mounted on /srv/data"}),
        (
            "sdd1",
            {
                "sdd1 is mounted on /secret (as seen by process 77)",
                "sdd1 holds the open encrypted volume title-dm-2",
            },
        ),
        (
            "dm-2",
            {
                "dm-2 is mounted on /secret (as seen by process 77)",
                "dm-2 holds the active LVM volume title-dm-3",
            },
        ),
    ],
)
def test_stacks(machine: FakeSystem, name: str, expected: set[str]) -> None:
    found = usage(machine.node(name), machine.system)
    assert {reason.replace(f"{machine.node('dm-1').parent}/", "") for reason in found} == expected


@pytest.mark.parametrize("name", ["sda", "sda1", "sda2", "dm-0"])
def test_disk_of_the_running_system_through_lvm(machine: FakeSystem, name: str) -> None:
    with pytest.raises(RefusedError, match="this system runs from"):
        check_target(machine.node(name), [], machine.system)


@pytest.mark.parametrize("name", ["sda3", "sdb", "dm-1"])
def test_other_parts_are_not_the_running_system(machine: FakeSystem, name: str) -> None:
    assert machine.system.system_use(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sda", True),
        ("sda2", True),
        ("dm-0", True),
        ("sda1", False),
        ("dm-1", False),
        ("sdb", False),
    ],
)
def test_image_on_a_logical_volume(
    machine: FakeSystem, tmp_path: Path, name: str, expected: bool
) -> None:
    assert same_disk(tmp_path / "new.imager", machine.node(name), machine.system) is expected


def test_writable_through_a_stack(machine: FakeSystem) -> None:
    assert mounted_read_write(machine.node("sdc"), machine.system) == ("/srv/data",)
    assert mounted_read_write(machine.node("sdd"), machine.system) == ()
    assert "/" in mounted_read_write(machine.node("sda"), machine.system)


def test_live_medium_is_the_running_system(tmp_path: Path) -> None:
    """A rescue stick: / is an overlay over a squashfs in a file on the stick."""
    fake = FakeSystem(tmp_path)
    fake.add_disk("sdb", os.makedev(240, 16))
    fake.add_partition("sdb", "sdb1", tmp_path.stat().st_dev)
    squashfs = sparse_file(tmp_path / "filesystem.squashfs", 4096)
    directory = fake.add_disk("loop900", os.makedev(7, 900))
    (directory / "loop").mkdir()
    (directory / "loop/backing_file").write_text(f"{squashfs}\n")
    fake.add_process(
        "self",
        [
            "20 1 0:40 / / rw - overlay overlay rw,lowerdir=/run/live/rootfs,upperdir=/cow/rw",
            fake.mount_line("loop900", "/run/live/rootfs/filesystem.squashfs", "ro"),
        ],
    )
    assert fake.system.system_use("sdb") is not None
    with pytest.raises(RefusedError, match="this system runs from"):
        check_target(fake.node("sdb"), [], fake.system)


def test_cycles_in_a_broken_sysfs_end(tmp_path: Path) -> None:
    fake = FakeSystem(tmp_path)
    fake.add_disk("dm-0", os.makedev(241, 0))
    fake.add_disk("dm-1", os.makedev(241, 1), made_of=("dm-0",))
    (fake.sys / "class/block/dm-0/slaves/dm-1").mkdir()
    assert fake.system.layers(["dm-1"], True) == {"dm-0", "dm-1"}


def test_mountinfo_with_odd_lines() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 x:2 - ext3 /dev/root ro\n"
        "36 35 0:22 / /empty rw -  - x  rw\n"
        "\n36\nfoo bar baz - a b c\na b c:d e f g - h i j\n1 2 3:x / / rw - a b c\n"
    )
    mounts = list(parse_mountinfo(text, 5))
    assert mounts[0].mount_point == "/mnt 2\\x"
    assert mounts[0].device == os.makedev(98, 0)
    assert mounts[0].mount_options == {"rw", "noatime"}
    assert (mounts[0].fs_type, mounts[0].source, mounts[0].writable) == ("ext3", "/dev/root", False)
    assert len(mounts) == 2
