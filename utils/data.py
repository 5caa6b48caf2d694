"""CIFAR-size sets as uint8 tensors: torchvision's CIFAR, folders of images, and a made set.

Specification section 8. ``utils.batches`` makes batches of them.
"""

import hashlib
import io
import math
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from torchvision.datasets.utils import check_integrity

from utils.errors import InputError

IMAGE_SIZE = 32  # pixels a side, CIFAR's
FOLDER_IMAGE = f"RGB {IMAGE_SIZE}x{IMAGE_SIZE}"  # PIL mode and size of an image of `folder`
DECODE_CHUNK = 256  # images a decoding thread takes at a time; one by one costs half more
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


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, 3, 32, 32], labels int64 [N] on the same device, and the class names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "ImageSet":
        """The images at ``index``, int64 [n], in that order."""
        return ImageSet(self.images[index], self.labels[index], self.classes)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The set on ``device``."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)


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


def one_line(error: Exception) -> str:
    """The message of ``error`` without line breaks, its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


# --- folder


def load_folder(root: Path, workers: int) -> tuple[ImageSet, ImageSet]:
    """``root``/train/<class>/* and ``root``/test/<class>/*, RGB 32x32; labels are train's.

    InputError naming the folder or file that is missing, empty, broken or of another kind.
    """
    try:
        classes = class_folders(root, "train")
        return tuple(load_split(root, split, classes, workers) for split in ("train", "test"))
    except OSError as error:
        raise InputError(f"{error.filename or root}: {error.strerror or error}") from error


def class_folders(root: Path, split: str) -> tuple[str, ...]:
    """Names of the class folders of a split, sorted; InputError where there are none."""
    folder = root / split
    rule = f"--data {root} must hold train/<class>/* and test/<class>/*"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {rule}")
    try:
        names, _ = find_classes(folder)
    except FileNotFoundError:
        names = []
    classes = tuple(name for name in names if not name.startswith("."))
    if not classes:
        raise InputError(f"{folder}: no class folders in it; {rule}")
    return classes


def load_split(root: Path, split: str, classes: Sequence[str], workers: int) -> ImageSet:
    """One split, from its cache or decoded and then cached; ``classes`` decide the labels."""
    files, labels = list_images(root, split, classes)
    cache = root / f".nr-cache-{split}-{listing_key(root, files)}.npz"
    images = read_cache(cache, len(files))
    if images is None:
        images = decode_all(files, workers)
        write_cache(cache, images, split)
    return ImageSet(torch.from_numpy(images), torch.tensor(labels), tuple(classes))


def list_images(root: Path, split: str, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Files and labels, class after class; InputError for an empty or unknown class folder."""
    labels_of = {}
    for name in class_folders(root, split):
        if name not in classes:
            raise InputError(f"{root / split / name}: a class that {root / 'train'} does not have")
        labels_of[name] = classes.index(name)
    samples = make_dataset(root / split, labels_of, IMG_EXTENSIONS, allow_empty=True)
    found = {label for _, label in samples}
    for name, label in labels_of.items():
        if label not in found:
            types = " ".join(IMG_EXTENSIONS)
            raise InputError(f"{root / split / name}: no images ({types}) in this class folder")
    return [file for file, _ in samples], [label for _, label in samples]


def decode_all(files: Sequence[str], workers: int) -> np.ndarray:
    """All ``files``, uint8 [N, 3, 32, 32]; InputError for the first that is no 32x32 RGB."""
    images = np.empty((len(files), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)

    def fill(start: int) -> None:
        for index, file in enumerate(files[start : start + DECODE_CHUNK], start):
            images[index] = decode(file).transpose(2, 0, 1)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        list(pool.map(fill, range(0, len(files), DECODE_CHUNK)))
    return images


def decode(file: str) -> np.ndarray:
    """One image, uint8 [32, 32, 3]; InputError if it is broken, not RGB or of another size."""
    try:
        with Image.open(file) as image:
            found = f"{image.mode} {image.width}x{image.height}"
            if found == FOLDER_IMAGE:
                return np.asarray(image)
    except Exception as error:  # PIL has many kinds for a broken file, one for each format
        raise InputError(f"{file}: a broken image ({one_line(error)})") from error
    raise InputError(f"{file}: the image is {found}, must be {FOLDER_IMAGE}")


# --- the cache of a folder's decoded images


def listing_key(root: Path, files: Sequence[str]) -> str:
    """Changes with the path below ``root``, size or time of change of any of ``files``."""
    digest = hashlib.sha256()
    for file in files:
        status = os.stat(file)
        entry = f"{file.removeprefix(str(root))}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(os.fsencode(entry))
    return digest.hexdigest()[:16]


def read_cache(cache: Path, count: int) -> np.ndarray | None:
    """The cached images, uint8 [count, 3, 32, 32], or None; npz keeps a checksum of them."""
    try:
        with np.load(cache) as content:
            images = content["images"]
    except Exception:  # not there, or damaged: zipfile and numpy have many kinds for that
        return None
    right = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return images if images.shape == right and images.dtype == np.uint8 else None


def write_cache(cache: Path, images: np.ndarray, split: str) -> None:
    """Write ``cache`` whole or, where the folder cannot be written, not at all; drop older ones."""
    temporary = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}")
    with suppress(OSError):  # without a cache the next start decodes again
        try:
            with open(temporary, "xb") as file:
                np.savez(file, images=images)
            os.replace(temporary, cache)
        finally:
            temporary.unlink(missing_ok=True)
        for other in cache.parent.glob(f".nr-cache-{split}-*.npz"):
            if other != cache:
                other.unlink(missing_ok=True)


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
