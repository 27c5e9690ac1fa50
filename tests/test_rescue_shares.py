"""Shares: a real SSH server mounted through sshfs, and how a password reaches mount.cifs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from imager.errors import ReadFailedError, UsageError
from imager.rescue.found_image import open_found
from imager.rescue.image_list import on_share, search
from imager.rescue.shares import Share, host_keys, known_hosts, mounted_share, parse_share
from tests.rescue_lab import HOST, Lab, lab
from tests.scripted_screen import ScriptedScreen
from tests.small_disk import Small
from tests.ssh_server import PASSWORD, USER, ssh_server

CIFS = """\
#!/bin/sh
echo "$@" > {log}
cat /proc/self/fd/$PASSWD_FD >> {log}
echo "<end" >> {log}
echo "mount error(13): Permission denied" >&2
exit 32
"""

OLD_NFS = """\
#!/bin/sh
echo "$*" >> {log}
case "$*" in
    *vers=4.1*) echo "mount.nfs: Protocol not supported" >&2 ;;
    *) echo "mount.nfs: access denied by server" >&2 ;;
esac
exit 32
"""


@pytest.fixture
def served(tmp_path: Path, small: Small) -> Iterator[Share]:
    folder = tmp_path / "served"
    folder.mkdir()
    shutil.copyfile(small.image, folder / f"{HOST}.img")
    with ssh_server(folder) as port:
        yield replace(parse_share(f"ssh://127.0.0.1:{port}/"), user=USER, password=PASSWORD)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    place = tmp_path / "state"
    place.mkdir()
    return place


def arguments_of_processes() -> bytes:
    found = b""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found += (entry / "cmdline").read_bytes()
            except OSError:
                continue
    return found


def test_ssh(served: Share, state: Path) -> None:
    lines, shown = host_keys(served)
    assert "SHA256:" in shown[0]
    known_hosts(state).write_text(lines)
    with mounted_share(served, state) as place:
        assert (place / f"{HOST}.img").is_file()
        assert b"127.0.0.1" in arguments_of_processes()
        assert PASSWORD.encode() not in arguments_of_processes()
        with pytest.raises(OSError, match="Read-only"):
            (place / "new").write_text("x")
    with mounted_share(served, state, write=True) as place:
        (place / "new").write_text("x")
    assert [entry.name for entry in state.iterdir()] == ["known_hosts"]


def test_ssh_refuses(served: Share, state: Path) -> None:
    lines, _ = host_keys(served)
    with pytest.raises(ReadFailedError, match="cannot be mounted"), mounted_share(served, state):
        pass  # the server's key is not known
    known_hosts(state).write_text(lines)
    wrong = replace(served, password="wrong")
    with (
        pytest.raises(ReadFailedError, match="user and password right"),
        mounted_share(wrong, state),
    ):
        pass
    with pytest.raises(ReadFailedError, match="does not answer"):
        host_keys(replace(served, port=1))


def test_images_on_a_share(served: Share, tmp_path: Path, small: Small) -> None:
    (tmp_path / "lab").mkdir()
    with lab(tmp_path / "lab", small) as dead:
        images(dead, served)


def images(dead: Lab, served: Share) -> None:
    session = dead.session(ScriptedScreen())
    dead.machine.state.mkdir(exist_ok=True)
    known_hosts(dead.machine.state).write_text(host_keys(served)[0])
    session.shares.append(served)
    found = search(session)
    assert found.problems == ()
    ((image, share),) = [located for located in found.images if located[1]]
    assert (image.path.name, share) == (f"{HOST}.img", served)
    with ExitStack() as stack:
        origin = stack.enter_context(open_found(on_share(session, image, share, stack)))
        origin.require_complete()
    session.shares[0] = replace(served, password="wrong")
    assert "cannot be mounted" in search(session).problems[0]


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> Path:
    """Put a program of that name first in the way; what it notes is in the file that is returned."""
    program, log = folder / "bin" / name, folder / "log"
    program.parent.mkdir(exist_ok=True)
    program.write_text(text.format(log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


def test_nfs_of_an_old_server(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, "mount.nfs", "")
    log = pretend(monkeypatch, tmp_path, "mount", OLD_NFS)
    share = Share("nfs", "nas", "/images", 2050)
    with pytest.raises(ReadFailedError, match="access denied"), mounted_share(share, state):
        pass
    first, second = log.read_text().splitlines()
    assert "vers=4.1" in first and first.replace(",vers=4.1", "") == second
    assert "port=2050" in second and "nas:/images" in second


def test_password_for_smb(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pretend(monkeypatch, tmp_path, "mount.cifs", CIFS)
    share = Share("smb", "nas", "backup", user="anna", domain="WORK", password="a, b")
    with pytest.raises(ReadFailedError, match=r"mount error\(13\)"), mounted_share(share, state):
        pass
    words, password = log.read_text().splitlines()
    place = words.split()[1]
    assert words.split() == [
        *("//nas/backup", place, "-o"),
        "ro,nosuid,nodev,noexec,username=anna,domain=WORK",
    ]
    assert password == "a, b<end", "mount.cifs takes a line's end for a part of it"
    assert not list(state.iterdir())
    with pytest.raises(UsageError, match="comma"), mounted_share(replace(share, user="a,b"), state):
        pass
