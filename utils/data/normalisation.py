"""What images are normalised by."""

from typing import NamedTuple


class Normalisation(NamedTuple):
    """Of pixels / 255, a number a channel: the network sees (pixels / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in self)
        return f"mean {mean}, deviation {std}"


# By family, specification section 8.
USUAL = {
    "cifar": Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
