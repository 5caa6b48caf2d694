"""What a data set is known by: its name, classes, number of images and a digest of its listing."""

import hashlib
import os
from pathlib import Path

from utils.data.images import Images, ImageSet
from utils.files import Plain
from utils.machine import distributed

DIGEST_BYTES = 16
Split = ImageSet | Images  # the training or test images of a set


def folder_name(folder: str) -> str:
    """What a data set is called that lies in ``folder``, however the folder was named."""
    return Path(os.path.abspath(os.path.expanduser(folder))).name


def known_by(name: str, train: Split, test: Split, digested: bool = True) -> Plain:
    """The identity of a data set as plain data, the same in every process; prints it in one line.

    ``digested``: with its digest, which asks for the size of every file and reads none.
    """
    images = [len(train.labels), len(test.labels)]
    print(
        f"==> Data: {name}, {len(train.classes):,} classes,"
        f" {images[0]:,} training and {images[1]:,} test images"
    )
    own = digest(train, test) if digested and distributed.is_main() else None
    found = distributed.gathered(own)[0] if digested else None
    return {"name": name, "classes": len(train.classes), "images": images, "digest": found}


def digest(train: Split, test: Split) -> str:
    """A digest of class names, labels and what the splits list of their images."""
    total = hashlib.blake2b(repr(train.classes).encode(), digest_size=DIGEST_BYTES)
    for split in (train, test):
        total.update(split.labels.cpu().numpy().data)
        for part in split.listing():
            total.update(part)
    return total.hexdigest()
