"""Parameters and multiply-adds."""

import math
from collections.abc import Callable

from torch import nn

from nr.network.graph import Graph, read_by
from nr.network.layers import Network
from nr.network.plain import Size
from nr.network.wiring import wiring


def count_params(model: nn.Module) -> int:
    """The parameters of convolutions, batch norms and classifier."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: Network, image_size: int | Size | None = None) -> int:
    """Multiply-adds of one image in convolutions and classifier, as torch counts them.

    In eval mode, so without auxiliary heads. ``image_size``: H = W of the image, or (H, W); None is
    the family's usual size. Raises ValueError for a network that nr cannot follow.
    """
    plan = wiring(model, image_size)
    used = _used(model)
    convolutions = sum(
        conv.weight.numel() * layer.pixels
        for layer in plan.layers
        if used(layer.name)
        for conv in layer.unit.convs
    )
    return convolutions + sum(
        linear.weight.numel() * math.prod(step.size)
        for step, head, _ in plan.heads
        if used(step.name)
        for linear in head.linears
    )


def _used(model: Network) -> Callable[[str], bool]:
    """Whether a step computes anything in eval mode."""
    graph = model.features
    if model.classifier is not None or not isinstance(graph, Graph):
        return lambda name: True
    needed = {node.name for node in read_by(graph.nodes, graph.ends(False))}
    left = {f"features.{node.name}." for node in graph.nodes if node.name not in needed}
    return lambda name: not f"{name}.".startswith(tuple(left))
