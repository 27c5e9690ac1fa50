"""Our own layer of the medium: the program, its units, and what was asked for when it was built."""

from __future__ import annotations

import configparser
import importlib.resources
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bootmedia import host
from bootmedia.recipe import PYTHON, data, read_list
from bootmedia.trees import Node, pack, read_tree
from imager.errors import ImagerError, MissingToolError, UsageError

_PACKAGES = "usr/lib/python3/dist-packages"
_UNITS = "etc/systemd/system"
_KEY_KINDS = ("ssh-", "ecdsa-", "sk-")
_MAX_KEYS = 64 << 10


def layer_nodes(cache: Path, ssh_key: str | None) -> list[Node]:
    """All files of the layer; `ssh_key` is the text of an authorized_keys file."""
    units_off = read_list((data() / "units-off.list").read_text())
    nodes = [
        *read_tree(data() / "layer"),
        *read_tree(importlib.resources.files("imager"), f"{_PACKAGES}/imager"),
        *read_tree(importlib.resources.files("bootmedia"), f"{_PACKAGES}/bootmedia"),
        *_wheel_nodes(fetch_wheels(cache)),
        *(Node(f"{_UNITS}/{unit}", link="/dev/null") for unit in units_off),
        Node(f"{_UNITS}/default.target", link="/usr/lib/systemd/system/multi-user.target"),
    ]
    if ssh_key is not None:
        nodes += [
            Node("root/.ssh/authorized_keys", ssh_key.encode(), mode=0o600),
            Node(
                f"{_UNITS}/multi-user.target.wants/ssh.service",
                link="/usr/lib/systemd/system/ssh.service",
            ),
        ]
    return [*nodes, *_wanted(nodes)]


def compiled(nodes: list[Node], base_layer: Path, folder: Path) -> list[Node]:
    """The Python files among `nodes`, compiled by the medium's own Python, which is taken from its base.

    The medium would compile them at each start otherwise, on whatever slow machine it rescues.
    """
    python = base_layer.parent / "python"
    if not python.exists():
        _take_python(base_layer, python)
    sources = [node for node in nodes if node.path.endswith(".py")]
    for node in sources:
        path = folder / node.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(node.content)
    libraries = python / "usr/lib/x86_64-linux-gnu"
    host.run(
        (
            *(libraries / "ld-linux-x86-64.so.2", "--library-path", libraries),
            *(python / f"usr/bin/python{PYTHON}", "-I", "-S", "-m", "compileall", "-q"),
            *("--invalidation-mode", "unchecked-hash", "-s", folder, "-p", "/", folder),
        ),
        "compiling the program",
        environment={"PYTHONHOME": str(python / "usr")},
    )
    made = [path for path in folder.rglob("*.pyc")]
    return [Node(str(path.relative_to(folder)), path.read_bytes()) for path in sorted(made)]


def _take_python(base_layer: Path, into: Path) -> None:
    """Unpack the medium's Python, its library and the shared libraries it needs."""
    with tempfile.TemporaryDirectory(prefix="python-", dir=into.parent) as made:
        place = Path(made) / "python"
        libraries = ("ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6", "libz.so.*", "libexpat.so.*")
        host.run(
            (
                *("unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-dest", place, base_layer),
                *(f"usr/bin/python{PYTHON}", f"usr/lib/python{PYTHON}"),
                *(f"usr/lib/x86_64-linux-gnu/{name}" for name in libraries),
            ),
            "taking Python from the base system",
        )
        try:
            place.rename(into)
        except OSError:
            # Another build may have been faster.
            if not into.exists():
                raise


def write_layer(nodes: list[Node], output: Path, epoch: int) -> None:
    """Make the squashfs; its owner and times are the same whoever builds it."""
    archive = output.with_suffix(".tar")
    archive.write_bytes(pack(nodes, epoch))
    with archive.open("rb") as file:
        host.run(
            ("mksquashfs", "-", output, "-tar", "-no-progress", "-comp", "zstd"),
            "compressing the program's layer",
            environment={"SOURCE_DATE_EPOCH": str(epoch)},
            stdin=file.fileno(),
        )
    archive.unlink()


def read_ssh_key(path: Path) -> str:
    """The public keys in a file; UsageError unless each of its lines is one."""
    try:
        text = path.read_bytes()[:_MAX_KEYS].decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a public key: {error}") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or not all(line.startswith(_KEY_KINDS) for line in lines):
        raise UsageError(f"{path} is not a public key: name the file that ends in .pub")
    return "".join(f"{line}\n" for line in lines)


def fetch_wheels(cache: Path) -> list[Path]:
    """The Python packages from outside Debian, fetched by pip once, their hashes checked."""
    wanted = (data() / "wheels.txt").read_text()
    folder = cache / "wheels"
    mark = folder / "wheels.txt"
    if not mark.exists() or mark.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.whl"):
            old.unlink()
        requirements = folder / "wanted.txt"
        requirements.write_text(wanted)
        _download(requirements, folder)
        requirements.rename(mark)
    return sorted(folder.glob("*.whl"))


def _download(requirements: Path, folder: Path) -> None:
    done = subprocess.run(
        (
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"),
            *("--require-hashes", "--only-binary", ":all:", "--implementation", "cp"),
            *("--python-version", PYTHON, "--platform", "manylinux2014_x86_64"),
            *("--platform", "manylinux_2_28_x86_64", "--dest", folder, "-r", requirements),
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named pip" in done.stderr:
        raise MissingToolError("pip is not installed: apt-get install python3-pip")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ImagerError(f"fetching Python packages failed: {(lines or ['pip said nothing'])[0]}")


def _wheel_nodes(wheels: list[Path]) -> Iterator[Node]:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/"):
                    yield Node(f"{_PACKAGES}/{name}", archive.read(name))


def _wanted(nodes: list[Node]) -> Iterator[Node]:
    """The links by which targets start our units, as their [Install] sections say."""
    for node in nodes:
        folder, _, name = node.path.rpartition("/")
        if folder == _UNITS and name.endswith(".service") and not node.link:
            unit = configparser.RawConfigParser(strict=False)
            unit.read_string(node.content.decode())
            target = unit.get("Install", "WantedBy")
            yield Node(f"{_UNITS}/{target}.wants/{name}", link=f"../{name}")
