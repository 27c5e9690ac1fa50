"""What the machine is made of, and how its disks are: read, never changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imager.disk.inventory import Disk
from imager.errors import ImagerError
from imager.rescue.network import interfaces
from imager.rescue.session import Machine, Run
from imager.wording import format_size, printable

_SECURE_BOOT = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_FAILING = 0x08
"""smartctl(8), exit status: the disk says of itself that it fails."""
_WORN = {
    5: "sectors replaced",
    187: "errors not corrected",
    197: "sectors waiting to be replaced",
    198: "sectors that cannot be read",
}
"""The ATA attributes that tell of sectors lost, by number."""


@dataclass(frozen=True)
class Health:
    """What a disk's SMART data come to."""

    words: str
    is_bad: bool


def smart_health(run: Run, path: str) -> Health:
    """How the disk at `path` is, as it says itself; harmless, but a dying disk may take its time."""
    try:
        done = run("smartctl", "smartmontools", "--json", "--health", "--attributes", path)
    except ImagerError as error:
        return Health(f"Its health is not known: {error}.", False)
    return judge(done.stdout, done.returncode)


def judge(text: str, status: int) -> Health:
    """What smartctl's JSON and exit status say."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return Health("It does not tell its health.", False)
    passed = _get(found, "smart_status", "passed")
    worn = list(_worn(found))
    facts = [*worn, *_age(found)]
    more = f" ({', '.join(facts)})" if facts else ""
    if passed is False or status & _FAILING:
        return Health(f"It says of itself that it is failing{more}.", True)
    if worn:
        return Health(f"It shows signs of dying{more}.", True)
    if passed is True:
        return Health(f"It says that it is healthy{more}.", False)
    return Health(f"It does not tell its health{more}.", False)


def report(machine: Machine) -> list[str]:
    """Lines for a person: machine, firmware, memory, network, disks."""
    product = " ".join(filter(None, (_dmi(machine, "sys_vendor"), _dmi(machine, "product_name"))))
    return [
        f"Machine      {product or 'unknown'}",
        f"Processor    {_processor(machine)}",
        f"Memory       {_memory(machine)}",
        f"Firmware     {firmware(machine)}",
        *_network(machine),
        "",
        *_disks(machine.disks(), machine.run),
    ]


def firmware(machine: Machine) -> str:
    """How this system was started."""
    if not machine.is_uefi:
        return "BIOS (or UEFI in BIOS mode)"
    try:
        # Four bytes of attributes, then the value (UEFI specification, 3.3).
        state = (machine.sys / _SECURE_BOOT).read_bytes()[4:5]
    except OSError:
        state = b""
    words = {b"\1": "on", b"\0": "off"}.get(state, "unknown")
    return f"UEFI, Secure Boot {words}"


def _network(machine: Machine) -> Iterator[str]:
    for found in interfaces(machine):
        addresses = ", ".join(found.addresses) or ("no address" if found.carrier else "no cable")
        yield f"Network      {found.name}{' (wireless)' if found.wireless else ''}: {addresses}"


def _disks(disks: Iterable[Disk], run: Run) -> Iterator[str]:
    for disk in disks:
        yield disk.identity.describe()
        yield f"  {smart_health(run, disk.identity.path).words}"


def _processor(machine: Machine) -> str:
    lines = _read(machine.proc / "cpuinfo").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    count = sum(line.startswith("processor") for line in lines)
    return f"{printable(models[0]) if models else 'unknown'}, {count} threads"


def _memory(machine: Machine) -> str:
    for line in _read(machine.proc / "meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return format_size(int(line.split()[1]) * 1024)
    return "unknown"


def _dmi(machine: Machine, name: str) -> str:
    return printable(_read(machine.sys / "class/dmi/id" / name).strip())


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _worn(found: Mapping[str, object]) -> Iterator[str]:
    table = _get(found, "ata_smart_attributes", "table")
    for row in table if isinstance(table, list) else ():
        number = _get(row, "id")
        words = _WORN.get(number) if isinstance(number, int) else None
        count = _get(row, "raw", "value")
        if words and isinstance(count, int) and count > 0:
            yield f"{count} {words}"
    log = found.get("nvme_smart_health_information_log")
    if isinstance(log, dict):
        errors = log.get("media_errors")
        if isinstance(errors, int) and errors > 0:
            yield f"{errors} reads failed"
        warning = log.get("critical_warning")
        if isinstance(warning, int) and warning > 0:
            yield "the disk warns"


def _age(found: Mapping[str, object]) -> Iterator[str]:
    hours = _get(found, "power_on_time", "hours")
    if isinstance(hours, int):
        yield f"{hours} hours in use"
    heat = _get(found, "temperature", "current")
    if isinstance(heat, int):
        yield f"{heat} degrees Celsius"


def _get(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
