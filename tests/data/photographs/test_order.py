"""data.photographs: order and crops as functions of seed and epoch, whoever decodes."""

import random

import numpy as np
import pytest
import torch

from tests.data.photographs.sets import (
    SIZE,
    TRAIN,
    order_of,
    same,
    test_batches,
    train_batches,
)
from tests.image_files import message, pixels_of, write
from utils.data import photographs


def test_epochs_repeat_and_differ(train):
    first = list(train_batches(train).epoch(0))
    again = train_batches(train)
    list(again.epoch(1))
    assert same(first, again.epoch(0))
    for other in (again.epoch(1), train_batches(train, seed=4).epoch(0)):
        (a, labels_a), (b, labels_b) = (
            map(torch.cat, zip(*s, strict=True)) for s in (first, other)
        )
        assert not torch.equal(labels_a, labels_b) and not torch.equal(a, b)
        assert labels_a.bincount().tolist() == labels_b.bincount().tolist() == list(TRAIN)


def test_an_image_is_cropped_anew_in_each_epoch(train):
    decoder = photographs.Decoder(train, photographs.train_transform(SIZE), seed=3)
    crops = [decoder.decode(epoch, 6) for epoch in range(4)]
    assert len({crop.numpy().tobytes() for crop in crops}) == 4
    assert torch.equal(decoder.decode(2, 6), crops[2])
    assert not torch.equal(replace_seed(decoder, 4).decode(2, 6), crops[2])


def replace_seed(decoder: photographs.Decoder, seed: int) -> photographs.Decoder:
    return photographs.Decoder(decoder.images, decoder.transform, seed)


def test_images_with_the_same_pixels_are_cropped_differently(tmp_path):
    for index in range(8):
        write(tmp_path / f"train/a/{index}.png", pixels_of(0))
    for folder in ("train/b", "val/a"):
        write(tmp_path / folder / "0.png", pixels_of(0))
    train, _ = photographs.load_imagenet(str(tmp_path), SIZE)
    ((pixels, _),) = train_batches(train, batch_size=9).epoch(0)
    assert len({image.numpy().tobytes() for image in pixels}) == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_the_batches_do_not_depend_on_the_workers(train, test, workers):
    alone, helped = train_batches(train), train_batches(train, workers)
    for epoch in (0, 3, 1):
        assert same(alone.epoch(epoch), helped.epoch(epoch))
    assert same(test_batches(test), test_batches(test, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_neither_read_nor_moved(train, test, workers):
    def states() -> list:
        return [
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
        ]

    found = []
    for seed in (1, 2):
        for generator in (torch.manual_seed, np.random.seed, random.seed):
            generator(seed)
        before = states()
        parts = train_batches(train, workers), test_batches(test, workers)
        found.append([*parts[0].epoch(0), *parts[0].epoch(1), *parts[1]])
        assert states() == before
    assert same(*found)


def test_the_generator_is_put_back_after_a_broken_image(train, root):
    (root / "train/n01/0.png").write_bytes(b"broken")
    before = torch.get_rng_state()
    message(list, train_batches(train).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_stopped(train, workers):
    series = train_batches(train, workers, batch_size=3)
    whole = list(series.epoch(2))
    assert len(whole) == len(series) == 4
    for first in range(4):
        assert same(whole[first:], series.epoch(2, first_batch=first))
    assert list(series.epoch(2, first_batch=4)) == []


def test_earlier_batches_are_not_decoded(train, monkeypatch):
    seen = []
    image = photographs.Photographs.image
    monkeypatch.setattr(
        photographs.Photographs, "image", lambda self, i: seen.append(i) or image(self, i)
    )
    list(train_batches(train).epoch(1, first_batch=2))
    assert seen == order_of(12, 3, 1)[8:]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_given_up_leaves_nothing_to_the_next(train, workers):
    series = train_batches(train, workers, batch_size=2)
    wanted = list(series.epoch(1))
    for taken in (1, 3):
        given_up = series.epoch(0)
        for _ in range(taken):
            next(given_up)
        assert same(wanted, series.epoch(1))
