"""The rescue program's parts that only take texts and folders: what is untrusted stays harmless."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.errors import ImagerError, MissingToolError, RefusedError, UsageError
from imager.rescue.answers import MAX_FILE, Answers, parse_answers, read_answers, write_answers
from imager.rescue.bar import bar_lines
from imager.rescue.boot import Entry, loaders, parse_entries
from imager.rescue.hardware import Health, firmware, judge, report, smart_health
from imager.rescue.journal import Journal
from imager.rescue.keyboard import keymaps
from imager.rescue.lock import working
from imager.rescue.network import connect, interfaces, parse_static, unit_text
from imager.rescue.screen import WIDTH, walk
from imager.rescue.session import Machine, without_mounts
from imager.rescue.shares import Share, parse_share
from imager.rescue.wifi import network_block, parse_scan
from imager.rescue.work import BrokenOffError, Meter, run_work
from tests.scripted_screen import ScriptedScreen


def machine(tmp_path: Path, answers: dict[str, str] | None = None, status: int = 0) -> Machine:
    """A machine made of files, whose programs give `answers` by their name."""

    def run(program: str, package: str, *words: str) -> CompletedProcess[str]:
        if answers is None:
            raise MissingToolError(f"{program} is not installed: apt-get install {package}")
        return CompletedProcess(words, status, answers.get(program, ""), "it failed")

    return Machine(
        state=tmp_path / "run", disks=tuple, run=run, sys=tmp_path / "sys", proc=tmp_path / "proc"
    )


def test_answers_are_kept(tmp_path: Path) -> None:
    answers = Answers(share="smb://nas/backup", user="anna", keymap="de", machine="office-pc")
    write_answers(tmp_path, answers)
    assert read_answers(tmp_path) == answers
    assert "password" not in (tmp_path / "imager/answers.json").read_text()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"[" * 40_000,
        b'{"user": 7, "share": null}',
        b'{"user": "\\u001b[2J"}',
        b'{"user": "' + b"x" * 201 + b'"}',
        b'{"user": "x"}' + b" " * MAX_FILE,
        b"\xff\xfe",
    ],
)
def test_answers_that_make_no_sense(data: bytes) -> None:
    assert parse_answers(data) == Answers()


@given(st.binary(max_size=200))
def test_answers_raise_nothing(data: bytes) -> None:
    assert isinstance(parse_answers(data), Answers)


def test_answers_are_not_followed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "imager").symlink_to("elsewhere")
    with pytest.raises(OSError, match="leads elsewhere"):
        write_answers(tmp_path, Answers(user="anna"))
    (tmp_path / "imager").unlink()
    (tmp_path / "imager").mkdir()
    os.mkfifo(tmp_path / "imager/answers.json")
    assert read_answers(tmp_path) == Answers()


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("smb://nas/backup", Share("smb", "nas", "backup")),
        ("//nas/backup/pc", Share("smb", "nas", "backup/pc")),
        (r"\\nas\backup", Share("smb", "nas", "backup")),
        ("smb://anna@10.0.0.7/b", Share("smb", "10.0.0.7", "b", user="anna")),
        ("smb://nas:4450/b/pc", Share("smb", "nas", "b/pc", 4450)),
        ("nfs://nas/srv/images", Share("nfs", "nas", "/srv/images")),
        ("nas:/srv/images", Share("nfs", "nas", "/srv/images")),
        ("ssh://anna@nas:2222/srv", Share("ssh", "nas", "/srv", 2222, "anna")),
        ("sftp://nas", Share("ssh", "nas", "/")),
    ],
)
def test_share_addresses(text: str, share: Share) -> None:
    found = parse_share(text)
    assert found == share
    assert parse_share(replace(found, user="").address) == replace(found, user="")


@pytest.mark.parametrize(
    "text",
    ["", "nas", "http://nas/x", "smb://nas", "ssh://-oProxyCommand=x/", "ssh://nas:99999/x",
     "smb://na s/x", "ssh://nas\n/x", "nfs://../x", "ssh://nas/\x1b[2J"],
)  # fmt: skip
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="is no address of a share"):
        parse_share(text)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Share("smb", "nas", "x", password="secret"))


def test_units() -> None:
    static = parse_static("192.168.1.50/24", "192.168.1.1", "9.9.9.9 1.1.1.1")
    text = unit_text("eth0", static)
    assert text.splitlines() == [
        "[Match]",
        "Name=eth0",
        "",
        "[Network]",
        "DHCP=no",
        "Address=192.168.1.50/24",
        "Gateway=192.168.1.1",
        "DNS=9.9.9.9",
        "DNS=1.1.1.1",
    ]
    assert "DHCP=yes" in unit_text("eth0", None)


@pytest.mark.parametrize(
    ("address", "gateway", "dns"),
    [("192.168.1.50", "", ""), ("x/24", "", ""), ("10.0.0.1/24", "a\nb", ""),
     ("10.0.0.1/24", "", "9.9.9.9 evil"), ("10.0.0.1/99", "", "")],
)  # fmt: skip
def test_addresses_that_make_no_sense(address: str, gateway: str, dns: str) -> None:
    with pytest.raises(UsageError):
        parse_static(address, gateway, dns)


def network(tmp_path: Path) -> None:
    for name, carrier, wireless in (("lo", "1", False), ("eth0", "1", False), ("wlan0", "0", True)):
        folder = tmp_path / "sys/class/net" / name
        folder.mkdir(parents=True)
        (folder / "carrier").write_text(carrier + "\n")
        if wireless:
            (folder / "wireless").mkdir()


ADDRESSES = json.dumps(
    [{"ifname": "eth0", "addr_info": [{}, {"local": "10.0.2.15", "prefixlen": 24}, {}]}, {}]
)


def test_interfaces(tmp_path: Path) -> None:
    network(tmp_path)
    found = interfaces(machine(tmp_path, {"ip": ADDRESSES}))
    assert [(one.name, one.wireless, one.carrier, one.addresses) for one in found] == [
        ("eth0", False, True, ("10.0.2.15/24",)),
        ("wlan0", True, False, ()),
    ]
    assert interfaces(machine(tmp_path, {"ip": "nonsense"}))[0].addresses == ()


def test_connecting(tmp_path: Path) -> None:
    units = tmp_path / "units"
    assert connect(machine(tmp_path, {"ip": ADDRESSES}), "eth0", None, units) == ("10.0.2.15/24",)
    assert (units / "10-imager-eth0.network").exists()
    waited: list[float] = []
    with pytest.raises(ImagerError, match="eth1 has no address after 3 seconds"):
        connect(machine(tmp_path, {"ip": ADDRESSES}), "eth1", None, units, waited.append, 3)
    assert sum(waited) == 3
    with pytest.raises(ImagerError, match="networkctl reload failed: it failed"):
        connect(machine(tmp_path, {}, 1), "eth0", None, units)


SCAN = "\n".join(
    (
        "bssid / frequency / signal level / flags / ssid",
        "aa:bb:cc:dd:ee:01\t2412\t-60\t[WPA2-PSK-CCMP][ESS]\thome",
        "aa:bb:cc:dd:ee:02\t5180\t-40\t[WPA2-PSK-CCMP][ESS]\thome",
        "aa:bb:cc:dd:ee:03\t2412\t-30\t[ESS]\tcaf\\xc3\\xa9 \\\\ \\x1b[2J",
        "aa:bb:cc:dd:ee:04\t2412\t-20\t[WPA2-EAP-CCMP][ESS]\toffice",
        "aa:bb:cc:dd:ee:05\t2412\t-20\t[ESS]\t",
        "nonsense",
    )
)


def test_wireless_networks() -> None:
    found = parse_scan(SCAN)
    assert [(n.name, n.signal, n.secured, n.enterprise) for n in found] == [
        ("office", -20, True, True),
        ("café \\ ?[2J", -30, False, False),
        ("home", -40, True, False),
    ]
    assert found[1].ssid == "café \\ \x1b[2J".encode()


def test_wireless_passwords() -> None:
    block = network_block(b'x"\n}evil', 'a"b"c\\d1')
    assert block.count(b"\n") == 7 and b"evil" not in block
    assert b'psk="a"b"c\\d1"' in block
    assert b"key_mgmt=NONE" in network_block(b"open", "")
    for password in ("short", "x" * 64, "with\nline8", "ümlaut88"):
        with pytest.raises(UsageError):
            network_block(b"x", password)


@pytest.mark.parametrize(
    ("found", "status", "is_bad", "words"),
    [
        ({"smart_status": {"passed": True}}, 0, False, "It says that it is healthy."),
        ({"smart_status": {"passed": False}}, 8, True, "It says of itself that it is failing."),
        ({}, 8, True, "It says of itself that it is failing."),
        (
            {
                "smart_status": {"passed": True},
                "ata_smart_attributes": {
                    "table": [{"id": 5, "raw": {"value": 0}}, {"id": 198, "raw": {"value": 3}}]
                },
                "power_on_time": {"hours": 41234},
                "temperature": {"current": 38},
            },
            0,
            True,
            "It shows signs of dying (3 sectors that cannot be read, 41234 hours in use, "
            "38 degrees Celsius).",
        ),
        (
            {
                "smart_status": {"passed": True},
                "nvme_smart_health_information_log": {"media_errors": 2, "critical_warning": 4},
            },
            0,
            True,
            "It shows signs of dying (2 reads failed, the disk warns).",
        ),
        (
            {"ata_smart_attributes": {"table": [7, {"id": []}]}},
            0,
            False,
            "It does not tell its health.",
        ),
    ],
)
def test_smart(found: object, status: int, is_bad: bool, words: str) -> None:
    assert judge(json.dumps(found), status) == Health(words, is_bad)


def test_smart_without_an_answer(tmp_path: Path) -> None:
    assert not judge("nonsense", 2).is_bad
    health = smart_health(machine(tmp_path).run, "/dev/sda")
    assert "apt-get install smartmontools" in health.words and not health.is_bad


def test_hardware_report(tmp_path: Path) -> None:
    network(tmp_path)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name\t: A CPU\nprocessor : 1\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:  8000000 kB\n")
    made = machine(tmp_path, {"ip": ADDRESSES})
    lines = report(made)
    assert lines[:5] == [
        "Machine      unknown",
        "Processor    A CPU, 2 threads",
        "Memory       8.2 GB",
        "Firmware     BIOS (or UEFI in BIOS mode)",
        "Network      eth0: 10.0.2.15/24",
    ]
    variables = tmp_path / "sys/firmware/efi/efivars"
    variables.mkdir(parents=True)
    assert firmware(made) == "UEFI, Secure Boot unknown"
    name = variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    name.write_bytes(b"\6\0\0\0\1")
    assert firmware(made) == "UEFI, Secure Boot on"


def test_boot_entries() -> None:
    text = (
        "BootCurrent: 0001\nTimeout: 0 seconds\nBootOrder: 0001,0000\n"
        "Boot0000* debian\tHD(1,GPT,5B6A0B6C-1111-2222-3333-444455556666,0x800,0x100000)/File(x)\n"
        "Boot0001  UEFI\x1b USB\tPciRoot(0x0)\n"
    )
    found = parse_entries(text)
    assert [entry.number for entry in found] == ["0000", "0001"]
    assert found[0].is_for("5b6a0b6c-1111-2222-3333-444455556666")
    assert not found[1].is_for("5b6a0b6c-1111-2222-3333-444455556666")
    assert found[1] == Entry("0001", "UEFI? USB?PciRoot(0x0)")


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_loaders(tmp_path: Path) -> None:
    assert loaders(tmp_path) == ()
    files(tmp_path, "EFI/debian/grubx64.efi", "EFI/debian/shimx64.efi")
    files(tmp_path, "EFI/Microsoft/Boot/bootmgfw.efi")
    assert loaders(tmp_path) == (
        "\\EFI\\Microsoft\\Boot\\bootmgfw.efi",
        "\\EFI\\debian\\shimx64.efi",
        "\\EFI\\debian\\grubx64.efi",
    )
    files(tmp_path, "EFI/Boot/BootX64.efi")
    assert loaders(tmp_path)[0] == "\\EFI\\BOOT\\BOOTX64.EFI"


def test_keymaps(tmp_path: Path) -> None:
    files(tmp_path, "i386/qwertz/de.kmap.gz", "i386/dvorak/dvorak.map", "include/x.kmap.gz")
    files(tmp_path, "i386/qwerty/us.kmap.gz", "README")
    assert keymaps([tmp_path]) == ("us", "de", "dvorak")


def test_walk_passes_by_what_asks_nothing() -> None:
    taken: list[str] = []

    def step(name: str, *answers: bool | None) -> Callable[[], bool | None]:
        left = list(answers)

        def take() -> bool | None:
            taken.append(name)
            return left.pop(0)

        return take

    steps = (
        step("a", True, True),
        step("b", None, None, None),
        step("c", False, True),
    )
    assert walk(*steps)
    assert taken == ["a", "b", "c", "b", "a", "b", "c"]
    assert not walk(lambda: False)


def test_the_lock_tells_who_has_it(tmp_path: Path) -> None:
    lock = tmp_path / "run/lock"
    with (
        working(lock, "tty1: saving sda, since 12:31"),
        pytest.raises(RefusedError, match=r"at work \(tty1: saving sda, since 12:31\)"),
        working(lock, "ttyS0"),
    ):
        pass
    with working(lock, "ttyS0"):
        assert lock.read_text() == "ttyS0"


def test_the_journal_is_of_harmless_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x/log", lambda: datetime.fromisoformat("2026-01-02T03:04:05Z"))
    journal.note("one", "two\x1b[2J\nthree")
    assert journal.text().splitlines() == [
        "2026-01-02 03:04:05+00:00  one",
        "2026-01-02 03:04:05+00:00  two?[2J?three",
    ]


def test_mount_points_are_not_for_people() -> None:
    text = "/run/imager/mount-a_1b/images/x.img: damaged"
    assert without_mounts(text) == "images/x.img: damaged"


def test_work_gives_its_result_and_shows_itself() -> None:
    screen = ScriptedScreen()

    def work(progress: object) -> str:
        assert callable(progress)
        progress("write", 50, 200)
        time.sleep(0.6)
        return "done"

    assert run_work(screen, "Work", work, "Break off?") == "done"
    heading, percent, line = screen.gauges[-1]
    assert (heading, percent) == ("Writing", 25)
    assert line.startswith("50 B of 200 B, ") and line.endswith(" left")


def test_work_raises_what_it_raised() -> None:
    def work(progress: object) -> str:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        run_work(ScriptedScreen(), "Work", work, "Break off?")


def test_work_fails_in_words_whatever_happens() -> None:
    def work(progress: object) -> str:
        raise failures.pop()

    failures: list[Exception] = [OSError(5, "Input/output error", "/x"), IndexError("gone")]
    for words in (r"internal error \(IndexError: gone\)", "/x: Input/output error"):
        with pytest.raises(ImagerError, match=words):
            run_work(ScriptedScreen(), "Work", work, "Break off?")


def test_work_is_broken_off_at_its_next_step() -> None:
    stopped = threading.Event()

    def work(progress: object) -> str:
        assert callable(progress)
        for step in range(600):
            try:
                progress("write", step, 600)
            except BrokenOffError:
                stopped.set()
                raise
            time.sleep(0.05)
        return "done"

    screen = ScriptedScreen(("Break off?", False), ("Break off?", True))
    screen.on_gauge = lambda: True
    with pytest.raises(BrokenOffError):
        run_work(screen, "Work", work, "Break off?")
    assert stopped.is_set() and screen.finished()


def test_a_meter_before_anything_is_known() -> None:
    meter = Meter()
    assert meter.lines() == ("Beginning ...", None, "")
    meter("reading partition 2 (NTFS)", 0, 0)
    assert meter.lines() == ("Reading partition 2 (NTFS) ...", None, "")


@given(st.text(max_size=200), st.one_of(st.none(), st.integers(-5, 200)))
def test_the_bar_fits(text: str, percent: int | None) -> None:
    lines = bar_lines(text[:60], text, percent, text)
    assert all(len(line) == WIDTH and line.isprintable() for line in lines)
