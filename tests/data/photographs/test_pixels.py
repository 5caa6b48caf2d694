"""data.photographs: the pixels are those of torchvision's pipelines."""

import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from tests import real
from tests.data.photographs.sets import (
    SIZE,
    normalised,
    opened,
    order_of,
    same,
    test_batches,
    train_batches,
)
from tests.image_files import write
from utils.data import photographs
from utils.data.normalisation import USUAL
from utils.machine.seeding import ORDER, mixed_seed

LEVEL = 1 / 255 / min(USUAL["imagenet"].std)  # one pixel value, after normalisation


@pytest.mark.parametrize("size", [16, 21, 32])
def test_test_images_are_the_standard_pipelines(test, size):
    found = list(test_batches(replace(test, image_size=size)))
    assert [len(labels) for _, labels in found] == [2, 2, 1]
    assert torch.cat([labels for _, labels in found]).tolist() == test.labels.tolist()
    standard = transforms.Compose(
        [transforms.Resize(round(256 / 224 * size)), transforms.CenterCrop(size)]
    )
    pixels = torch.cat([pixels for pixels, _ in found])
    assert pixels.shape == (5, 3, size, size) and pixels.is_contiguous()
    wanted = torch.stack([normalised(standard(opened(test, index))) for index in range(5)])
    torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-5)


def test_the_usual_size_is_cropped_from_256():
    assert photographs.resized(224) == 256


def test_training_images_are_the_standard_pipelines(train):
    standard = transforms.Compose(
        [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
    )
    for epoch in (0, 5):
        pixels, labels = map(torch.cat, zip(*train_batches(train).epoch(epoch), strict=True))
        order = order_of(12, 3, epoch)
        assert labels.tolist() == train.labels[order].tolist()
        for position, index in enumerate(order):
            torch.manual_seed(mixed_seed(3, ORDER, epoch, index + 1))
            wanted = normalised(standard(opened(train, index)))
            torch.testing.assert_close(pixels[position], wanted, rtol=0, atol=1.01 * LEVEL)


def test_crops_and_flips_vary(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 60, 3))
    for index in range(200):
        write(tmp_path / f"train/a/{index:03}.png", ramp)
    for folder in ("train/b", "val/a"):
        write(tmp_path / folder / "0.png", ramp)
    train, _ = photographs.load_imagenet(str(tmp_path), SIZE)
    ((pixels, _),) = train_batches(train, batch_size=201).epoch(0)
    slope = (pixels[:, 0, :, -1] - pixels[:, 0, :, 0]).mean(1)  # [N], negative where flipped
    assert 70 < (slope < 0).sum() < 130
    assert slope.abs().max() > 2 * slope.abs().min()
    assert len(slope.abs().unique()) > 30


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "LA"])
def test_other_modes_become_rgb(root, mode):
    suffix = "jpg" if mode in ("L", "CMYK") else "png"
    file = root / f"train/n01/_.{suffix}"
    plain = np.full((30, 40, 3), 255, np.uint8)
    Image.fromarray(plain).convert(mode).save(file)
    train, _ = photographs.load_imagenet(str(root), SIZE)
    found = [os.fsdecode(name) for name in train.files].index(str(file))
    image = train.image(found)
    assert image.mode == "RGB" and image.size == (40, 30)
    assert np.asarray(image).min() >= 254
    decoder = photographs.Decoder(train, photographs.train_transform(SIZE), 0)
    pixels = decoder[photographs.Request(0, np.array([found]))]
    assert pixels.shape == (1, 3, SIZE, SIZE) and pixels.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_the_same_on_a_gpu(train, test, workers):
    pairs = [
        (
            train_batches(train).epoch(1),
            photographs.TrainBatches(train, 4, 3, workers, "cuda").epoch(1),
        ),
        (test_batches(test), photographs.TestBatches(test, 2, workers, "cuda")),
    ]
    for host, device in pairs:
        for (pixels, labels), (there, labels_there) in zip(host, device, strict=True):
            assert there.is_cuda and torch.equal(labels, labels_there.cpu())
            torch.testing.assert_close(there.cpu(), pixels, rtol=0, atol=1e-5)


@real.needs(real.PHOTOGRAPHS)
def test_real_photographs(tmp_path):
    with tarfile.open(real.archive(real.PHOTOGRAPHS)) as archive:
        files = [member for member in archive if member.isfile()][:12]
        archive.extractall(tmp_path, files, filter="data")
    (tmp_path / "train").symlink_to(tmp_path / "val")
    train, test = photographs.load_imagenet(str(tmp_path), 224)
    assert len(train) == len(test) == len(train.classes) == 12
    assert same(train_batches(train).epoch(0), train_batches(train, workers=2).epoch(0))
    standard = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    pixels = torch.cat([pixels for pixels, _ in test_batches(test, workers=1)])
    wanted = torch.stack([normalised(standard(opened(test, index))) for index in range(12)])
    torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-5)
    assert 0.5 < pixels.std() < 2
