"""Batches of a CIFAR-size set, augmented and normalised on the device that holds it."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.data.images import IMAGE_SIZE, ImageSet
from utils.data.normalisation import USUAL, Normalisation
from utils.errors import InputError
from utils.machine.seeding import ORDER, mixed_seed

PAD = 4  # black pixels put on each side before the random crop, section 8
MIN_SHARE = 2  # images of a device: batch norm needs more than one


class Draws(NamedTuple):
    """What is random in an epoch, in the order of training: each int64 or bool [N]."""

    order: Tensor  # index of the image
    top: Tensor  # first row of the crop in the padded image, 0..8
    left: Tensor  # first column
    flip: Tensor  # bool


def draw_epoch(count: int, seed: int, epoch: int) -> Draws:
    """The order and augmentation of ``count`` images: a pure function of its arguments."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, ORDER, epoch))
    order = torch.randperm(count, generator=generator)
    top, left = torch.randint(2 * PAD + 1, (2, count), generator=generator)
    flip = torch.rand(count, generator=generator) < 0.5
    return Draws(order, top, left, flip)


class Share(NamedTuple):
    """What one process takes of a batch."""

    positions: slice  # in the order of the epoch
    weight: float  # of its mean loss: a step's sum, averaged over processes, is a mean of images
    steps: bool = True  # whether the optimizer steps after it


def shares(count: int, batch_size: int, rank: int, world: int) -> list[Share]:
    """What process ``rank`` of ``world`` takes of each batch of ``batch_size``.

    ``count`` images are cut in batches, and each batch in ``world`` nearly equal stretches.
    """
    taken = []
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        begin, end = (start + size * part // world for part in (rank, rank + 1))
        taken.append(Share(slice(begin, end), (end - begin) * world / size))
    return taken


def train_shares(
    count: int, batch_size: int, rank: int, world: int, devices: int = 1, iter_size: int = 1
) -> list[Share]:
    """``shares`` without a last batch that has less than 2 images for each of ``devices``.

    ``devices``: those of one process. Batch norm is over all processes, so the batches are the
    same for any ``world``, and some processes may have no image of the last one. ``iter_size``:
    batches of a step, weighed as one batch of all their images; the last step of an epoch may have
    fewer. InputError if no batch is left, if a batch is smaller than ``world``, or if its cut
    leaves less than 2 images for one of several devices.
    """
    check_batch("--train-batch", batch_size, world)
    least = smallest_part(batch_size, devices)
    if devices > 1 and least < MIN_SHARE:
        raise InputError(
            f"--train-batch {batch_size}: leaves {least} image(s) for the last of {devices} GPUs,"
            f" where batch norm needs {MIN_SHARE}; {even(batch_size, devices)} would do, a multiple"
            " of the GPUs"
        )
    last = count % batch_size
    kept = count if smallest_part(last, devices) >= MIN_SHARE else count - last
    if kept == 0:
        raise InputError(
            f"{count} training images: a batch on {world} process(es) of {devices} device(s) needs"
            f" at least {min(batch_size, even(count, devices))}"
        )
    sizes = [min(batch_size, kept - start) for start in range(0, kept, batch_size)]
    return grouped(shares(kept, batch_size, rank, world), sizes, iter_size)


def grouped(taken: list[Share], sizes: list[int], iter_size: int) -> list[Share]:
    """Shares of batches of these ``sizes``; each ``iter_size`` in a row make one step."""
    weighed = []
    for start in range(0, len(taken), iter_size):
        end = min(start + iter_size, len(taken))
        images = sum(sizes[start:end])
        for number in range(start, end):
            weight = taken[number].weight * (sizes[number] / images)
            weighed.append(taken[number]._replace(weight=weight, steps=number == end - 1))
    return weighed


def smallest_part(size: int, devices: int) -> int:
    """Images of the last device where nn.DataParallel cuts ``size`` of them, as torch.chunk does.

    The others have ceil(size / devices) while there are images: of 15 on 8 devices 7 have 2 and
    one has 1; of 18 6 have 3 and 2 have none.
    """
    chunk = -(-size // devices)
    return max(0, size - chunk * (devices - 1))


def even(size: int, parts: int) -> int:
    """``size``, or the next larger number that leaves the same in each of ``parts``, 2 at least."""
    return max(MIN_SHARE, -(-size // parts)) * parts


def test_shares(count: int, batch_size: int, rank: int, world: int) -> list[slice]:
    """Positions in ``shares`` with an image; InputError if a batch is smaller than ``world``."""
    check_batch("--test-batch", batch_size, world)
    positions = [share.positions for share in shares(count, batch_size, rank, world)]
    return [taken for taken in positions if taken.start < taken.stop]


def check_batch(flag: str, batch_size: int, world: int) -> None:
    """InputError where a batch does not have an image for each of ``world`` processes."""
    if batch_size < world:
        raise InputError(f"{flag} {batch_size}: must be at least {world}, one for each process")


class Normaliser:
    """Pixels uint8 [B, 3, H, W] to float32 (pixels / 255 - mean) / std, on ``device``."""

    def __init__(self, device: torch.device | str, by: Normalisation):
        self.mean, self.std = (torch.tensor(values, device=device)[:, None, None] for values in by)

    def __call__(self, pixels: Tensor) -> Tensor:
        copied = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return copied.div_(255).sub_(self.mean).div_(self.std)


class Training(Protocol):
    """Batches to train on, of an epoch from ``first_batch``: float32 [B, 3, H, W], int64 [B]."""

    shares: list[Share]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.shares)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


class Testing(Protocol):
    """Batches to evaluate on: float32 [B, 3, H, W] and int64 [B]; ``shares``: of this process."""

    shares: list[slice]

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class TrainBatches(Training):
    """Batches of ``images`` in random order: padded by 4, cropped to 32, flipped at random.

    Order and augmentation depend on ``seed`` and the epoch alone. ``batch_size`` is the total
    of ``world`` processes, of which this is ``rank``. Shares and InputErrors as of
    ``train_shares``.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        devices: int = 1,
        normalisation: Normalisation = USUAL["cifar"],
    ):
        self.shares = train_shares(len(images), batch_size, rank, world, devices)
        self.images, self.seed = images, seed
        self.normalise = Normaliser(images.images.device, normalisation)
        padded = F.pad(images.images, (PAD,) * 4)  # [N, 3, 40, 40]
        # Every crop of every image, as a view: [N, 3, top, left, 32, 32].
        self.windows = padded.unfold(2, IMAGE_SIZE, 1).unfold(3, IMAGE_SIZE, 1)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``first_batch``, … of an epoch: float32 [B, 3, 32, 32] and int64 [B]."""
        draws = draw_epoch(len(self.images), self.seed, epoch)
        draws = Draws(*(draw.to(self.windows.device) for draw in draws))
        for share in self.shares[first_batch:]:
            order, top, left, flip = (draw[share.positions] for draw in draws)
            crops = self.windows[order, :, top, left]  # [B, 3, 32, 32]
            crops = torch.where(flip[:, None, None, None], crops.flip(-1), crops)
            yield self.normalise(crops), self.images.labels[order]


class TestBatches(Testing):
    """Batches of ``images`` in order, not augmented: float32 [B, 3, 32, 32] and int64 [B].

    ``batch_size`` is the total of ``world`` processes, of which this is ``rank``; each image goes
    to one of them. A last batch of fewer images than processes leaves some processes without one.
    InputError if ``batch_size`` is smaller than ``world``.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        normalisation: Normalisation = USUAL["cifar"],
    ):
        self.shares = test_shares(len(images), batch_size, rank, world)
        self.images = images
        self.normalise = Normaliser(images.images.device, normalisation)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for taken in self.shares:
            yield self.normalise(self.images.images[taken]), self.images.labels[taken]
