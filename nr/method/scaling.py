"""Scales γ where there is no batch norm: born as 1, folded into their readers at the end."""

from collections import Counter
from typing import cast

import torch
from torch import nn

from nr.method.rescaling import scale_readers
from nr.network.convolutions import Conv
from nr.network.graph import MUL, Graph, Node
from nr.network.layers import Classifier, Network
from nr.network.norms import Scale
from nr.network.plain import is_linear
from nr.network.retiring import retire
from nr.network.steps import Layer, Wiring
from nr.network.units import Norm, Streamed
from nr.network.wiring import wiring


@torch.no_grad()
def add_scales(network: Network) -> None:
    """Put γ = 1 behind the activations of a converted network's layers without batch norm.

    A scale stands behind the poolings and dropouts that follow an activation, where it can be
    folded into its readers whatever its sign. There is none if a sum or a product holds the
    channels. It trains if its layer does.
    """
    plan, graph = wiring(network), cast(Graph, network.features)
    wanted, before = _ends(plan, graph), list(graph.nodes)
    while True:  # all; then those that are not held, whose absence may hold others
        _rewrite(graph, before, wanted)
        held = {layer.name for layer in wiring(network).norms if layer.fixed}
        free = {n: c for n, c in wanted.items() if f"features.{_name(before, n)}" not in held}
        if len(free) == len(wanted):
            return
        wanted = free


def _ends(plan: Wiring, graph: Graph) -> dict[str, Conv]:
    """Node -> the convolution without batch norm from which only plain modules lead here."""
    made: dict[str, Conv] = {}  # of what no sum, product or unit has touched since
    ends: dict[str, Conv] = {}
    calls = {node.name: graph.module(node) for node in graph.nodes}
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    for node in graph.nodes:
        module = calls[node.name]
        layer = plan.by_name.get(f"features.{node.name}")
        if layer is not None and isinstance(module, Conv) and layer.fixed:
            made[node.name] = ends[node.name] = module
        elif node.inputs[0] in made and module is not None and not isinstance(module, Streamed):
            made[node.name] = ends[node.name] = made[node.inputs[0]]
            if uses[node.inputs[0]] == 1:
                ends.pop(node.inputs[0], None)
            else:  # the scale stands before they part
                ends.pop(node.name)
                made.pop(node.name)
        for name in node.inputs if node.op == MUL else ():
            ends.pop(name, None)
    return ends


def _name(nodes: list[Node], end: str) -> str:
    """The name of the scale behind ``end``."""
    name = f"{end}_scale"
    while any(f"{node.name}.".startswith(f"{name}.") for node in nodes):
        name += "_"
    return name


def _rewrite(graph: Graph, nodes: list[Node], wanted: dict[str, Conv]) -> None:
    """Take ``nodes``, with a scale behind each that is ``wanted``."""
    found, modules = [], {}
    names = {end: _name(nodes, end) for end in wanted}
    for node in nodes:
        found.append(node._replace(inputs=tuple(names.get(n, n) for n in node.inputs)))
        if node.name in wanted:
            conv = wanted[node.name]
            weight, (width,) = conv.convs[0].weight, conv.out_channels
            scale = Norm(width, eps=None).to(weight.device, weight.dtype)
            modules[names[node.name]] = scale.requires_grad_(weight.requires_grad)
            found.append(Node(names[node.name], None, (node.name,)))
    graph.rewrite(found, modules)


@torch.no_grad()
def fold_scales(model: Network) -> None:
    """Move every γ that stands alone into the weights that read it, if that is exact."""
    plan = wiring(model)
    layers = [layer for layer in plan.norms if _folds(plan, layer)]
    weight, old = plan.layers[0].unit.convs[0].weight, list(model.parameters())
    factors = torch.ones(len(plan.source), dtype=weight.dtype, device=weight.device)
    for layer in layers:
        for gamma, numbers in zip(layer.unit.scales, layer.numbers, strict=True):
            factors[numbers] = gamma
    scale_readers(plan, factors)
    for layer in layers:
        *path, last = layer.name.split(".")
        model.get_submodule(".".join(path))._modules[last] = nn.Identity()
    if layers:
        retire(model, old, {})


def _folds(plan: Wiring, layer: Layer) -> bool:
    """Whether the readers of a scale can take it over."""
    own = torch.cat(layer.numbers)
    readers = [other.reads for other in plan.norms]
    if not isinstance(layer.unit.norms[0], Scale) or layer.curved or layer.fixed:
        return False
    if any(torch.isin(torch.cat(reads), own).any() for reads in readers):
        return False
    negative = any((gamma < 0).any() for gamma in layer.unit.scales)
    return not negative or all(
        isinstance(step.op, str | Streamed | Classifier) or is_linear(step.op)
        for step in plan.steps.values()
        if torch.isin(torch.cat(step.numbers), own).any()
    )
