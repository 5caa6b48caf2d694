"""CIFAR-size sets as uint8 tensors: torchvision's CIFAR, folders of images, and a made set.

Specification section 8. ``utils.data.batches`` makes batches of them.
"""

from pathlib import Path

import torch
from torch import Tensor

from utils.data import synthetic
from utils.data.images import ImageSet, seeded
from utils.errors import InputError

SUBSET_TEST = 5  # training images of --subset for each of its test images, section 8
SUBSET_SEED = 0  # of the order --subset takes images in, the same in every run


def load_cifar(
    dataset: str,
    root: str,
    device: torch.device | str,
    subset: int | None = None,
    workers: int = 4,
) -> tuple[ImageSet, ImageSet]:
    """Training and test images of ``dataset`` on ``device``; ``workers``: decoding threads.

    ``dataset``: cifar10, cifar100, folder or synthetic. The first two are fetched into ``root``,
    ``folder`` keeps a cache there: of several processes let one load first. ``subset``: see
    take_subset. InputError for data that are missing, broken or of another kind.
    """
    folder = Path(root).expanduser()
    # torchvision takes two seconds to import, so only where it is needed.
    if dataset == "folder":
        from utils.data.class_folders import load_folder

        train, test = load_folder(folder, workers)
    elif dataset == "synthetic":
        counts = (synthetic.TRAIN, synthetic.TEST)
        train, test = map(synthetic.make_synthetic, counts, synthetic.SEEDS)
    else:
        from utils.data import torchvision_cifar

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
        classes = f"for each of the {len(train.classes)} classes to be tested"
        raise InputError(f"--subset {subset}: must be at least {least}, {classes}")
    if subset > len(train) or wanted > len(test):
        asked = f"asks for {subset} training and {wanted} test images"
        raise InputError(f"--subset {subset}: {asked}, there are {len(train)} and {len(test)}")
    first, others = balanced_order(train.labels)[:subset], balanced_order(test.labels)[:wanted]
    return train.take(first), test.take(others)


def balanced_order(labels: Tensor) -> Tensor:
    """A fixed order, int64 [N]: shuffled inside each class, then one of each class in turn."""
    shuffled = torch.randperm(len(labels), generator=seeded(SUBSET_SEED))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]  # [N], class after class
    counts = labels.bincount()  # [classes]
    starts = counts.cumsum(0) - counts
    turns = torch.arange(len(labels)) - starts[labels[grouped]]  # [N], 0, 1, … in each class
    return grouped[turns.argsort(stable=True)]
