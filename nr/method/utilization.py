"""How much of a network is alive: γ -> live masks -> live / total. Nothing here changes a network.

Paper section 3.2, specification section 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nr.method.life import Life, absolute_gammas, life
from nr.network.layers import Network
from nr.network.plain import Size
from nr.network.steps import Layer, Wiring
from nr.network.units import FORMS
from nr.network.wiring import wiring

Masks = dict[str, tuple[Tensor, ...]]  # layer name -> one bool [C] a stream, on the CPU


@dataclass(frozen=True)
class LayerUsage:
    """Channels and cost of one ConvBN, summed over its streams."""

    name: str
    fixed: bool
    live_in: int
    in_channels: int
    live_out: int
    out_channels: int
    live: int
    total: int


@dataclass(frozen=True)
class Utilization:
    """``live`` and ``total`` weights of all ConvBN (multiply-adds with ``flops``), by layer."""

    live: int
    total: int
    layers: tuple[LayerUsage, ...]

    @property
    def ratio(self) -> float:
        return self.live / self.total


def utilization(
    model: Network, flops: bool = False, image_size: int | Size | None = None
) -> Utilization:
    """Σ live_in·live_out·k² against Σ in·out·k², over all blocks that exist (paper section 3.2).

    With ``flops`` each term is multiplied by H·W of the layer's output, for images of
    ``image_size`` (H = W, or (H, W); None is the family's usual size). Needs no forward pass and
    changes nothing. Raises ValueError for a scale that is not finite, and for a network that nr
    cannot follow.
    """
    plan = wiring(model, image_size)
    return measure(plan, life(plan), flops)


def relative_scales(model: Network) -> Tensor:
    """|γ| over the largest of its layer and stream, for every prunable scale: [N], CPU."""
    plan = wiring(model)
    gammas = absolute_gammas(plan)
    rows = [gammas[numbers] for layer in plan.prunable for numbers in layer.numbers]
    return torch.cat([row / row.max().clamp(min=torch.finfo(row.dtype).tiny) for row in rows])


def live_masks(plan: Wiring) -> Masks:
    """Which output channels of each layer live, for each stream."""
    found = life(plan)
    return {layer.name: found.masks(layer) for layer in plan.makers}


def measure(plan: Wiring, alive: Life, flops: bool = False) -> Utilization:
    """The utilization of a network whose channels live as ``alive`` says."""
    rows = tuple(_usage(layer, alive, flops) for layer in plan.layers)
    return Utilization(sum(row.live for row in rows), sum(row.total for row in rows), rows)


def _usage(layer: Layer, alive: Life, flops: bool) -> LayerUsage:
    unit = layer.unit
    live_in = [int(alive.of(numbers).sum()) for numbers in layer.reads]
    live_out = [int(mask.sum()) for mask in alive.masks(layer)]
    weight = unit.taps * (layer.pixels if flops else 1)
    pairs = [(i, o) for reads, writes in FORMS[unit.form] for i in reads for o in writes]
    group = unit.group and (unit.group[0],) * len(unit.in_channels)  # inputs of one output
    return LayerUsage(
        layer.name,
        layer.fixed,
        sum(live_in),
        sum(unit.in_channels),
        sum(live_out),
        sum(unit.out_channels),
        weight * sum((group or live_in)[i] * live_out[o] for i, o in pairs),
        weight * sum((group or unit.in_channels)[i] * unit.out_channels[o] for i, o in pairs),
    )
