"""CIFAR-size sets as uint8 tensors: torchvision's CIFAR, folders of images, and a made set.

Specification section 8. ``utils.batches`` makes batches of them.
"""

import io
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from utils.errors import InputError, one_line
from utils.folder import load_folder
from utils.images import IMAGE_SIZE, ImageSet

NETWORK_TIMEOUT = 30.0  # seconds without an answer before a download is given up
TORCHVISION = {"cifar10": CIFAR10, "cifar100": CIFAR100}

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
    if dataset == "folder":
        train, test = load_folder(folder, workers)
    elif dataset == "synthetic":
        counts = (SYNTHETIC_TRAIN, SYNTHETIC_TEST)
        train, test = map(make_synthetic, counts, SYNTHETIC_SEEDS)
    else:
        train, test = load_torchvision(TORCHVISION[dataset], folder)
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


# --- cifar10, cifar100


def load_torchvision(kind: type[CIFAR10], root: Path) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a torchvision CIFAR class, fetched into ``root`` if not there.

    InputError, which says what to put where, if they cannot be fetched or unpacked.
    """
    if not (root / kind.base_folder).is_dir():
        print(f"Fetching {kind.filename} into {root}", flush=True)
    try:
        with quiet_network():
            loaded = [kind(root, train=train, download=True) for train in (True, False)]
    except Exception as error:  # of the network, the file system, tar, gzip and torchvision
        archive = root / kind.filename
        if not archive.exists():
            problem = "is not there and cannot be downloaded"
        elif not check_integrity(archive, kind.tgz_md5):
            problem = "is damaged and cannot be downloaded"
        else:
            problem = "cannot be unpacked"
        raise InputError(
            f"{archive} {problem} ({one_line(error)}): "
            f"fetch {kind.url} (md5 {kind.tgz_md5}) and put it in {root}"
        ) from error
    train, test = (
        ImageSet(
            torch.from_numpy(part.data.transpose(0, 3, 1, 2).copy()),  # from [N, 32, 32, 3]
            torch.tensor(part.targets),
            tuple(part.classes),
        )
        for part in loaded
    )
    return train, test


@contextmanager
def quiet_network() -> Iterator[None]:
    """Nothing on the screen (torchvision draws a bar), and no endless wait for an answer."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout)


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
