"""CIFAR-size sets as uint8 tensors: torchvision's CIFAR, folders of images, and a made set.

Specification section 8. ``utils.batches`` makes batches of them.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import InputError
from utils.images import IMAGE_SIZE, ImageSet

SUBSET_TEST = 5  # training images of --subset for each of its test images, section 8
SUBSET_SEED = 0  # of the order --subset takes images in, the same in every run

SYNTHETIC_TRAIN, SYNTHETIC_TEST = 5000, 1000  # images
SYNTHETIC_SEEDS = (1, 2)  # of the training and the test images, the same in every run
WAVELENGTHS = (3.0, 4.5, 6.5, 9.5, 14.0)  # pixels, of the synthetic stripes
STRIPE_AMPLITUDE = (24.0, 48.0)  # least and largest, in pixel values of 0..255
BACKGROUND, NOISE = 32.0, 32.0  # standard deviations in pixel values
BACKGROUND_SIZE = 4  # random values a side that the smooth background interpolates


def load_cifar(
    dataset: str,
    root: str,
    device: torch.device | str,
    subset: int | None = None,
    workers: int = 4,
) -> tuple[ImageSet, ImageSet]:
    """Training and test images of ``dataset`` on ``device``; ``workers``: decoding threads.

    ``dataset``: cifar10, cifar100, folder or synthetic. The first two are fetched into ``root``
    and ``folder`` keeps a cache there, so of several processes let one load first. ``subset``:
    see take_subset. InputError for what a user can put right: data missing, broken or of another
    kind, a ``subset`` that cannot be had.
    """
    folder = Path(root).expanduser()
    # torchvision takes two seconds to import, so only where it is needed.
    if dataset == "folder":
        from utils.folder import load_folder

        train, test = load_folder(folder, workers)
    elif dataset == "synthetic":
        counts = (SYNTHETIC_TRAIN, SYNTHETIC_TEST)
        train, test = map(make_synthetic, counts, SYNTHETIC_SEEDS)
    else:
        from utils import torchvision_cifar

        train, test = torchvision_cifar.load(torchvision_cifar.KINDS[dataset], folder)
    if subset is not None:
        train, test = take_subset(train, test, subset)
    return train.to(device), test.to(device)


def take_subset(train: ImageSet, test: ImageSet, subset: int) -> tuple[ImageSet, ImageSet]:
    """The first ``subset`` training and a fifth as many test images in balanced order.

    InputError where there are fewer, or where a class would be left out.
    """
    least, wanted = SUBSET_TEST * len(train.classes), subset // SUBSET_TEST
    if subset < least:
        raise InputError(
            f"--subset {subset}: must be at least {least}, "
            f"for each of the {len(train.classes)} classes to be tested"
        )
    if subset > len(train) or wanted > len(test):
        raise InputError(
            f"--subset {subset}: asks for {subset} training and {wanted} test images, "
            f"there are {len(train)} and {len(test)}"
        )
    return (
        train.take(balanced_order(train.labels)[:subset]),
        test.take(balanced_order(test.labels)[:wanted]),
    )


def balanced_order(labels: Tensor) -> Tensor:
    """A fixed order, int64 [N]: shuffled inside each class, then one of each class in turn."""
    shuffled = torch.randperm(len(labels), generator=seeded(SUBSET_SEED))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]  # [N], class after class
    counts = labels.bincount()  # [classes]
    starts = counts.cumsum(0) - counts
    turns = torch.arange(len(labels)) - starts[labels[grouped]]  # [N], 0, 1, … in each class
    return grouped[turns.argsort(stable=True)]


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of its own, so the global one is neither read nor moved."""
    return torch.Generator().manual_seed(seed)


# --- synthetic


def make_synthetic(count: int, seed: int) -> ImageSet:
    """Stripes, horizontal or vertical, of five wavelengths: ten classes, all equally large.

    Phase, colour, amplitude, background and noise are random, so no pixel tells a class, and
    neither flipping nor shifting an image changes its class.
    """
    generator = seeded(seed)
    wavelengths = torch.tensor(WAVELENGTHS)
    labels = torch.arange(count) % (2 * len(WAVELENGTHS))
    phase = torch.rand(count, 1, generator=generator)  # turns
    turns = torch.arange(IMAGE_SIZE) / wavelengths[labels % len(WAVELENGTHS), None] + phase
    wave = (2 * math.pi * turns).sin()  # [N, 32]
    vertical = (labels >= len(WAVELENGTHS))[:, None, None, None]
    stripes = torch.where(vertical, wave[:, None, None, :], wave[:, None, :, None])
    colour = F.normalize(torch.randn(count, 3, 1, 1, generator=generator))
    least, largest = STRIPE_AMPLITUDE
    amplitude = least + (largest - least) * torch.rand(count, 1, 1, 1, generator=generator)
    coarse = torch.randn(count, 3, BACKGROUND_SIZE, BACKGROUND_SIZE, generator=generator)
    images = F.interpolate(BACKGROUND * coarse + 128, size=IMAGE_SIZE, mode="bilinear")
    images.addcmul_(stripes, colour * amplitude)  # [N, 3, 32, 32]
    images.add_(torch.randn(images.shape, generator=generator), alpha=NOISE)
    names = [f"{way}-{size:g}" for way in ("horizontal", "vertical") for size in WAVELENGTHS]
    return ImageSet(images.clamp_(0, 255).to(torch.uint8), labels, tuple(names))
