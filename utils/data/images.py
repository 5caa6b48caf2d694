"""Sets of images: of CIFAR's size in memory, or each to be decoded when it is needed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

IMAGE_SIZE = 32  # pixels a side, CIFAR's


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, 3, 32, 32], labels int64 [N] on the same device, and the class names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: bytes = b""  # tells the images from others where decoders' pixels differ a little

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "ImageSet":
        """The images at ``index``, int64 [n], in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> "ImageSet":
        """The set on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def listing(self) -> Iterator[bytes | memoryview]:
        """What tells the images from others, for the digest of the data set."""
        yield self.source or self.images.flatten().cpu().numpy().data


@dataclass(frozen=True)
class Images:
    """Images to be decoded, in batches of ``image_size`` pixels a side; labels int64 [N]."""

    labels: Tensor
    classes: tuple[str, ...]
    image_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def listing(self) -> Iterator[bytes]:
        """What tells the images from others, for the digest of the data set."""
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        """One image, RGB, of its own size; InputError if it is broken or of no known range."""
        raise NotImplementedError


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of its own, so the global one is neither read nor moved."""
    return torch.Generator().manual_seed(seed)
