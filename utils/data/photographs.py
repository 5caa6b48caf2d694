"""ImageNet: class folders of photographs, or made ones, and batches decoded by worker processes.

Specification section 8. The batches are used as those of ``utils.data.batches``.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from utils.data.batches import Normaliser, Testing, Training, test_shares, train_shares
from utils.data.class_folders import list_splits, listed
from utils.data.images import Images
from utils.data.normalisation import USUAL, Normalisation
from utils.data.pillow import open_image, to_rgb
from utils.data.sets import SUBSET_TEST, balanced_order
from utils.data.workers import Decoder, Pipeline, Request
from utils.errors import InputError
from utils.machine.seeding import ORDER, mixed_seed

SPLITS = ("train", "val")  # folders, section 8
TEST_BATCH = 100  # images, section 8
RESIZE = 256 / 224  # shorter side of a test image for each pixel of its crop, section 8

SYNTHETIC_TRAIN = 5000  # images without --subset
SYNTHETIC_CLASSES = 1000  # at most, section 8
SYNTHETIC_ASPECT = 4 / 3  # width / height
TILE = 4  # pixels a side of the pattern that a synthetic class repeats
REPEATS = (6, 8)  # of the pattern in an image, down and across
NOISE = 32.0  # standard deviation in pixel values, at the resolution of the pattern
TILES, TRAIN, TEST = range(3)  # what a seed of the synthetic images is for


@dataclass(frozen=True)
class Photographs(Images):
    """Image files, listed but not read."""

    files: np.ndarray  # bytes [N], one block of memory, which worker processes share
    folder: str  # of the split

    def listing(self) -> Iterator[bytes]:
        return listed(self.folder, [os.fsdecode(file) for file in self.files.tolist()])

    def image(self, index: int) -> Image.Image:
        file = os.fsdecode(self.files[index])
        with open_image(file) as image:
            image.load()
            return to_rgb(image, file)


@dataclass(frozen=True)
class Made(Images):
    """Synthetic images: each class has a pattern of a few coloured pixels, repeated; plus noise."""

    part: int  # TRAIN or TEST, whose noise differs

    def listing(self) -> Iterator[bytes]:
        yield b"made %d" % self.part

    def image(self, index: int) -> Image.Image:
        pattern = np.random.default_rng((TILES, int(self.labels[index])))
        tile = pattern.integers(0, 256, (TILE, TILE, 3))
        pixels = np.tile(tile, (*REPEATS, 1)).astype(np.float64)  # [24, 32, 3]
        pixels += np.random.default_rng((self.part, index)).normal(0, NOISE, pixels.shape)
        height = resized(self.image_size)
        small = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        return small.resize((round(SYNTHETIC_ASPECT * height), height))


def load_imagenet(
    root: str, image_size: int, subset: int | None = None
) -> tuple[Photographs, Photographs]:
    """``root``/train/<class>/* and ``root``/val/<class>/*, listed; labels are train's.

    ``subset``: the first ``subset`` training and a fifth as many test images of balanced_order,
    or all where there are fewer; the classes stay those of the folder. InputError naming what is
    missing, empty or unknown.
    """
    classes, listings = list_splits(Path(root).expanduser(), SPLITS)
    train, test = (
        Photographs(
            *(torch.tensor(listing.labels), classes, image_size),
            np.array([os.fsencode(file) for file in listing.files]),
            listing.folder,
        )
        for listing in listings
    )
    if subset is None:
        return train, test
    if subset < SUBSET_TEST:
        raise InputError(f"--subset {subset}: must be at least {SUBSET_TEST}, to test one image")
    return first_balanced(train, subset), first_balanced(test, subset // SUBSET_TEST)


def first_balanced(images: Photographs, count: int) -> Photographs:
    """The first ``count`` images, or all, of each class in turn."""
    index = balanced_order(images.labels)[:count]
    return replace(images, files=images.files[index.numpy()], labels=images.labels[index])


def make_synthetic(image_size: int, subset: int | None = None) -> tuple[Made, Made]:
    """``subset`` training and a fifth as many test images, which no file holds.

    1000 classes, or as many as have five training images and one to test each. InputError where
    that is less than two.
    """
    count = SYNTHETIC_TRAIN if subset is None else subset
    classes = min(SYNTHETIC_CLASSES, count // SUBSET_TEST)
    if classes < 2:
        raise InputError(f"--subset {subset}: must be at least {2 * SUBSET_TEST}, for two classes")
    names = tuple(f"{label:03}" for label in range(classes))
    train, test = (
        Made(torch.arange(images) % classes, names, image_size, part)
        for images, part in ((count, TRAIN), (count // SUBSET_TEST, TEST))
    )
    return train, test


def resized(image_size: int) -> int:
    """The shorter side of a test image before its centre is cropped, in pixels."""
    return round(RESIZE * image_size)


def train_transform(image_size: int) -> v2.Compose:
    """From an RGB image to uint8 [3, s, s]: a random crop, resized, and flipped at random.

    A tensor is resized faster than an image, to pixel values at most 1 away.
    """
    crop = v2.RandomResizedCrop(image_size)
    return v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip()])


def usual_test_batch(train_batch: int, device: torch.device) -> int:
    """Images of a test batch where no number is asked for; accuracy does not depend on it.

    With 100 images a GPU mostly waits for its next launch. It has the memory for a training batch,
    and evaluation, which keeps no activations, needs less.
    """
    return max(TEST_BATCH, train_batch) if device.type == "cuda" else TEST_BATCH


class TrainBatches(Training):
    """Batches of ``images`` in random order, each a random crop, resized, flipped at random.

    As ``utils.data.batches.TrainBatches``. ``workers``: processes that decode (0: this one), on
    which nothing depends; ``devices``: of each process; ``iter_size``: batches of a step.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        workers: int,
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
        devices: int = 1,
        iter_size: int = 1,
        normalisation: Normalisation = USUAL["imagenet"],
    ):
        self.shares = train_shares(len(images), batch_size, rank, world, devices, iter_size)
        self.count, self.seed = len(images), seed
        decoder = Decoder(images, train_transform(images.image_size), seed)
        self.pipeline = Pipeline(decoder, workers, device, Normaliser(device, normalisation))

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``first_batch``, … of an epoch: float32 [B, 3, s, s] and int64 [B].

        One epoch at a time. InputError naming the first image that is broken.
        """
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, ORDER, epoch))
        order = torch.randperm(self.count, generator=generator).numpy()
        return self.pipeline.batches(
            [Request(epoch, order[share.positions]) for share in self.shares[first_batch:]]
        )


class TestBatches(Testing):
    """Batches of ``images`` in order, resized and their centre cropped.

    As ``utils.data.batches.TestBatches``; ``workers``: processes that decode.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        workers: int,
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
        normalisation: Normalisation = USUAL["imagenet"],
    ):
        self.shares = test_shares(len(images), batch_size, rank, world)
        self.order = np.arange(len(images))
        size = images.image_size
        resize, crop = v2.Resize(resized(size)), v2.CenterCrop(size)
        cropped = v2.Compose([resize, crop, v2.PILToTensor()])
        decoder = Decoder(images, cropped, seed=0)  # draws nothing
        self.pipeline = Pipeline(decoder, workers, device, Normaliser(device, normalisation))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches float32 [B, 3, s, s] and int64 [B]; InputError naming a broken image."""
        return self.pipeline.batches([Request(0, self.order[taken]) for taken in self.shares])
