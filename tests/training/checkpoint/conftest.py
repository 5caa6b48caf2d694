"""A path, and a small checkpoint's bytes."""

import pytest

from tests.training.checkpoint.payloads import small
from utils.training import checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth.tar"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> bytes:
    """The bytes of a small checkpoint."""
    path = tmp_path_factory.mktemp("sealed") / "checkpoint.pth.tar"
    checkpoint.save(path, small())
    return path.read_bytes()
