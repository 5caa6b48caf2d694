"""The one walk over a network: each ConvBN in order, with what it reads.

Measuring, rebuilding, rescaling, describing shapes and counting MACs are all loops over this list.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nr.layers import Chain, Concat, ConvBN, Network, Residual

IMAGE = "image"  # the source that the stem reads
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class Layer:
    """One ConvBN in its place.

    ``sources``: the layers whose outputs, concatenated in this order, are its input; a residual
    sum is named by its shortcut, whose channels stand for the sum's. ``size``: its output H = W.
    ``branch``: the residual or dense container that can be dropped with it, None in a chain.
    """

    name: str
    unit: ConvBN
    sources: tuple[str, ...]
    size: int
    branch: str | None


class Wiring(NamedTuple):
    """The layers in order of computation, the sources of the classifier, and the residual sums.

    ``sums``: name of a Residual that has its branch -> sources of it and of its shortcut.
    """

    layers: list[Layer]
    head: tuple[str, ...]
    sums: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def wiring(model: Network, image_size: int | None = None) -> Wiring:
    """Walk ``model`` for images of ``image_size`` (H = W; None: the family's usual size)."""
    layers: list[Layer] = []
    sums = {}

    def walk(module: nn.Module, name: str, at: tuple, branch: str | None) -> tuple:
        sources, size = at
        match module:
            case ConvBN():
                layers.append(Layer(name, module, sources, _window(module, size), branch))
                return (name,), layers[-1].size
            case Chain():
                for child_name, child in module.named_children():
                    at = walk(child, f"{name}.{child_name}", at, branch)
                return at
            case Residual():
                end = None
                if module.branch is not None:
                    end = walk(module.branch, f"{name}.branch", at, name)
                if module.shortcut is not None:
                    at = walk(module.shortcut, f"{name}.shortcut", at, None)
                if end is not None:
                    sums[name] = (end[0], at[0])
                return at
            case Concat():
                if module.branch is not None:
                    new_sources, size = walk(module.branch, f"{name}.branch", at, name)
                    sources = sources + new_sources
                return sources, size
            case nn.AdaptiveAvgPool2d():
                return sources, module.output_size
            case nn.MaxPool2d() | nn.AvgPool2d():
                return sources, _window(module, size)
            case _:
                return at

    image = ((IMAGE,), image_size or model.image_size)
    head, _ = walk(model.features, "features", image, None)
    return Wiring(layers, head, sums)


def _window(module: nn.Module, size: int) -> int:
    """Output H = W of a convolution or pooling over ``size`` x ``size`` inputs."""
    return (size + 2 * module.padding - module.kernel_size) // module.stride + 1


def gather_widths(widths: Mapping[str, tuple[int, ...]], sources: tuple[str, ...]) -> tuple:
    """Input width of each stream: the sum over the concatenated sources."""
    return tuple(map(sum, zip(*(widths[source] for source in sources), strict=True)))


def gather(vectors: Mapping[str, tuple[Tensor, ...]], sources: tuple[str, ...]) -> tuple:
    """One vector [C_in] a stream, concatenated over the sources."""
    columns = zip(*(vectors[source] for source in sources), strict=True)
    return tuple(torch.cat(column) for column in columns)
