"""Network shares: their addresses, and mounting them as long as they are needed.

A password goes to the mounting program through a pipe or a file in memory, never through its
arguments, which every process may see; and it is never written anywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imager.disk import programs
from imager.errors import ReadFailedError, UsageError
from imager.rescue.mount_places import mount_place
from imager.wording import printable

SECONDS = 60
"""A server that has not answered by then is taken for dead."""
_HOST = r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[\w.-]{1,253})"
_PORT = r"(?::(?P<port>\d{1,5}))?"
_ADDRESSES = (
    ("smb", re.compile(rf"(?:smb:|cifs:)?//(?:(?P<user>[^@/]+)@)?{_HOST}{_PORT}/(?P<path>.+)", re.A)),
    ("nfs", re.compile(rf"nfs://{_HOST}{_PORT}(?P<path>/.*)", re.A)),
    ("ssh", re.compile(
        rf"(?:ssh|sftp)://(?:(?P<user>[^@/]+)@)?{_HOST}{_PORT}(?P<path>/.*)?",
        re.A,
    )),
    ("nfs", re.compile(rf"{_HOST}:(?P<path>/(?!/).*)", re.A)),
)  # fmt: skip
_HARMLESS = "nosuid,nodev,noexec"
_NFS_VERSION = ",vers=4.1"
"""Tried first: with 4.2 Linux 6.6 and later read by READ_PLUS, which NFS-Ganesha before 6.2 answers wrongly
(nfs-ganesha issue 1188)."""


@dataclass(frozen=True)
class Share:
    """A folder on another machine."""

    kind: str
    """"smb", "nfs" or "ssh"."""
    host: str
    path: str
    port: int | None = None
    user: str = ""
    domain: str = ""
    password: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """As it was typed, or as good, without user and password."""
        port = f":{self.port}" if self.port else ""
        return f"{self.kind}://{self.host}{port}/{self.path.lstrip('/')}"


def parse_share(text: str) -> Share:
    """The share at an address; UsageError, with examples, where it is none."""
    text = text.strip().replace("\\", "/")
    for kind, pattern in _ADDRESSES:
        match = pattern.fullmatch(text)
        if match is None or not text.isprintable() or match["host"].startswith(("-", ".")):
            continue
        found = match.groupdict()
        port = int(found["port"]) if found.get("port") else None
        if port is not None and not 0 < port < 1 << 16:
            continue
        return Share(kind, found["host"], found["path"] or "/", port, found.get("user") or "")
    raise UsageError(
        f"{text or 'nothing'} is no address of a share: write smb://server/share, "
        "nfs://server/folder or ssh://server/folder"
    )


@contextmanager
def mounted_share(share: Share, state: Path, write: bool = False) -> Iterator[Path]:
    """The share's files, read-only unless `write`; unmounted at the end.

    Raises ReadFailedError with what the server or the program said.
    """
    with mount_place(state, "share") as place:
        _mount(share, place, state, write)
        try:
            yield place
        finally:
            if programs.run("umount", "util-linux", "--", str(place)).returncode:
                programs.run("umount", "util-linux", "--lazy", "--", str(place))


def host_keys(share: Share) -> tuple[str, tuple[str, ...]]:
    """The lines for known_hosts and the fingerprints of an SSH server.

    Raises ReadFailedError where it does not answer.
    """
    port = ("-p", str(share.port)) if share.port else ()
    host = share.host.strip("[]")
    done = programs.run("ssh-keyscan", "openssh-client", "-T", "15", *port, "--", host)
    lines = "".join(f"{line}\n" for line in done.stdout.splitlines() if not line.startswith("#"))
    if not lines:
        raise ReadFailedError(f"{share.host} does not answer: is it switched on, and SSH with it?")
    shown = subprocess.run(
        [programs.find("ssh-keygen", "openssh-client"), "-l", "-f", "-"],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )
    return lines, tuple(printable(line) for line in shown.stdout.splitlines())


def known_hosts(state: Path) -> Path:
    """The file with the servers that the person has agreed to."""
    return state / "known_hosts"


def _mount(share: Share, place: Path, state: Path, write: bool) -> None:
    mode = "rw" if write else "ro"
    command, secret, environ = {"smb": _smb, "nfs": _nfs, "ssh": _ssh}[share.kind](
        share, place, mode, state
    )
    done = _run(share, command, secret, environ)
    if done.returncode and share.kind == "nfs" and "not supported" in done.stderr:
        done = _run(share, [word.replace(_NFS_VERSION, "") for word in command], secret, environ)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = printable(said[-1] if share.kind == "ssh" and said else said[0] if said else "")
        raise ReadFailedError(
            f"{share.address} cannot be mounted: {reason or 'no reason given'} "
            "(are address, user and password right?)"
        )


def _run(
    share: Share, command: list[str], secret: str, environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a mounting program; ReadFailedError where it takes too long."""
    try:
        with _memory_file(environ) as (more, fds):
            return subprocess.run(
                command,
                input=secret,
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "LC_ALL": "C", **more},
                pass_fds=fds,
                timeout=SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise ReadFailedError(
            f"{share.address} has not answered for {SECONDS} seconds: is it reachable?"
        ) from None


_Command = tuple[list[str], str, str]
"""Words, standard input, and what the file PASSWD_FD shall hold."""


def _smb(share: Share, place: Path, mode: str, state: Path) -> _Command:
    options = [mode, _HARMLESS]
    if share.user:
        if "," in share.user + share.domain:
            raise UsageError("a user's name with a comma cannot be given to mount.cifs")
        options.append(f"username={share.user}")
        options += [f"domain={share.domain}"] if share.domain else []
    else:
        options.append("guest")
    host = share.host
    port = [f"port={share.port}"] if share.port else []
    program = programs.find("mount.cifs", "cifs-utils")
    words = [program, f"//{host}/{share.path.strip('/')}", str(place)]
    return [*words, "-o", ",".join([*options, *port])], "", share.password if share.user else ""


def _nfs(share: Share, place: Path, mode: str, state: Path) -> _Command:
    programs.find("mount.nfs", "nfs-common")
    options = [mode, _HARMLESS + _NFS_VERSION, "nolock", "soft", "timeo=150", "retry=0"]
    options += [f"port={share.port}"] if share.port else []
    program = programs.find("mount", "util-linux")
    words = [program, "--types", "nfs", "--options", ",".join(options)]
    return [*words, "--", f"{share.host}:{share.path}", str(place)], "", ""


def _ssh(share: Share, place: Path, mode: str, state: Path) -> _Command:
    user = f"{share.user}@" if share.user else ""
    options = [
        mode,
        _HARMLESS,
        f"UserKnownHostsFile={known_hosts(state)}",
        "StrictHostKeyChecking=yes",
        "ConnectTimeout=20",
        "ServerAliveInterval=15",
        "NumberOfPasswordPrompts=1",
        # With a password there is nobody to give it a second time.
        *(("password_stdin",) if share.password else ("BatchMode=yes", "reconnect")),
    ]
    words = [programs.find("sshfs", "sshfs"), f"{user}{share.host}:{share.path}", str(place)]
    port = ["-p", str(share.port)] if share.port else []
    secret = f"{share.password}\n" if share.password else ""
    return [*words, *port, "-o", ",".join(options)], secret, ""


@contextmanager
def _memory_file(secret: str) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """The environment and the descriptor by which mount.cifs gets a password, if there is one."""
    if not secret:
        yield {}, ()
        return
    fd = os.memfd_create("password", 0)
    try:
        os.write(fd, secret.encode())  # to its last byte: a line's end would be one of them
        os.lseek(fd, 0, os.SEEK_SET)
        yield {"PASSWD_FD": str(fd)}, (fd,)
    finally:
        os.close(fd)
