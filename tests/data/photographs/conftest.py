"""A folder of small photographs, and both parts of it."""

import gc
from pathlib import Path

import pytest

from tests.data.photographs.sets import CLASSES, SIZE, TEST, TRAIN, shape_of
from tests.image_files import pixels_of, write
from utils.data import photographs


@pytest.fixture(autouse=True)
def nothing_left_over() -> None:
    """Or a worker, which is a fork, might be what collects and shuts down an earlier test's."""
    gc.collect()


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of three classes, lossless."""
    seed = 0
    for split, counts in (("train", TRAIN), ("val", TEST)):
        for name, count in zip(CLASSES, counts, strict=True):
            for index in range(count):
                write(tmp_path / split / name / f"{index}.png", pixels_of(seed, *shape_of(seed)))
                seed += 1
    return tmp_path


@pytest.fixture
def train(root) -> photographs.Photographs:
    return photographs.load_imagenet(str(root), SIZE)[0]


@pytest.fixture
def test(root) -> photographs.Photographs:
    return photographs.load_imagenet(str(root), SIZE)[1]
