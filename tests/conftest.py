"""What several test modules share, made once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from imager.disk import mapper
from imager.rescue import media
from tests.fake_mapper import Kernel
from tests.small_disk import Small, make_small

# A shell that starts the tests in the background has them ignore it, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small disk and its image; not to be changed."""
    return make_small(tmp_path_factory.mktemp("small"))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The kernel's device-mapper, stood in for."""
    made = Kernel()
    monkeypatch.setattr("imager.disk.mapper.fcntl.ioctl", made.ioctl)
    monkeypatch.setattr(mapper, "_CONTROL", "/dev/null")
    return made


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes are mounted below the test's own folder: other tests may be running."""
    monkeypatch.setattr(media, "STATE", tmp_path / "run")
