"""Small photographs, their batches, and what torchvision makes of them."""

import os

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from utils.data import photographs
from utils.machine.seeding import ORDER, mixed_seed

SIZE = 16  # pixels a side of a crop in these tests
CLASSES = ("n01", "n02", "n03")
TRAIN, TEST = (5, 4, 3), (2, 2, 1)  # images of each class


def shape_of(seed: int) -> tuple[int, int]:
    """Height and width of an image: upright, wide, smaller than the crop."""
    return ((40, 30), (20, 45), (9, 12), (24, 24))[seed % 4]


def train_batches(images, workers=0, batch_size=4, seed=3, **share) -> photographs.TrainBatches:
    return photographs.TrainBatches(images, batch_size, seed, workers, "cpu", **share)


def test_batches(images, workers=0, batch_size=2, **share) -> photographs.TestBatches:
    return photographs.TestBatches(images, batch_size, workers, "cpu", **share)


test_batches.__test__ = False  # a helper, whatever pytest makes of its name


def same(first, second) -> bool:
    """Whether two series of batches are bit-equal."""
    pairs = list(zip(list(first), list(second), strict=True))
    assert pairs
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def normalised(image: Image.Image) -> Tensor:
    """As torchvision does it: float32 [3, H, W]."""
    values = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return transforms.Normalize(*values)(transforms.ToTensor()(image))


def opened(images: photographs.Photographs, index: int) -> Image.Image:
    with Image.open(os.fsdecode(images.files[index])) as image:
        return image.convert("RGB")


class Never:
    """A stop request that never comes."""

    signum = 0

    def agreed(self) -> int:
        return 0

    agreed_now = agreed


def order_of(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, ORDER, epoch))
    return torch.randperm(count, generator=generator).tolist()
