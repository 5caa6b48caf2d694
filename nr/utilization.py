"""How much of a network is alive: γ -> live masks -> live / total. Nothing here changes a model.

Paper section 3.2, specification section 3.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from nr.layers import Network
from nr.norms import Bias
from nr.plain import Size
from nr.units import FORMS
from nr.wiring import IMAGE, Layer, gather, image_channels, wiring

DEAD_RATIO = 1e-2  # a channel is dead below this fraction of its layer's max |γ| (spec section 3)
DEAD_GAMMA = 1e-3  # a prunable layer is dead as a whole below this max |γ| (spec section 3)

Masks = dict[str, tuple[Tensor, ...]]  # layer name -> one bool [C] a stream, on the CPU


@dataclass(frozen=True)
class LayerUsage:
    """One ConvBN: channel counts and cost, summed over its streams."""

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
    """``live`` and ``total`` weights of all ConvBN (multiply-adds with ``flops``), layer rows."""

    live: int
    total: int
    layers: tuple[LayerUsage, ...]

    @property
    def ratio(self) -> float:
        return self.live / self.total


def utilization(
    model: Network, flops: bool = False, image_size: int | Size | None = None
) -> Utilization:
    """Measure Σ live_in·live_out·k² against Σ in·out·k² over the blocks that exist.

    With ``flops`` each term is multiplied by the layer's output H·W for images of ``image_size``
    (H = W, or (H, W); None: the family's usual size). No forward pass; the model is left as it is.
    Raises ValueError for a scale that is not finite, and for a network that nr cannot follow.
    """
    layers, *_ = wiring(model, image_size)
    return measure(layers, live_masks(layers), flops)


def relative_scales(model: Network) -> Tensor:
    """|γ| over the largest of its layer and stream, of every prunable scale: float [N], CPU."""
    layers, *_ = wiring(model)
    placed = zip(layers, _absolute_gammas(layers), strict=True)
    gammas = [gamma for layer, row in placed if not layer.fixed for gamma in row]
    return torch.cat(
        [gamma / gamma.max().clamp(min=torch.finfo(gamma.dtype).tiny) for gamma in gammas]
    )


def measure(layers: list[Layer], masks: Masks, flops: bool = False) -> Utilization:
    """The utilization of ``layers`` under given live masks."""
    rows = tuple(_usage(layer, masks, flops) for layer in layers)
    return Utilization(sum(row.live for row in rows), sum(row.total for row in rows), rows)


def _usage(layer: Layer, masks: Masks, flops: bool) -> LayerUsage:
    unit = layer.unit
    live_in = [int(mask.sum()) for mask in gather(masks, layer.sources)]
    live_out = [int(mask.sum()) for mask in masks[layer.name]]
    weight = unit.kernel_size**2 * (layer.pixels if flops else 1)
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


def live_masks(layers: list[Layer]) -> Masks:
    """Which output channels of each layer are live, stream by stream.

    A residual or dense branch with a dead layer is dead as a whole; in a chain the channel with
    the largest |γ| always stays.
    """
    streams = len(layers[0].unit.out_channels)
    masks: Masks = {IMAGE: (torch.ones(image_channels(layers), dtype=torch.bool),) * streams}
    placed = zip(layers, _absolute_gammas(layers), strict=True)
    for branch, run in groupby(placed, key=lambda pair: pair[0].branch):
        group, names = list(run), []
        for layer, gammas in group:
            live_in = [bool(mask.any()) for mask in gather(masks, layer.sources)]
            masks[layer.name] = tuple(
                _live(layer, stream, gamma, live_in) for stream, gamma in enumerate(gammas)
            )
            names.append(layer.name)
        _join_parts(masks, group)
        if branch is not None:
            _drop_dead_streams(masks, names)
    return masks


def by_tie(layers: list[Layer]) -> list[list[Layer]]:
    """The layers that are tied to each other, in order."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.tie, []).append(layer)
    return list(found.values())


def _join_parts(masks: Masks, placed: list[tuple[Layer, tuple[Tensor, ...]]]) -> None:
    """A part that tied layers share is live where all have a live channel in it.

    In a chain the best part always stays.
    """
    gammas = {layer.name: row for layer, row in placed}
    for tied in by_tie([layer for layer, _ in placed if not layer.fixed]):
        if len(tied) == 1 and tied[0].part == 1:
            continue
        scores = part_scores(tied, [gammas[layer.name] for layer in tied])
        lives = []
        for stream, score in enumerate(scores):
            parts = [masks[layer.name][stream].view(-1, layer.part).any(1) for layer in tied]
            live = torch.stack(parts).all(0)
            if tied[0].branch is None and not live.any():
                live[score.argmax()] = True
            lives.append(live)
        for layer in tied:
            masks[layer.name] = tuple(live.repeat_interleave(layer.part) for live in lives)


def part_scores(tied: list[Layer], gammas: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """How strong each part of tied layers is, stream by stream: [parts], from their |γ| [C].

    The largest |γ| in it; of several layers the least, each relative to its layer's largest.
    """

    def of_layer(layer: Layer, gamma: Tensor) -> Tensor:
        score = gamma.view(-1, layer.part).amax(1)
        tiny = torch.finfo(gamma.dtype).tiny
        return score if len(tied) == 1 else score / gamma.max().clamp(min=tiny)

    streams = zip(*gammas, strict=True)
    return [
        torch.stack([of_layer(*pair) for pair in zip(tied, stream, strict=True)]).amin(0)
        for stream in streams
    ]


def _drop_dead_streams(masks: Masks, names: list[str]) -> None:
    """Clear, in all layers of one branch, every stream that is dead in one of them."""
    alive = [
        all(map(Tensor.any, stream)) for stream in zip(*(masks[n] for n in names), strict=True)
    ]
    for name in names:
        masks[name] = tuple(
            mask if live else torch.zeros_like(mask)
            for mask, live in zip(masks[name], alive, strict=True)
        )


def _live(layer: Layer, stream: int, gamma: Tensor, live_in: list[bool]) -> Tensor:
    """Live mask [C] of one stream, from |γ| [C] and whether each input stream is alive."""
    reachable = any(
        live_in[i] for reads, writes in FORMS[layer.unit.form] if stream in writes for i in reads
    )
    if layer.fixed:
        return torch.full_like(gamma, reachable, dtype=torch.bool)
    largest = gamma.max()
    if reachable and largest >= DEAD_GAMMA:
        return gamma >= DEAD_RATIO * largest
    mask = torch.zeros_like(gamma, dtype=torch.bool)
    if layer.branch is None:
        mask[gamma.argmax()] = True
    return mask


def _absolute_gammas(layers: list[Layer]) -> list[tuple[Tensor, ...]]:
    """|γ| of every layer and stream, brought to the CPU in one transfer."""
    norms = [
        [_gamma(norm, layer.unit.convs[0].weight) for norm in layer.unit.norms] for layer in layers
    ]
    flat = torch.cat([gamma for row in norms for gamma in row]).abs().cpu()
    if not torch.isfinite(flat).all():
        raise ValueError("a batch-norm scale of this network is not a finite number")
    pieces = iter(flat.split([len(gamma) for row in norms for gamma in row]))
    return [tuple(next(pieces) for _ in row) for row in norms]


def _gamma(norm: nn.Module, like: Tensor) -> Tensor:
    """γ [C], 1 (as ``like``) where there is no batch norm."""
    return like.new_ones(norm.width) if isinstance(norm, Bias) else norm.weight.detach()
