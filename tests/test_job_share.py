"""The share of an unattended job: who logs in, with which address, and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest

from imager.errors import ImagerError, ReadFailedError, UsageError
from imager.rescue import job_share as module
from imager.rescue.job_share import CREDENTIALS, job_share, read_credentials
from imager.rescue.kernel_line import Network, parse_kernel_line
from imager.rescue.media import folder_volume
from imager.rescue.session import Machine
from imager.rescue.shares import Share, parse_share

SHARE = parse_share("smb://nas/backup")
LINK = {"ifname": "eth0", "addr_info": [{"local": "10.0.0.5", "prefixlen": 24}]}


@dataclass
class Lab:
    """A machine whose network is words."""

    state: Path
    links: list[object] = field(default_factory=lambda: [LINK])
    said: list[tuple[str, ...]] = field(default_factory=list)
    mounted: list[Share] = field(default_factory=list)
    waited: float = 0.0

    def machine(self) -> Machine:
        return replace(Machine(), state=self.state, run=self._run)

    def _run(self, program: str, package: str, *words: str) -> CompletedProcess[str]:
        self.said.append((program, *words))
        answer = json.dumps(self.links) if program == "ip" else ""
        return CompletedProcess([program], 0, answer, "")

    @contextlib.contextmanager
    def mount(self, share: Share, state: Path) -> Iterator[Path]:
        self.mounted.append(share)
        yield self.state

    def sleep(self, seconds: float) -> None:
        self.waited += seconds

    def use(self, network: Network, stick: Path | None = None) -> None:
        data = folder_volume(stick) if stick else None
        with (
            mock.patch.object(module, "mounted_share", self.mount),
            job_share(self.machine(), network, SHARE, data, self.sleep) as volume,
        ):
            assert (volume.label, volume.path) == ("share", str(self.state))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def stick(folder: Path, content: str) -> Path:
    place = folder / CREDENTIALS
    place.parent.mkdir()
    place.write_text(content)
    return folder


def test_guest_by_dhcp(lab: Lab) -> None:
    lab.use(Network())
    assert lab.mounted == [SHARE]


def test_user_from_the_stick(lab: Lab, tmp_path: Path) -> None:
    lab.use(Network(), stick(tmp_path, '{"user": "me", "password": "a b"}'))
    assert lab.mounted == [replace(SHARE, user="me", password="a b")]


def test_fixed_address(lab: Lab, tmp_path: Path) -> None:
    network = parse_kernel_line("imager.net=eth0:10.0.0.5/24:10.0.0.1:10.0.0.2").network
    assert network is not None
    with mock.patch.object(module, "connect") as connect:
        lab.use(network)
    (_, interface, static), _ = connect.call_args
    assert interface == "eth0"
    assert (static.address, static.gateway, static.dns) == ("10.0.0.5/24", "10.0.0.1", "10.0.0.2")


def test_no_address(lab: Lab) -> None:
    lab.links = []
    with pytest.raises(ImagerError, match="no address by DHCP after 60 seconds"):
        lab.use(Network())
    assert lab.waited == 60 and lab.mounted == []


@pytest.mark.parametrize(
    "content", ["", "[]", '{"user": 5}', '{"pass": "secret"}', '{"user": "a\\nb"}', "[" * 9999]
)
def test_file_that_is_not_understood(content: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_credentials(stick(tmp_path, content))
    assert "not understood" in str(caught.value) and "secret" not in str(caught.value)


def test_file_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "imager").mkdir()
    (tmp_path / CREDENTIALS).symlink_to("/etc/passwd")
    with pytest.raises(ReadFailedError, match="on the stick"):
        read_credentials(tmp_path)
