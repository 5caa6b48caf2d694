"""A run's network for inference without this code."""

import io
from pathlib import Path

import torch

from nr.wiring import image_shape
from utils.errors import InputError
from utils.files import write_atomically
from utils.training.checkpoint import BEST, LAST, load_network

TOLERANCE = 1e-4  # relative difference of the exported logits


def export(folder: Path, path: Path) -> float:
    """Write a run's best network (or its last) with torch.export; return its logits' deviation.

    The program maps images [B, C, H, W], B ≥ 1, to logits [B, S, classes]. Raises InputError if
    its logits differ from the network's by more than TOLERANCE of the largest.
    """
    found = [folder / name for name in (BEST, LAST) if (folder / name).exists()]
    if not found:
        raise InputError(f"{folder}: neither {BEST} nor {LAST} is there")
    network = load_network(found[0])
    images = torch.randn(4, *image_shape(network))
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("B")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(path, buffer.getvalue())
    again, images = torch.export.load(path).module(), images[:3]
    with torch.no_grad():
        expected, logits = network(images), again(images)
    deviation = float((logits - expected).abs().max() / expected.abs().max())
    if not deviation <= TOLERANCE:
        raise InputError(f"{path}: its logits differ by {deviation:.1e} of the largest")
    return deviation
