"""The network: which interfaces there are, and an address for one of them.

Addresses are systemd-networkd's business. What it shall do stands in a file under /run, so that
nothing outlives the rescue system.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imager.errors import ImagerError, UsageError
from imager.rescue.session import Machine
from imager.wording import printable

UNITS = Path("/run/systemd/network")
PATIENCE = 30.0
"""Seconds until an interface that has no address yet is given up: switches take their time."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


@dataclass(frozen=True)
class Interface:
    """A network interface."""

    name: str
    wireless: bool
    carrier: bool
    """Whether there is something at the other end of the cable."""
    addresses: tuple[str, ...]
    """Those that reach beyond the cable, with their prefix length."""


@dataclass(frozen=True)
class Static:
    """An address that the person knows."""

    address: str
    """With the prefix length."""
    gateway: str = ""
    dns: str = ""


def interfaces(machine: Machine) -> tuple[Interface, ...]:
    """All but the loopback, those with a cable first."""
    folder = machine.sys / "class/net"
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    known = addresses(machine)
    found = [
        Interface(
            name=name,
            wireless=(folder / name / "wireless").exists() or (folder / name / "phy80211").exists(),
            carrier=_carrier(folder / name / "carrier"),
            addresses=known.get(name, ()),
        )
        for name in names
        if name != "lo" and _NAME.fullmatch(name)
    ]
    return tuple(sorted(found, key=lambda one: (not one.addresses, one.wireless, not one.carrier)))


def addresses(machine: Machine) -> dict[str, tuple[str, ...]]:
    """The global addresses by interface; none where `ip` does not tell."""
    try:
        done = machine.run("ip", "iproute2", "-json", "address", "show", "scope", "global")
        answer = json.loads(done.stdout or "[]")
        # What is filtered out is still there, as {}: links as well as addresses.
        return {
            link["ifname"]: tuple(f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a)
            for link in answer
            if link.get("addr_info")
        }
    except (ImagerError, ValueError, KeyError, TypeError):
        return {}


def parse_static(address: str, gateway: str, dns: str) -> Static:
    """What was typed, if it makes sense; UsageError otherwise."""
    try:
        interface = ipaddress.ip_interface(address)
        if "/" not in address:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{address or 'nothing'} is no address with its prefix length, such as 192.168.1.50/24"
        ) from None
    for text in filter(None, (gateway, *dns.split())):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise UsageError(f"{text} is no address such as 192.168.1.1") from None
    return Static(str(interface), gateway, dns)


def unit_text(interface: str, static: Static | None) -> str:
    """systemd.network(5) for one interface: DHCP, or `static`."""
    lines = ["[Match]", f"Name={interface}", "", "[Network]"]
    if static is None:
        lines.append("DHCP=yes")
    else:
        lines += ["DHCP=no", f"Address={static.address}"]
        lines += [f"Gateway={static.gateway}"] if static.gateway else []
        lines += [f"DNS={text}" for text in static.dns.split()]
    return "\n".join(lines) + "\n"


def connect(
    machine: Machine,
    interface: str,
    static: Static | None,
    units: Path = UNITS,
    sleep: Callable[[float], None] = time.sleep,
    patience: float = PATIENCE,
) -> tuple[str, ...]:
    """Give an interface an address, and wait for it; the addresses it has then.

    Raises ImagerError where there is none after `patience` seconds, with what to look at.
    """
    units.mkdir(parents=True, exist_ok=True)
    (units / f"10-imager-{interface}.network").write_text(unit_text(interface, static), "utf-8")
    for words in (("reload",), ("reconfigure", interface), ("up", interface)):
        done = machine.run("networkctl", "systemd", *words)
        if done.returncode:
            raise ImagerError(
                f"networkctl {' '.join(words)} failed: {printable(done.stderr.strip())}"
            )
    waited = 0.0
    while True:
        found = addresses(machine).get(interface, ())
        if found:
            return found
        if waited >= patience:
            raise ImagerError(
                f"{interface} has no address after {patience:.0f} seconds: is the cable in, and is "
                "there a DHCP server? Otherwise give it a fixed address"
            )
        sleep(1.0)
        waited += 1.0


def _carrier(path: Path) -> bool:
    try:
        return path.read_text().strip() == "1"
    except OSError:
        return False
