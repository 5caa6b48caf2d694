"""The made set: a seeded, learnable set of ten classes that needs no network and no disk."""

import math

import torch
import torch.nn.functional as F

from utils.data.images import IMAGE_SIZE, ImageSet, seeded

TRAIN, TEST = 5000, 1000  # images
SEEDS = (1, 2)  # of the training and the test images, the same in every run
WAVELENGTHS = (3.0, 4.5, 6.5, 9.5, 14.0)  # pixels, of the synthetic stripes
STRIPE_AMPLITUDE = (24.0, 48.0)  # least and largest, in pixel values of 0..255
BACKGROUND, NOISE = 32.0, 32.0  # standard deviations in pixel values
BACKGROUND_SIZE = 4  # random values a side that the smooth background interpolates


def make_synthetic(count: int, seed: int) -> ImageSet:
    """Stripes, horizontal or vertical, of five wavelengths: ten classes, all equally large.

    Phase, colour, amplitude, background and noise are random, so no pixel tells a class. An image
    that is flipped or shifted stays in its class.
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
    return ImageSet(images.clamp_(0, 255).to(torch.uint8), labels, tuple(names), b"made %d" % seed)
