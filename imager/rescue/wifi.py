"""Wireless networks through wpa_supplicant: which there are, and joining one with its password.

A network's name is whatever its owner sends: it is shown with care, and given to wpa_supplicant in
hexadecimal.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from imager.errors import ImagerError, UsageError
from imager.rescue.session import Machine
from imager.wording import printable

_PACKAGE = "wpasupplicant"
_SCAN_SECONDS = 6
_JOIN_SECONDS = 25
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"e": b"\x1b"}


class Network(NamedTuple):
    """A network that was heard."""

    ssid: bytes
    signal: int
    """dBm: the nearer to 0 the better."""
    secured: bool
    enterprise: bool
    """It asks for user and certificate, which is not supported."""

    @property
    def name(self) -> str:
        """For a person."""
        return printable(self.ssid.decode("utf-8", "replace"))


class Wireless:
    """wpa_supplicant on one interface."""

    def __init__(
        self,
        machine: Machine,
        interface: str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start it; ImagerError where it does not run."""
        self._machine = machine
        self._interface = interface
        self._sleep = sleep
        self._folder = machine.state / "wpa"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._configuration = self._folder / f"{interface}.conf"
        self._write(b"")
        if not self._says("ping", "PONG"):
            done = machine.run(
                *("wpa_supplicant", _PACKAGE, "-B", "-i", interface),
                *("-c", str(self._configuration)),
            )
            if done.returncode:
                raise ImagerError(
                    f"{interface} cannot be used for wireless networks: the card may need "
                    "firmware that is not free, and not on this medium"
                )

    def scan(self) -> tuple[Network, ...]:
        """The networks in reach, the strongest first."""
        self._ask("scan")
        self._sleep(_SCAN_SECONDS)
        return parse_scan(self._ask("scan_results"))

    def join(self, ssid: bytes, password: str) -> None:
        """Join a network; ImagerError where it does not let us in."""
        self._write(network_block(ssid, password))
        self._ask("reconfigure")
        for _second in range(_JOIN_SECONDS):
            self._sleep(1.0)
            if self._says("status", "wpa_state=COMPLETED"):
                return
        raise ImagerError("the network does not let this machine in: is the password right?")

    def _write(self, block: bytes) -> None:
        control = f"ctrl_interface={self._folder}\nupdate_config=0\n".encode()
        fd = os.open(self._configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(control + block)

    def _ask(self, command: str) -> str:
        return self._machine.run(
            *("wpa_cli", _PACKAGE, "-p", str(self._folder), "-i", self._interface, command)
        ).stdout

    def _says(self, command: str, words: str) -> bool:
        return words in self._ask(command)


def parse_scan(text: str) -> tuple[Network, ...]:
    """The networks in what `wpa_cli scan_results` prints; hidden ones are left out."""
    best: dict[bytes, Network] = {}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) != 5 or not fields[2].lstrip("-").isdecimal() or not fields[4]:
            continue
        ssid = _unescape(fields[4])
        flags = fields[3]
        found = Network(ssid, int(fields[2]), "WPA" in flags or "WEP" in flags, "EAP" in flags)
        if 0 < len(ssid) <= 32 and (ssid not in best or best[ssid].signal < found.signal):
            best[ssid] = found
    return tuple(sorted(best.values(), key=lambda network: -network.signal))


def network_block(ssid: bytes, password: str) -> bytes:
    """wpa_supplicant.conf(5) for one network; UsageError for what cannot be a password."""
    lines = [b"network={", b"ssid=" + ssid.hex().encode(), b"scan_ssid=1"]
    if not password:
        lines.append(b"key_mgmt=NONE")
    elif 8 <= len(password) <= 63 and password.isascii() and password.isprintable():
        # All between the first and the last quotation mark is the password.
        lines += [b"key_mgmt=WPA-PSK SAE", b"ieee80211w=1", b'psk="' + password.encode() + b'"']
    else:
        raise UsageError("a wireless network's password has 8 to 63 plain characters")
    return b"\n\t".join(lines) + b"\n}\n"


def _unescape(text: str) -> bytes:
    """Undo wpa_cli's escapes of what is no plain ASCII: \\xHH, \\n and the like."""
    return re.sub(
        rb"\\(x[0-9a-fA-F]{2}|.)",
        lambda match: (
            bytes.fromhex(match[1][1:].decode())
            if len(match[1]) == 3
            else _ESCAPES.get(match[1], match[1])
        ),
        text.encode(),
    )
