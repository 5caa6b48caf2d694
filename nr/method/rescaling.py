"""Rescaling (NR-BR): raise small batch-norm scales without changing the function.

Specification section 7. Batch norm followed by ReLU is positively homogeneous in (γ, β), so a
channel may be made t/s times larger where everything that reads it is made s/t times larger.
"""

import math

import torch
from torch import Tensor, nn

from nr.network.checks import refuse_sharded
from nr.network.convolutions import ConvBN
from nr.network.layers import Network
from nr.network.steps import Wiring
from nr.network.wiring import wiring


@torch.inference_mode(False)
@torch.no_grad()
def rescale(model: Network, target: float) -> None:
    """Raise every prunable γ with 0 < |γ| < ``target`` to ±``target``, exactly compensated.

    β grows by the same factor, and every weight that reads the channel shrinks by it. A γ stays if
    it is exactly 0, if its layer is fixed, or if an nr.Norm reads the channel, which would take any
    factor off again. Raises ValueError, and changes nothing, unless target is positive and every
    module that a prunable channel passes is positively homogeneous, as ReLU is, and SiLU and ReLU6
    are not.
    """
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"target: {target} is not a positive number")
    refuse_sharded(model)
    plan = wiring(model)
    moved = [layer for layer in plan.prunable if isinstance(layer.unit, ConvBN)]
    for layer in moved:
        if layer.curved:
            raise ValueError(
                f"{layer.curved}: not positively homogeneous, so the scales of {layer.name} cannot"
                " move through it without changing the function: use nn.ReLU() there"
            )
    reads = [numbers for layer in plan.norms for numbers in layer.reads]
    normed = torch.cat(reads) if reads else plan.source[:0]
    weight = plan.layers[0].unit.convs[0].weight
    factors = torch.ones(len(plan.source), dtype=weight.dtype, device=weight.device)
    for layer in moved:
        for norm, numbers in zip(layer.unit.batch_norms, layer.numbers, strict=True):
            factors[numbers] = _raise_scale(norm, target, torch.isin(numbers, normed))
    scale_readers(plan, factors)


def scale_readers(plan: Wiring, factors: Tensor) -> None:
    """Multiply every weight by the factor, by number [count], of what it reads."""
    for layer in plan.layers:
        for i, _, block in layer.unit.blocks():
            block.mul_(layer.unit.spread(factors[layer.reads[i]]))  # [o, i, k, k] x [1 or o, i]
    for _, head, reads in plan.heads:
        for stream, block in head.blocks():
            block.mul_(factors[reads[stream], None])  # [classes, i, pixels] x [i, 1]


def _raise_scale(norm: nn.BatchNorm2d, target: float, kept: Tensor) -> Tensor:
    """Raise the small γ of a norm but those ``kept`` [C]; return s/t [C] for its readers."""
    gamma = norm.weight
    least = torch.finfo(gamma.dtype).tiny  # below it a float is 0 but for rounding
    small = (gamma.abs() >= least) & (gamma.abs() < target) & ~kept.to(gamma.device)
    factor = torch.where(small, gamma.abs() / target, 1.0)
    gamma.copy_(torch.where(small, gamma.sign() * target, gamma))
    norm.bias.div_(factor)
    return factor
