"""What Pillow reads: kinds of files by their names, and images of every mode as RGB."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image

from utils.errors import InputError, one_line

# Of the formats that Pillow opens those that it cannot read by itself.
UNREADABLE = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16-bit grey
WIDENED = ("PNG", "PPM")  # formats whose images of mode I are 16-bit grey, scaled to 0..65535
LARGEST = 65535  # of 16 bits


@cache
def image_kinds() -> frozenset[str]:
    """What the names of the files end in that Pillow reads, in small letters: .png and others."""
    Image.init()
    readable = Image.OPEN.keys() - set(UNREADABLE)
    return frozenset(kind for kind, name in Image.EXTENSION.items() if name in readable)


def kind_of(name: str) -> str:
    """What the name of a file ends in, in small letters."""
    return os.path.splitext(name)[1].lower()


def counted(kinds: Counter[str]) -> str:
    """How many files there are of each kind, the most first."""
    by_count = kinds.most_common()
    return ", ".join(f"{count:,} {kind or 'without an ending'}" for kind, count in by_count)


@contextmanager
def open_image(file: str) -> Iterator[Image.Image]:
    """The image in ``file``, to be decoded inside the block; InputError where that fails."""
    try:
        with Image.open(file) as image:
            yield image
    except InputError:
        raise
    except Exception as error:  # Pillow has many kinds for a broken file, one for each format
        reason = getattr(error, "strerror", None) or f"a broken image ({one_line(error)})"
        raise InputError(f"{file}: {reason}") from error


def to_rgb(image: Image.Image, file: str) -> Image.Image:
    """The decoded ``image``, RGB of 8 bits; transparency is dropped, as torchvision does.

    Grey of 16 bits is scaled from 0..65535 and floating point from 0..1, which Pillow would clip
    to 255. InputError naming ``file`` where the range of the pixels is not known.
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
            found = f"from {values.min():g} to {values.max():g}"
            raise InputError(f"{file}: floating-point pixels {found}, must be from 0 to 1")
        return grey(values)
    return image.convert("RGB")


def grey(values: np.ndarray) -> Image.Image:
    """Grey values in 0..1, [H, W], as RGB."""
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
