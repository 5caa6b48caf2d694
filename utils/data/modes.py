"""Images of every mode that PIL opens, as RGB: scaled to their range, never clipped to it."""

import numpy as np
from PIL import Image

from utils.errors import InputError

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")  # PIL's modes of 16-bit grey
WIDENED = ("PNG", "PPM")  # formats whose images of mode I are 16-bit grey, scaled to 0..65535
LARGEST = 65535  # of 16 bits


def to_rgb(image: Image.Image, file: str) -> Image.Image:
    """The decoded ``image``, RGB of 8 bits; transparency is dropped, as torchvision does.

    Grey of 16 bits is scaled from 0..65535 and floating point from 0..1: PIL's own conversion
    clips both to 255. InputError naming ``file`` where the range of the pixels is not known.
    """
    if image.mode == "RGB":
        return image
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in WIDENED):
        return grey(np.asarray(image).astype(np.float64) / LARGEST)
    if image.mode == "I":
        raise InputError(f"{file}: pixels are 32-bit integers of no known range; save 8 or 16 bits")
    if image.mode == "F":
        values = np.asarray(image)
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(
                f"{file}: floating-point pixels from {values.min():g} to {values.max():g}, "
                "must be from 0 to 1"
            )
        return grey(values)
    return image.convert("RGB")


def grey(values: np.ndarray) -> Image.Image:
    """Grey values in 0..1, [H, W], as RGB."""
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
