"""data.photographs: several processes share the batches; the engine trains on them."""

from dataclasses import replace

import pytest
import torch

from nr import SGD
from tests.data.photographs.sets import SIZE, Never, same, test_batches, train_batches
from tests.helpers import tiny, vary
from tests.image_files import message
from utils.data import photographs
from utils.training import engine


def joined(parts: list) -> list:
    """The batches of several processes put together, batch by batch."""
    return [list(map(torch.cat, zip(*ranks, strict=True))) for ranks in zip(*parts, strict=True)]


@pytest.mark.parametrize("world", [2, 3])
def test_the_processes_share_the_batches_of_one(train, test, world):
    ranks = [{"rank": rank, "world": world} for rank in range(world)]
    parts = [train_batches(train, batch_size=6, **rank) for rank in ranks]
    assert same(train_batches(train, batch_size=6).epoch(1), joined([p.epoch(1) for p in parts]))
    assert same(
        train_batches(train, batch_size=6).epoch(1, first_batch=1),
        joined([part.epoch(1, first_batch=1) for part in parts]),
    )
    parts = [test_batches(test, batch_size=5, **rank) for rank in ranks]
    assert same(test_batches(test, batch_size=5), joined(parts))


def test_the_usual_test_batch_is_as_large_as_the_memory_is_known_to_allow():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    usual = photographs.usual_test_batch
    assert [usual(batch, cpu) for batch in (16, 256)] == [100, 100]
    assert [usual(batch, gpu) for batch in (16, 256)] == [100, 256]


def test_the_accuracy_does_not_depend_on_the_test_batch():
    _, test = photographs.make_synthetic(SIZE, 120)
    model = vary(tiny(classes=len(test.classes)))
    found = [
        engine.evaluate(model, test_batches(test, batch_size=size), False, Never())
        for size in (5, 7, 24)
    ]
    assert len({(figures.top1, figures.top5) for figures in found}) == 1
    assert all(f.loss == pytest.approx(found[0].loss, rel=1e-6) for f in found)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_test_image_goes_to_one_process(test, world):
    images = replace(test, labels=torch.arange(5))
    parts = [test_batches(images, batch_size=4, rank=rank, world=world) for rank in range(world)]
    found = [[labels.tolist() for _, labels in part] for part in parts]
    assert [len(part) for part in parts] == [len(part) for part in found]
    assert sorted(label for part in found for labels in part for label in labels) == list(range(5))


@pytest.mark.parametrize(("batch_size", "sizes"), [(12, [12]), (5, [5, 5, 2]), (11, [11])])
def test_a_last_batch_of_one_image_is_left_out(train, batch_size, sizes):
    series = train_batches(train, batch_size=batch_size)
    assert [len(labels) for _, labels in series.epoch(0)] == sizes
    assert len(series) == len(sizes)


def test_too_few_images_and_too_small_batches(train, test):
    one = photographs.first_balanced(train, 1)
    text = message(train_batches, one)
    assert text == "1 training images: a batch on 1 process(es) of 1 device(s) needs at least 2"
    share = {"batch_size": 2, "rank": 0, "world": 3}
    assert message(train_batches, train, **share).startswith("--train-batch 2: must be at least 3")
    assert message(test_batches, test, **share).startswith("--test-batch 2: must be at least 3")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_may_have_no_image_of_a_batch(train, workers):
    """12 images in batches of 5: one process of three has none of the last two."""
    shares = [train_batches(train, workers, 5, rank=rank, world=3) for rank in range(3)]
    parts = [list(part.epoch(0)) for part in shares]
    sizes = [[len(labels) for _, labels in part] for part in parts]
    assert sizes == [[1, 1, 0], [2, 2, 1], [2, 2, 1]]
    assert parts[0][2][0].shape == (0, 3, SIZE, SIZE)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_engine_trains_and_evaluates_on_them(workers):
    train, test = photographs.make_synthetic(SIZE, 20)
    model = tiny(classes=len(train.classes))
    optimizer = SGD(model, 0.1, momentum=0.9, weight_decay=0.0)
    series = train_batches(train, workers)
    sums = engine.train_epoch(model, series, 0, optimizer, False, Never())
    again = engine.train_epoch(model, series, 0, optimizer, False, Never(), sums[:3])
    assert sums[:, 0].tolist() == again[:, 0].tolist() == [4] * 5
    figures = engine.evaluate(model, test_batches(test, workers), False, Never())
    assert 0 < figures.loss < 10
