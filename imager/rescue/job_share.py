"""The network share of an unattended job: an address for this machine, then the share's files.

User and password are not on the kernel line, which every program can read, but in a file on the stick:

    imager/share.json    {"user": "backup", "password": "...", "domain": ""}
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from imager.errors import ImagerError, ReadFailedError, UsageError
from imager.rescue.kernel_line import SHARE_LABEL, Network
from imager.rescue.media import MediaVolume, folder_volume, mounted_read_only
from imager.rescue.network import Static, addresses, connect
from imager.rescue.session import Machine
from imager.rescue.shares import Share, mounted_share

CREDENTIALS = "imager/share.json"
PATIENCE = 60.0
"""Seconds until DHCP must have given an address."""
_MAX_FILE = 64 << 10
_KEYS = ("user", "password", "domain")


@contextlib.contextmanager
def job_share(
    machine: Machine,
    network: Network,
    share: Share,
    data: MediaVolume | None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[MediaVolume]:
    """The share as a volume with the label "share", as long as it is mounted.

    Raises ImagerError where there is no address or the share cannot be mounted.
    """
    if network.interface is not None:
        gateway, dns = (str(text) if text else "" for text in (network.gateway, network.dns))
        connect(machine, network.interface, Static(str(network.address), gateway, dns), sleep=sleep)
    else:
        _wait_for_address(machine, sleep)
    if data is not None:
        with mounted_read_only(data) as root:
            known = read_credentials(root)
        share = replace(
            share,
            user=known.get("user", ""),
            password=known.get("password", ""),
            domain=known.get("domain", ""),
        )
    with mounted_share(share, machine.state) as place:
        yield folder_volume(place, SHARE_LABEL)


def read_credentials(root: Path) -> dict[str, str]:
    """What the file on the stick mounted at `root` says; nothing where there is none.

    Raises UsageError where it is not understood; its content is not quoted.
    """
    try:
        fd = os.open(root / CREDENTIALS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ReadFailedError(f"{CREDENTIALS} on the stick: {error.strerror}") from None
    try:
        with os.fdopen(fd, "rb") as file:
            value = json.loads(file.read(_MAX_FILE))
        found = {key: value[key] for key in _KEYS if key in value}
        sound = isinstance(value, dict) and len(found) == len(value)
        sound = sound and all(
            isinstance(text, str) and text.isprintable() for text in found.values()
        )
    except (OSError, ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise UsageError(
            f'{CREDENTIALS} on the stick is not understood: write {{"user": "...", "password": "..."}}'
        )
    return found


def _wait_for_address(machine: Machine, sleep: Callable[[float], None]) -> None:
    waited = 0.0
    while not addresses(machine):
        if waited >= PATIENCE:
            raise ImagerError(
                f"no address by DHCP after {PATIENCE:.0f} seconds: is the cable in? "
                "Otherwise write a fixed address: imager.net=INTERFACE:ADDRESS/PREFIX:GATEWAY:DNS"
            )
        sleep(1.0)
        waited += 1.0
