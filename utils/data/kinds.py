"""Kinds of files, by what their names end in."""

import os
from collections import Counter
from functools import cache

from PIL import Image

# Of the formats that Pillow opens those that it cannot read by itself.
UNREADABLE = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


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
    return ", ".join(
        f"{count:,} {kind or 'without an ending'}" for kind, count in kinds.most_common()
    )
