"""What several test modules share, made once."""

from __future__ import annotations

import pytest

from tests.small_disk import Small, make_small


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small disk and its image; not to be changed."""
    return make_small(tmp_path_factory.mktemp("small"))
