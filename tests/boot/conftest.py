"""What the boot tests share, made once."""

from __future__ import annotations

import pytest

from tests.boot.lab import Lab, make_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The guest's image on a disk; its own disk is gone."""
    return make_lab(tmp_path_factory.mktemp("lab"))
