"""Checkpoints: plain types and tensors in one sealed file of nr's that rebuilds its own network."""

import hashlib
import os
import random
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import models
from models import converted
from nr.files import archive
from nr.network.layers import Network
from utils.data.normalisation import USUAL, Normalisation
from utils.errors import InputError, one_line
from utils.files import Plain, telling
from utils.machine import distributed
from utils.training.older import upgraded

FORMAT = 2
OLDER = 1  # the format before, in which a network is described by its builder
KEYS = ("format", "epoch", "arch", "state_dict", "network", "structure", "run", "args", "rng")
LAST, PREVIOUS, BEST = "checkpoint.pth.tar", "checkpoint.prev.pth.tar", "model_best.pth.tar"
COPIED = 2**20  # bytes of a file that are copied at a time
DAMAGED = "checkpoint.damaged.pth.tar"  # where a last checkpoint that cannot be read is put


class CheckpointError(InputError):
    """A file that is no checkpoint, a damaged one, or one of another network."""


def save(path: Path, payload: Plain) -> None:
    """Write a sealed checkpoint atomically."""
    with telling():
        archive.write_sealed(path, payload)


def save_last(folder: Path, payload: Plain, best: bool = False) -> None:
    """Write checkpoint.pth.tar, keeping the one before it as checkpoint.prev.pth.tar.

    ``best``: write model_best.pth.tar first: a run that is killed between the two repeats the
    epoch, and writes both. No two of them share their bytes afterwards.
    """
    last = folder / LAST
    if best:
        save(folder / BEST, payload)
    if last.exists():
        _link(last, folder / PREVIOUS)  # one file until the new last one is there
    if best:
        keep_as(folder / BEST, last)
    else:
        save(last, payload)


def keep_as(path: Path, name: Path) -> None:
    """Make ``name`` a copy of ``path``, not a link: either may be edited in place.

    Raises InputError naming ``name``, which is then as it was.
    """
    try:
        with telling(), open(path, "rb") as source, archive.whole_file(name) as copy:
            shutil.copyfileobj(source, copy, COPIED)
    except OSError as error:
        raise InputError(f"{name}: could not be written: {error.strerror}") from error


def _link(path: Path, name: Path) -> None:
    """Make ``name`` the same file as ``path``: a hard link, or a copy where there are none.

    Raises as ``keep_as`` does.
    """
    link = name.with_name(f".{name.name}.tmp")
    try:
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:
            keep_as(path, name)
        else:
            os.replace(link, name)
            link.unlink(missing_ok=True)  # the rename does nothing where both are one file
    except OSError as error:
        with suppress(OSError):
            link.unlink(missing_ok=True)
        raise InputError(f"{name}: could not be written: {error.strerror}") from error


def read(path: str | Path) -> Plain:
    """The content of a checkpoint, on the CPU. Raises CheckpointError naming the file."""
    with telling(CheckpointError):
        content = archive.read_sealed(path)
    payload = content if isinstance(content, dict) else {}
    missing = [key for key in KEYS if key not in payload]
    if missing:
        raise CheckpointError(f"{path}: not a checkpoint of this program: no {missing[0]!r} in it")
    if payload["format"] not in (FORMAT, OLDER):
        raise CheckpointError(f"{path}: format {payload['format']!r}, expected {FORMAT}")
    return payload


def read_last(folder: Path) -> tuple[Path, Plain] | None:
    """The last checkpoint of a folder and its path; the one before it where that is damaged.

    None where there is neither. Raises CheckpointError where none can be read.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.exists() and not previous.exists():
        return None
    try:
        return last, read(last)
    except CheckpointError as error:
        if not previous.exists():
            raise
        payload = read(previous)
        distributed.warn(f"Warning: {error}; going on from {previous}")
        return previous, payload


def refuse_different(found: tuple[Path, Plain] | None) -> None:
    """InputError in every process unless all of them found the same checkpoint, or none.

    ``found``: its path and content. Machines that share no disk may each have their own.
    """
    if distributed.world() == 1:
        return
    digest, shown = "", "no checkpoint"
    if found is not None:
        path, payload = found
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shown = f"{path} of epoch {payload['epoch']}, sha256 {digest[:12]}"
    everyone = distributed.gathered((digest, f"{shown} on {socket.gethostname()}"))
    for rank, (other, where) in enumerate(everyone):
        if other != everyone[0][0]:
            raise InputError(
                f"--resume: process 0 found {everyone[0][1]}, but process {rank} {where}; all"
                " need the same folder, on a disk that their machines share"
            )


def network(payload: Plain, path: str | Path) -> Network:
    """Build the network of ``payload`` with its weights. Raises CheckpointError naming ``path``."""
    try:
        structure = payload["structure"]
        if payload["format"] == OLDER:
            structure = upgraded(payload["network"], structure)
        return _restored(payload["network"], structure, payload["state_dict"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = one_line(error)[:200]
        raise CheckpointError(f"{path}: its network cannot be rebuilt: {reason}") from error


def _restored(spec: Plain, structure: Plain, weights: object) -> Network:
    """The network; modules that nr does not know are those of the library that it comes from."""
    try:
        return archive.restored(structure, weights)
    except ValueError:
        if not converted.split(spec["arch"]):
            raise
    like = models.build(spec["family"], spec["arch"], **spec["options"])
    return archive.restored(structure, weights, like)


def load_network(path: str | Path) -> Network:
    """The network of a checkpoint file, on the CPU, in eval mode."""
    return network(read(path), path).eval()


def normalisation(flags: Plain, family: str) -> Normalisation:
    """Of the images of a run with these flags: that of pretrained weights, or the family's."""
    found = flags.get("normalisation")
    return USUAL[family] if found is None else Normalisation(*found)


def load_normalisation(path: str | Path) -> Normalisation:
    """Of the images of the run of a checkpoint file."""
    payload = read(path)
    return normalisation(payload["args"], payload["network"]["family"])


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """What a payload of wrong types or sizes raises in the block, as an InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path}: its state cannot be restored: {error}") from error


def non_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first weight or statistic that is not a finite number, or None."""
    return next((name for name, x in weights.items() if not torch.isfinite(x).all()), None)


def refuse_non_finite(weights: Mapping[str, Tensor], source: object) -> None:
    """InputError, naming ``source``, for weights from which nothing can be trained."""
    if name := non_finite(weights):
        raise InputError(
            f"{source}: {name} holds numbers that are not finite: take an earlier checkpoint, or"
            " other weights"
        )


def rng_state() -> Plain:
    """The random generators of Python, numpy and torch (CPU and every GPU) as plain data."""
    numpy = np.random.get_state(legacy=False)
    keys = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    rest = numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]
    return {
        "python": random.getstate(),
        "numpy": (numpy["bit_generator"], keys, *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Plain) -> None:
    """Put the random generators back; those of GPUs only where as many are there."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    cuda: list[Tensor] = state["cuda"]
    if len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
