"""Servers with a folder to lend, on this machine, for guests that reach it through QEMU's network.

Samba and NFS-Ganesha run as ordinary processes with all they keep in a folder of the test's, on a port of
their own; QEMU's user networking shows this machine's 127.0.0.1 to a guest as 10.0.2.2.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imager.disk.programs import find
from tests.boot.vm import die_with_parent
from tests.loop import run

HOST = "10.0.2.2"
"""This machine, as a guest sees it."""
SMB_USER = "backup"
"""Debian has such a user everywhere."""
SMB_PASSWORD = "correct, horse"
SMB_SHARE = "images"
NFS_PATH = "/images"
_SECONDS = 30
_SMB = """\
[global]
server role = standalone server
smb ports = {port}
interfaces = 127.0.0.1
bind interfaces only = yes
disable netbios = yes
load printers = no
passdb backend = tdbsam:{state}/passdb.tdb
private dir = {state}
lock directory = {state}
state directory = {state}
cache directory = {state}
pid directory = {state}
ncalrpc dir = {state}/ncalrpc
log file = {state}/log

[{share}]
path = {folder}
valid users = {user}
force user = root
read only = no
"""
_NFS = """\
NFS_CORE_PARAM {{
    NFS_Port = {port};
    Bind_addr = 127.0.0.1;
    Protocols = 4;
    Enable_NLM = false;
    Enable_RQUOTA = false;
}}
NFSV4 {{
    Graceless = true;
    RecoveryBackend = fs;
    RecoveryRoot = {state};
}}
EXPORT {{
    Export_Id = 1;
    Path = {folder};
    Pseudo = {path};
    Access_Type = RW;
    Squash = No_Root_Squash;
    SecType = sys;
    FSAL {{ Name = VFS; }}
}}
"""


@contextmanager
def smb_server(folder: Path, state: Path) -> Iterator[int]:
    """Lend `folder` as SMB_SHARE to SMB_USER; the port."""
    state.mkdir()
    port = free_port()
    settings = state / "smb.conf"
    settings.write_text(
        _SMB.format(port=port, state=state, folder=folder, share=SMB_SHARE, user=SMB_USER)
    )
    twice = f"{SMB_PASSWORD}\n{SMB_PASSWORD}\n"
    run(find("smbpasswd", "samba-common-bin"), "-c", settings, "-s", "-a", SMB_USER, stdin=twice)
    words = ("--foreground", "--no-process-group", "--configfile", str(settings))
    with _running((find("smbd", "samba"), *words), port, state / "log"):
        yield port


@contextmanager
def nfs_server(folder: Path, state: Path) -> Iterator[int]:
    """Lend `folder` as NFS_PATH to everybody, by version 4; the port."""
    state.mkdir()
    port = free_port()
    settings, log = state / "ganesha.conf", state / "log"
    settings.write_text(_NFS.format(port=port, state=state, folder=folder, path=NFS_PATH))
    words = ("-F", "-f", str(settings), "-L", str(log), "-p", str(state / "pid"))
    with _running((find("ganesha.nfsd", "nfs-ganesha"), *words), port, log):
        yield port


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """A server as long as this lasts, from when it listens."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        # Samba ends its whole process group.
        start_new_session=True,
        preexec_fn=die_with_parent,
    ) as server:
        try:
            _wait_for(port, server, log)
            yield
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            said = log.read_text(errors="replace") if log.exists() else ""
            assert server.poll() is None and time.monotonic() < end, said[-2000:]
            time.sleep(0.1)
