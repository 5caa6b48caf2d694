"""CIFAR-10 and CIFAR-100 as torchvision has them, downloaded where they are not there."""

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from utils.data.images import ImageSet
from utils.errors import InputError, one_line

KINDS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
NETWORK_TIMEOUT = 30.0  # seconds without an answer before a download is given up


def load(kind: type[CIFAR10], root: Path) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a torchvision CIFAR class, fetched into ``root`` if not there.

    InputError, which says what to put where, if they cannot be fetched or unpacked.
    """
    if not (root / kind.base_folder).is_dir():
        print(f"Fetching {kind.filename} into {root}", flush=True)
    try:
        with quiet_network():
            loaded = [kind(root, train=train, download=True) for train in (True, False)]
    except Exception as error:  # of the network, the file system, tar, gzip and torchvision
        archive, problem = root / kind.filename, "cannot be unpacked"
        if not check_integrity(archive, kind.tgz_md5):
            found = "damaged" if archive.exists() else "not there"
            problem = f"is {found} and cannot be downloaded"
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
