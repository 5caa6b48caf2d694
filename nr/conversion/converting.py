"""A torch network as a graph of nr's units, with the same weights and outputs.

The network is traced. A convolution and the batch norm behind it become a unit, what moves channels
becomes a selection, and the last linear layer is the classifier. Modules keep their names. What has
no form in units is an obstacle: it is noted, and the conversion goes on behind a stand-in.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from nr.conversion.converter import Converter
from nr.conversion.hidden import same_random
from nr.conversion.obstacles import Obstacles, opaque
from nr.conversion.tracing import Traced
from nr.method.scaling import add_scales
from nr.network.checks import image_hw
from nr.network.graph import IMAGE, Graph, Node
from nr.network.holding import hold
from nr.network.layers import Classifier, Network
from nr.network.plain import Size
from nr.network.units import Unit
from nr.network.wiring import Wiring, wiring

HOLDERS = (Graph, Classifier, nn.ModuleList)  # what has no mode of its own


def convert(
    model: nn.Module,
    image_size: int | Size,
    scales: bool = False,
    keep: Iterable[str] = (),
    freeze: Iterable[str] = (),
) -> Network:
    """``model`` as a network of units with the same weights: [B, C, H, W] -> [B, 1, classes].

    - ``image_size``: H = W of its images, or (H, W). If a linear layer reads a whole map, or the
      forward computes with sizes, the result takes this size only.
    - ``scales``: put a scale γ = 1 behind each activation without batch norm whose channels are
      free; it is measured, penalised and rebuilt like any γ.
    - ``keep``, ``freeze``: patterns for the names of layers that stay, as of nr.hold.

    Logits are the same up to rounding, in eval and in train mode (see nr.ConvBN on 1x1 convolutions
    with stride). A bias before a batch norm moves into its running mean. ``model`` stays as it is
    and shares nothing with the result. nr/README.md says what is taken. For everything else it
    raises ValueError, the first of ``obstacles``: module, reason and remedy.
    """
    state = torch.get_rng_state()
    network, found = _converted(model, image_size, scales)
    if found or network is None:
        torch.set_rng_state(state)  # as if nothing had been made
        raise ValueError(str(found[0]))
    hold(network, keep, freeze)
    return network


def obstacles(model: nn.Module, image_size: int | Size, scales: bool = False) -> Obstacles:
    """Everything that keeps ``convert`` from converting ``model``, in the order of the network.

    A list of (module, reason, remedy), empty if it can be converted; printed, a table. Behind
    something unknown the search goes on as if it gave channels of its own. It ends at a module that
    cannot be traced.
    """
    with same_random():
        return _converted(model, image_size, scales)[1].told()


@torch.inference_mode(False)
def _converted(
    model: nn.Module, image_size: int | Size, scales: bool
) -> tuple[Network | None, Obstacles]:
    """The network as far as it can be made, and all obstacles."""
    found = Obstacles()
    try:
        _refuse_other(model)
        traced = Traced(model, image_hw(image_size), found)
    except ValueError as error:
        found.add(*str(error).split(": ", 1))
        return None, found
    with torch.no_grad(), traced.device:
        made = Converter(traced, found)
        network = made.network()
        plan = _wired(made, network, found)
        if not found and scales:
            add_scales(network)
            plan = wiring(network)
    if not found and plan is not None and not plan.prunable:
        remedy = "give scales=True, or use a variant with batch norm"
        if scales:
            remedy = "sums and products hold all that a scale could stand behind"
        found.add(
            traced.kind,
            "has no batch norm whose channels could go, so nothing can be measured: " + remedy,
        )
    network.image_size = image_size if isinstance(image_size, int) else traced.size
    _keep_modes(network, model.training)
    if any(not parameter.is_contiguous() for parameter in model.parameters()):
        network.to(memory_format=torch.channels_last)
    return network, found.ordered(map(traced.name, traced.nodes))


def _refuse_other(model: object) -> None:
    """Refuse what is no network of torch's."""
    if isinstance(model, Network):
        raise ValueError("the network: is an nr.Network already: it needs no conversion")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{model!r:.100}: is no nn.Module, and only those can be converted")
    kind = type(model).__name__
    for inside in ("module", "_orig_mod"):
        if isinstance(getattr(model, inside, None), nn.Module) and len(model._modules) == 1:
            raise ValueError(f"{kind}: wraps the network: pass what is in it, model.{inside}")
    if any(map(nn.parameter.is_lazy, [*model.parameters(), *model.buffers()])):
        raise ValueError(f"{kind}: has lazy modules without weights yet: run a batch first")


def _wired(made: Converter, network: Network, found: Obstacles) -> Wiring | None:
    """The walk over the network, with a stand-in for each node that it refuses."""
    graph = cast(Graph, network.features)
    while True:
        try:
            return wiring(network)
        except ValueError as error:
            place, text = str(error).split(": ", 1)
            name = place.removeprefix("features.")
            others, before = [n for n in graph.nodes if n.name != name], len(found)
            if len(others) == len(graph.nodes) and found:
                return None  # of what is missing
            found.add(name, text)
            if len(others) == len(graph.nodes) or len(found) == before:
                return None
            stand_in = opaque(made.shapes[name], made.traced.image_channels)
            nodes = [Node(name, None, (IMAGE,)) if n.name == name else n for n in graph.nodes]
            graph.rewrite(nodes, {name: stand_in})


def _keep_modes(network: Network, training: bool) -> None:
    """Set the network's mode; a frozen batch norm stays in eval mode."""
    parts = [m for m in network.modules() if not isinstance(m, (Network, Unit, *HOLDERS))]
    own = [part for part in parts if type(part) is not nn.Module]  # not the names on a path
    modes = [part.training for part in own]
    network.train(training)
    for part, mode in zip(own, modes, strict=True):
        part.training = mode
