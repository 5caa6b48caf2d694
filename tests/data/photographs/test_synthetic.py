"""data.photographs: made images."""

import torch
from torch import Tensor

from tests.data.photographs.sets import SIZE, same, test_batches, train_batches
from tests.image_files import message
from utils.data import photographs


def test_synthetic_has_a_thousand_classes_where_it_can():
    for subset, count, classes in ((None, 5000, 1000), (10000, 10000, 1000), (64, 64, 12)):
        train, test = photographs.make_synthetic(SIZE, subset)
        assert (len(train), len(test)) == (count, count // 5)
        assert len(train.classes) == len(set(train.classes)) == classes
        assert train.classes == test.classes
        for part in (train, test):
            counts = part.labels.bincount()
            assert len(counts) == classes and counts.max() - counts.min() <= 1


def test_too_small_a_synthetic_set():
    assert photographs.make_synthetic(SIZE, 10)[0].classes == ("000", "001")
    text = message(photographs.make_synthetic, SIZE, 9)
    assert text.startswith("--subset 9: must be at least 10")


def test_synthetic_is_the_same_every_time():
    first, second = (photographs.make_synthetic(SIZE, 20) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert same(test_batches(a), test_batches(b))
    images = [part.image(index).tobytes() for part in first for index in range(len(part))]
    assert len(set(images)) == 24
    assert first[0].image(0).mode == "RGB" and first[0].image(0).size == (24, 18)


def test_synthetic_does_not_depend_on_the_workers():
    train, _ = photographs.make_synthetic(SIZE, 20)
    assert same(train_batches(train).epoch(0), train_batches(train, workers=2).epoch(0))


def features(series) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each colour of each image, [N, 6], and the labels."""
    pixels, labels = map(torch.cat, zip(*series, strict=True))
    return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], 1), labels


def test_synthetic_can_be_learned():
    train, test = photographs.make_synthetic(32, 400)
    classes = len(train.classes)
    assert classes == 80
    seen, labels = features(train_batches(train, batch_size=100).epoch(0))
    centres = torch.stack([seen[labels == label].mean(0) for label in range(classes)])
    unseen, wanted = features(test_batches(test, batch_size=80))
    found = torch.cdist(unseen, centres).argmin(1)
    assert (found == wanted).float().mean() > 0.3  # 0.0125 by chance
