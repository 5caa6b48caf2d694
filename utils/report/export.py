"""A run's network as one file: for inference without this code, or for nr.load."""

import io
from pathlib import Path

import torch
from torch import Tensor

import nr
from nr.network.layers import Network
from nr.network.wiring import image_shape
from utils.errors import InputError
from utils.files import telling, write_atomically
from utils.training.checkpoint import BEST, LAST, load_network

PROGRAM = ".pt2"  # what the name of torch.export's files ends in
SUFFIXES = (PROGRAM, ".pt", ".pth")  # the others: of nr.save's
TOLERANCE = 1e-4  # relative difference of the exported logits


def export(folder: Path, path: Path, merge: bool = False) -> float:
    """Write a run's best network (or its last) to ``path``; return its logits' deviation.

    The network maps images [B, C, H, W], B ≥ 1, to logits [B, S, classes]: a program of
    torch.export where ``path`` ends in .pt2, else a file for nr.load. ``merge``: both streams
    as one, S = 1, and scales that stand alone folded into their readers. Raises InputError where
    they cannot be merged, and if the logits (with ``merge`` their sum) differ from the network's
    by more than TOLERANCE of the largest.
    """
    found = [folder / name for name in (BEST, LAST) if (folder / name).exists()]
    if not found:
        raise InputError(f"{folder}: neither {BEST} nor {LAST} is there")
    network = load_network(found[0])
    images = torch.randn(4, *image_shape(network))
    with torch.no_grad():
        expected = network(images)
    if merge:
        expected = expected.sum(dim=1, keepdim=True)
        try:
            nr.merge(network, fold=True)
        except ValueError as error:
            raise InputError(f"--merge: {found[0]}: {error}") from error
    written = _write_program if path.suffix == PROGRAM else _write_network
    logits = written(network, path, images)
    deviation = float((logits - expected).abs().max() / expected.abs().max())
    if not deviation <= TOLERANCE:
        raise InputError(f"{path}: its logits differ by {deviation:.1e} of the largest")
    return deviation


@torch.no_grad()
def _write_program(network: Network, path: Path, images: Tensor) -> Tensor:
    """Write a program of torch.export; its logits, of fewer images at a time."""
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("B")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(path, buffer.getvalue())
    again = torch.export.load(path).module()
    return torch.cat([again(images[:3]), again(images[3:])])


@torch.no_grad()
def _write_network(network: Network, path: Path, images: Tensor) -> Tensor:
    """Write a file of nr.save; its logits."""
    with telling():
        nr.save(network, path)
    return nr.load(path)(images)
