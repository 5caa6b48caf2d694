"""Networks of torchvision and timm, converted: the same weights and logits in nr's units."""

import difflib
from collections.abc import Iterable

import torch
from torch import nn

import nr
from models import from_timm, from_torchvision
from nr.network.graph import Graph
from nr.network.layers import Network
from nr.network.norms import Scale
from nr.network.plain import Size
from nr.network.wiring import wiring

# -a takes <library>:<name>; runs and files are called <library>_<name>.
LIBRARIES = {"torchvision": from_torchvision, "timm": from_timm}
IMAGE_SIZES = {"cifar": 32, "imagenet": 224}  # usual H = W in pixels, by family
CLASSES = {"cifar": 10, "imagenet": 1000}


def split(arch: str) -> tuple[str, str] | None:
    """Library and name of ``arch``, with a colon or as in files; None for one of ours."""
    library, _, name = arch.replace(":", "_", 1).partition("_")
    return (library, name) if library in LIBRARIES else None


def original(library: str, name: str, num_classes: int) -> nn.Module:
    """The library's own network with fresh weights.

    ValueError for an unknown name, which names the nearest, and if the library is not installed.
    """
    with torch.device("cpu"):  # it, and what it imports, computes widths and more with tensors
        try:
            known = LIBRARIES[library].names()
        except ImportError as error:
            raise ValueError(
                f"{library} is not installed ({error}): pip install {library}"
            ) from error
        if name not in known:
            tagged = [other for other in known if _untagged(other) == _untagged(name)]
            raise ValueError(
                f"{library} has no network {name!r}, the nearest is"
                f" {nearest(name, tagged or known)}"
            )
        return LIBRARIES[library].make(name, num_classes)


def _untagged(name: str) -> str:
    """The name of a network without the tag of its weights."""
    return name.partition(".")[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of ``known`` whose spelling is most like ``name``."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0)[0]


def network(
    family: str,
    library: str,
    name: str,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> Network:
    """A network of a library for the images of ``family``: [B, 3, H, W] to [B, S, classes].

    ``image_size``: H = W, if it is not the usual one. In train mode auxiliary logits may follow, in
    a tuple. Raises ValueError for a network that has no exact form in units.
    """
    try:
        model = original(library, name, num_classes or CLASSES[family])
        made = in_units(model, image_size or IMAGE_SIZES[family])
    except ValueError as error:
        raise ValueError(f"arch {library}:{name}: {error}") from error
    return made.to(torch.empty(0).device)  # get_default_device knows no `with` before torch 2.7


def in_units(model: nn.Module, size: int | Size) -> Network:
    """``model`` converted, with scales γ if nothing could be pruned without them."""
    try:
        made = nr.convert(model, size)
    except ValueError as error:
        if "scales=True" not in str(error):  # that helps for want of batch norm
            raise
        made = nr.convert(model, size, scales=True)
    if made.classifier is None and isinstance(made.features, Graph):
        outputs, training = made.features.outputs, made.features.training_outputs
        first = training[0] if isinstance(training, list) else training or outputs
        if not isinstance(outputs, str) or first != outputs:
            raise ValueError("gives something else than logits: several outputs")
    return made


def is_scaled(network: Network) -> bool:
    """Whether scales γ that stand alone are all that a network is pruned by."""
    return all(isinstance(layer.unit.norms[0], Scale) for layer in wiring(network).prunable)
