"""A set of CIFAR-size images in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE_SIZE = 32  # pixels a side, CIFAR's


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


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of its own, so the global one is neither read nor moved."""
    return torch.Generator().manual_seed(seed)
