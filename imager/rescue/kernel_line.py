"""The kernel's command line as orders to the rescue system: text in, typed values out.

Whoever can write it can boot anything, so it is not a border of trust; but it is typed by people, and
an unattended job that is misspelt must do nothing. So all that begins with `imager` must be known,
said once, well-formed and consistent.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import PurePosixPath

from imager.errors import UsageError
from imager.rescue.shares import Share, parse_share
from imager.wording import printable

NEWEST = "newest"
ONLY_DISK = "only-disk"
SHARE_LABEL = "share"
"""In the place of a label: the share of imager.share."""
AFTER = ("reboot", "poweroff", "shell")
MAX_ID = 64

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_CONSOLE = re.compile(
    r"(?P<name>tty[1-9]\d?|(?:ttyS|ttyUSB|ttyAMA|hvc)\d{1,3})(?:,(?P<speed>\d{3,7})(?:[neo]8?r?)?)?",
    re.ASCII,
)
_KEYMAP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII)


@dataclass(frozen=True)
class ImageChoice:
    """Which image: on the volume with a label, or on any; at a path, or the newest one."""

    label: str | None
    path: PurePosixPath | None
    """Absolute, from the volume's root; None for the newest."""


@dataclass(frozen=True)
class TargetChoice:
    """Which disk: by serial number or WWN, or the only one."""

    key: str
    """"serial", "wwn" or "only-disk"."""
    value: str
    """The number; empty for "only-disk"."""


@dataclass(frozen=True)
class Job:
    """An unattended restore."""

    image: ImageChoice
    target: TargetChoice
    after: str
    """One of `AFTER`."""
    id: str | None
    """As given; None where it is to be derived from the job itself."""
    words: tuple[str, ...]
    """All that was said, sorted: what the id is derived from."""


@dataclass(frozen=True)
class Network:
    """How to reach the network: DHCP everywhere, or fixed addresses on one interface."""

    interface: str | None = None
    """None for DHCP."""
    address: IPv4Interface | None = None
    gateway: IPv4Address | None = None
    dns: IPv4Address | None = None


@dataclass(frozen=True)
class Console:
    """A further terminal."""

    name: str
    """Below /dev."""
    speed: int | None
    """Baud."""


@dataclass(frozen=True)
class KernelLine:
    """All orders; `job` is None where a person is expected."""

    job: Job | None = None
    network: Network | None = None
    share: Share | None = None
    console: Console | None = None
    keymap: str | None = None


def parse_kernel_line(text: str) -> KernelLine:
    """The orders in a kernel line; other programs' words are passed over.

    Raises UsageError in one line for what is unknown, doubled, malformed or contradictory.
    """
    words = _words(text)
    job = _job(words)
    if job is None:
        for key in ("image", "target", "after", "job"):
            if key in words:
                raise UsageError(f"imager.{key} is given without imager.restore=auto")
    share = _share(words["share"]) if "share" in words else None
    network = _network(words["net"]) if "net" in words else None
    if share is not None and network is None:
        raise UsageError("imager.share is given without imager.net: write imager.net=dhcp")
    if job is not None and (job.image.label == SHARE_LABEL) != (share is not None):
        raise UsageError(
            "imager.share and imager.image do not fit together: "
            f"an image on a share is written imager.image={SHARE_LABEL}:/path"
        )
    return KernelLine(
        job=job,
        network=network,
        share=share,
        console=_console(words["console"]) if "console" in words else None,
        keymap=_keymap(words["keymap"]) if "keymap" in words else None,
    )


def extra_console(text: str) -> Console | None:
    """The terminal of imager.console=, also where the rest of the line is refused."""
    with contextlib.suppress(UsageError):
        for word in _split(text):
            name, _, value = word.partition("=")
            if name == "imager.console":
                return _console(value)
    return None


_KEYS = (
    *("restore", "image", "target", "after", "job"),
    *("net", "share", "console", "keymap"),
)


def _words(text: str) -> dict[str, str]:
    """Our words by their name without `imager.`; each has a value that is not empty."""
    found: dict[str, str] = {}
    for word in _split(text):
        name, equals, value = word.partition("=")
        if not name.casefold().startswith("imager"):
            continue
        key = name.removeprefix("imager.")
        if key not in _KEYS or key == name:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"is imager.{near[0]} meant?" if near else f"known are {_listed()}"
            raise UsageError(f"{_shown(name)} on the kernel line is not known: {hint}")
        if not equals or not value:
            raise UsageError(f"imager.{key} on the kernel line has no value")
        if key in found:
            raise UsageError(f"imager.{key} stands twice on the kernel line")
        if not value.isprintable():
            raise UsageError(f"imager.{key} has a value that cannot be shown")
        found[key] = value
    return found


def _split(text: str) -> list[str]:
    """Words as the kernel separates them: blanks between double quotes belong to a word."""
    words, word, quoted, begun = [], "", False, False
    for character in text:
        if character == '"':
            quoted, begun = not quoted, True
        elif character.isspace() and not quoted:
            if begun:
                words.append(word)
            word, begun = "", False
        else:
            word, begun = word + character, True
    if quoted:
        raise UsageError("the kernel line has a quotation mark without its second one")
    return [*words, word] if begun else words


def _job(words: Mapping[str, str]) -> Job | None:
    if "restore" not in words:
        return None
    if words["restore"] != "auto":
        raise UsageError(f"imager.restore={_shown(words['restore'])} is not known: write auto")
    for key in ("image", "target"):
        if key not in words:
            raise UsageError(f"imager.restore=auto needs imager.{key}")
    after = words.get("after", "poweroff")
    if after not in AFTER:
        raise UsageError(f"imager.after={_shown(after)} is not known: write {', '.join(AFTER)}")
    name = words.get("job")
    if name is not None and (len(name) > MAX_ID or _ID.fullmatch(name) is None):
        raise UsageError(
            f"imager.job={_shown(name)} is no name: up to {MAX_ID} letters, digits, dots, dashes"
        )
    return Job(
        image=_image(words["image"]),
        target=_target(words["target"]),
        after=after,
        id=name,
        words=tuple(sorted(f"imager.{key}={value}" for key, value in words.items())),
    )


def _image(value: str) -> ImageChoice:
    if value == NEWEST:
        return ImageChoice(None, None)
    label, _, rest = value.partition(":")
    if label and rest == NEWEST:
        return ImageChoice(label, None)
    path = PurePosixPath(rest)
    sound = rest.startswith("/") and not rest.endswith("/") and ".." not in path.parts
    if not label or label.startswith("/") or not sound:
        raise UsageError(
            f"imager.image={_shown(value)} is not understood: "
            "write LABEL:/path/to/image, LABEL:newest or newest"
        )
    return ImageChoice(label, path)


def _target(value: str) -> TargetChoice:
    key, colon, number = value.partition(":")
    if value == ONLY_DISK:
        return TargetChoice(ONLY_DISK, "")
    if key in ("serial", "wwn") and colon and number.strip():
        return TargetChoice(key, number.strip())
    if value.startswith("/dev/"):
        raise UsageError(
            f"imager.target={_shown(value)}: that may be another disk at the next start; "
            "write serial:NUMBER, wwn:NUMBER or only-disk"
        )
    raise UsageError(
        f"imager.target={_shown(value)} is not understood: "
        "write serial:NUMBER, wwn:NUMBER or only-disk"
    )


def _network(value: str) -> Network:
    if value == "dhcp":
        return Network()
    fields = value.split(":")
    try:
        interface, address, gateway, dns = [*fields, *[""] * (4 - len(fields))]
        if _INTERFACE.fullmatch(interface) is None or "/" not in address:
            raise ValueError
        return Network(
            interface,
            IPv4Interface(address),
            IPv4Address(gateway) if gateway else None,
            IPv4Address(dns) if dns else None,
        )
    except ValueError:
        raise UsageError(
            f"imager.net={_shown(value)} is not understood: write dhcp, or "
            "INTERFACE:ADDRESS/PREFIX:GATEWAY:DNS such as eth0:10.0.0.5/24:10.0.0.1:10.0.0.1"
        ) from None


def _share(value: str) -> Share:
    share = parse_share(value)
    if share.user or "@" in value:
        raise UsageError(
            "imager.share: a user's name does not belong on the kernel line, "
            "which every program can read"
        )
    if share.kind == "ssh":
        raise UsageError("imager.share: only smb:// and nfs:// can be used without a person")
    return share


def _console(value: str) -> Console:
    match = _CONSOLE.fullmatch(value)
    if match is None:
        raise UsageError(f"imager.console={_shown(value)} is no terminal such as ttyS1,115200")
    return Console(match["name"], int(match["speed"]) if match["speed"] else None)


def _keymap(value: str) -> str:
    if _KEYMAP.fullmatch(value) is None:
        raise UsageError(f"imager.keymap={_shown(value)} is no keyboard layout such as de")
    return value


def _shown(value: str) -> str:
    return printable(value)[:100]


def _listed() -> str:
    return ", ".join(f"imager.{key}" for key in _KEYS)
