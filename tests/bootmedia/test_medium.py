"""The ci variant, really built: what is on it, what starts on it, and what it leaves alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bootmedia.build import BuildOptions, build
from bootmedia.host import default_cache
from bootmedia.layer import layer_nodes
from bootmedia.manifest import Manifest
from bootmedia.recipe import data, read_list
from bootmedia.trees import Node
from tests.boot.medium import ci_medium
from tests.comparing import digest, gpt_is_sound

pytestmark = pytest.mark.timeout(1800)
UNITS = "etc/systemd/system"
DIST = "usr/lib/python3/dist-packages"


@pytest.fixture(scope="module")
def iso() -> Path:
    return ci_medium()


@pytest.fixture(scope="module")
def unpacked(iso: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ISO's files, those of few megabytes unpacked further: base/, layer/."""
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(
        ["xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/", folder / "iso"],
        capture_output=True,
        check=True,
    )
    live = folder / "iso/live"
    wanted = ["etc", "usr/lib/python3", "usr/lib/modules", "usr/share/initramfs-tools"]
    layers: tuple[tuple[str, str, list[str]], ...] = (
        ("base", "00-base.squashfs", wanted),
        ("layer", "10-imager.squashfs", []),
    )
    for name, source, paths in layers:
        words: list[str | Path] = [
            "unsquashfs",
            "-q",
            "-n",
            "-no-xattrs",
            "-d",
            folder / name,
            live / source,
        ]
        subprocess.run([*words, *paths], capture_output=True, check=True)
    return folder


def contents(iso: Path, kind: str) -> list[str]:
    return iso.with_name(f"{iso.name}.{kind}").read_text().splitlines()


class TestBeside:
    """The lists beside an ISO tell the truth."""

    def test_checksum(self, iso: Path) -> None:
        subprocess.run(
            ["sha256sum", "--check", f"{iso.name}.sha256"],
            cwd=iso.parent,
            check=True,
            capture_output=True,
        )

    def test_the_same_again(self, iso: Path, tmp_path: Path) -> None:
        again = tmp_path / "again.iso"
        built = build(BuildOptions(output=again, cache=default_cache(), variant="ci"))
        assert not built.base_made_now
        assert digest(again) == digest(iso)

    def test_contents(self, iso: Path, unpacked: Path) -> None:
        root = unpacked / "iso"
        found = sorted(
            f"{path.relative_to(root)} {path.stat().st_size}"
            for path in root.rglob("*")
            if path.is_file()
        )
        # The boot catalogue is listed too.
        assert set(found) == set(contents(iso, "contents"))

    def test_a_licence_for_each_package(self, iso: Path, unpacked: Path) -> None:
        texts = {path.name for path in (unpacked / "iso/licences").iterdir()}
        packages = {line.split()[0] for line in contents(iso, "manifest")}
        assert {f"{package.partition(':')[0]}.txt" for package in packages} <= texts
        assert {"GPL-3", "imager.txt"} <= texts
        assert any(name.startswith("blake3-") for name in texts)
        assert len(contents(iso, "licences")) == len(texts)

    def test_manifest(self, iso: Path, unpacked: Path) -> None:
        on_it = Manifest.read(unpacked / "iso/manifest.txt").versions
        assert on_it == Manifest.read(iso.with_name(f"{iso.name}.manifest")).versions
        assert {"python3-parted", "shim-signed", "ntfs-3g", "python3-dialog"} <= on_it.keys()

    def test_partition_table(self, iso: Path) -> None:
        assert gpt_is_sound(iso)


class TestSystem:
    """What the medium does of itself."""

    def test_the_program_is_this_one(self, unpacked: Path) -> None:
        here = Path(__file__).parent.parent.parent
        for module in ("imager/version.py", "imager/cli/__init__.py", "bootmedia/stick.py"):
            assert (unpacked / "layer" / DIST / module).read_bytes() == (here / module).read_bytes()
        assert (unpacked / "layer/usr/bin/imager").stat().st_mode & 0o777 == 0o755

    def test_the_program_is_compiled(self, unpacked: Path) -> None:
        package = unpacked / "layer" / DIST / "imager"
        sources = [path for path in package.rglob("*.py") if path.stat().st_size]
        assert len(sources) > 50
        for source in sources:
            assert list(source.parent.glob(f"__pycache__/{source.stem}.cpython-*.pyc")), source

    def test_nothing_is_of_the_builder(self, unpacked: Path) -> None:
        etc = unpacked / "base/etc"
        assert (etc / "machine-id").read_text() == ""
        assert not list(etc.glob("ssh/ssh_host_*")) and not (etc / "nvme/hostid").exists()

    def test_units_are_off(self, unpacked: Path) -> None:
        for unit in read_list((data() / "units-off.list").read_text()):
            assert (unpacked / "layer" / UNITS / unit).readlink() == Path("/dev/null"), unit

    def test_the_initramfs_looks_for_no_layers_on_disks(self, unpacked: Path) -> None:
        tools = unpacked / "base/usr/share/initramfs-tools"
        hooks = {path.name for path in (tools / "hooks").iterdir()}
        assert hooks == {"klibc-utils", "kmod", "udev"}

    def test_drivers(self, unpacked: Path) -> None:
        found = {
            re.sub(r"\.ko.*", "", path.name).replace("_", "-")
            for path in (unpacked / "base/usr/lib/modules").rglob("*.ko*")
        }
        wanted = {
            "ahci",
            "nvme",
            "usb-storage",
            "virtio-blk",
            "e1000",
            "exfat",
            "ntfs3",
            "dm-crypt",
        }
        assert wanted <= found


class TestLayer:
    """What is in the program's layer, by request."""

    def paths(self, ssh_key: str | None = None) -> dict[str, Node]:
        return {node.path: node for node in layer_nodes(default_cache(), ssh_key)}

    def test_units_are_started(self) -> None:
        nodes = self.paths()
        wants = f"{UNITS}/multi-user.target.wants"
        assert nodes[f"{wants}/imager-unattended.service"].link == "../imager-unattended.service"
        unit = nodes[f"{UNITS}/imager-unattended.service"].content.decode()
        assert "ConditionKernelCommandLine=imager.restore\n" in unit
        assert nodes[f"{UNITS}/default.target"].link == "/usr/lib/systemd/system/multi-user.target"

    def test_ssh_only_with_a_key(self) -> None:
        without, key = self.paths(), "ssh-ed25519 AAAA x\n"
        having = self.paths(key)
        added = having.keys() - without.keys()
        assert added == {
            "root/.ssh/authorized_keys",
            f"{UNITS}/multi-user.target.wants/ssh.service",
        }
        assert having["root/.ssh/authorized_keys"].content.decode() == key
        assert having["root/.ssh/authorized_keys"].mode == 0o600
