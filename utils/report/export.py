"""A run's network as one file: for inference without this code, or for nr.load."""

import copy
import importlib
import io
import json
from pathlib import Path

import torch
from torch import Tensor

import nr
from nr.method.scaling import fold_scales
from nr.network.layers import Network
from nr.network.wiring import image_shape
from utils.data.normalisation import Normalisation
from utils.errors import InputError
from utils.files import telling, write_atomically
from utils.training.checkpoint import BEST, LAST, load_network, load_normalisation

ONNX = ("onnx", "onnxscript", "onnxruntime")  # what its files are written and compared with
INFERENCE = (".pt2", ".onnx")  # what the names of files for it end in
NORMALISATION = "normalisation.json"  # in .pt2: mean and deviation of pixels / 255
TOLERANCE = 1e-4  # relative difference of the exported logits


@torch.no_grad()
def export(folder: Path, path: Path, merge: bool = False) -> float:
    """Write a run's best network (or its last) to ``path``; return its logits' deviation.

    A file for inference maps images [B, C, H, W], B ≥ 1, to logits [B, classes], the sum over the
    streams: .pt2 is a program of torch.export, with the run's normalisation of images in it, .onnx
    one of ONNX. Others are for nr.load. ``merge``: both streams as one. Scales that stand alone are
    folded into their readers, but not in files for nr.load of two streams. InputError for streams
    that cannot be merged, for .onnx without ONNX, and where the file's logits differ from the
    network's by more than TOLERANCE of the largest.
    """
    found = best(folder)
    network = load_network(found)
    images = torch.randn(4, *image_shape(network))
    expected = network(images)
    if merge:
        expected = expected.sum(dim=1, keepdim=True)
        try:
            nr.merge(network, fold=True)
        except ValueError as error:
            raise InputError(f"--merge: {found}: {error}") from error
    if path.suffix in INFERENCE:
        fold_scales(network)
    logits = WRITERS[path.suffix](network, path, images, load_normalisation(found))
    if logits.ndim == 2:
        expected = nr.predict(expected)
    deviation = float((logits - expected).abs().max() / expected.abs().max())
    if not deviation <= TOLERANCE:
        raise InputError(f"{path}: its logits differ by {deviation:.1e} of the largest")
    return deviation


def best(folder: Path) -> Path:
    """The checkpoint of a run's best network, or of its last."""
    for name in (BEST, LAST):
        if (folder / name).exists():
            return folder / name
    raise InputError(f"{folder}: neither {BEST} nor {LAST} is there")


def _program(network: Network, images: Tensor) -> torch.export.ExportedProgram:
    """The network in one output, for any number of images."""
    dynamic = ({0: torch.export.Dim("B")},)
    return torch.export.export(nr.Joined(network), (images,), dynamic_shapes=dynamic)


def _write_program(network: Network, path: Path, images: Tensor, by: Normalisation) -> Tensor:
    """Write a program of torch.export; its logits, of fewer images at a time."""
    buffer = io.BytesIO()
    notes = {NORMALISATION: json.dumps(by._asdict())}
    torch.export.save(_program(network, images), buffer, extra_files=notes)
    write_atomically(path, buffer.getvalue())
    again = torch.export.load(path).module()
    return torch.cat([again(images[:3]), again(images[3:])])


def _write_onnx(network: Network, path: Path, images: Tensor, _: Normalisation) -> Tensor:
    """Write a program of ONNX; its logits, of fewer images at a time."""
    try:
        runtime = [importlib.import_module(name) for name in ONNX][-1]
    except ImportError as error:
        raise InputError(
            f"--export {path}: {error.name} is not installed: pip install {' '.join(ONNX)}"
        ) from error
    program = torch.onnx.export(_program(network, images), dynamo=True, verbose=False)
    if program is not None:  # as torch's annotation would have it
        write_atomically(path, program.model_proto.SerializeToString())
    again = runtime.InferenceSession(path)
    (name,) = (given.name for given in again.get_inputs())
    parts = (again.run(None, {name: part.numpy()})[0] for part in (images[:3], images[3:]))
    return torch.cat([torch.from_numpy(part) for part in parts])


def _write_network(network: Network, path: Path, images: Tensor, _: Normalisation) -> Tensor:
    """Write a file of nr.save; its logits."""
    with telling():
        nr.save(network, path)
    return nr.load(path, into=copy.deepcopy(network))(images)  # which has what nr does not know


FOR_NR = dict.fromkeys((".pt", ".pth"), _write_network)
WRITERS = {".pt2": _write_program, ".onnx": _write_onnx} | FOR_NR
