"""Real images, which are not in the repository: from the folder that NR_TEST_DATA names."""

import os
from pathlib import Path

import pytest

VARIABLE = "NR_TEST_DATA"
CIFAR, PHOTOGRAPHS = "cifar10-jpeg.tar.xz", "imagenet-sample.tar"  # tests/README.md has the layout


def archive(name: str) -> Path | None:
    """The archive ``name`` in the folder of real images, or None where it is not there."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder or ".", name)
    return path if folder and path.is_file() else None


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where the archive ``name`` is not there."""
    there = os.environ.get(VARIABLE)
    reason = f"{VARIABLE}={there}: no {name} in it" if there else f"{VARIABLE} names no folder"
    return pytest.mark.skipif(archive(name) is None, reason=f"{reason}: tests/README.md")
