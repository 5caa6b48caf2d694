"""Live masks and a budget -> new widths -> the rebuilt network.

Paper section 3.3, specification section 5.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from nr.checks import refuse_sharded
from nr.counting import count_params
from nr.layers import Classifier, Network
from nr.plain import Size
from nr.rebuilding import frozen, kept_whole, remade, swap
from nr.rounding import multiples, new_widths, round_up
from nr.units import CROSS, PRUNED, ConvBN
from nr.utilization import LayerUsage, Masks, Utilization, live_masks, measure
from nr.wiring import IMAGE, Layer, Wiring, gather, image_channels, wiring


@dataclass(frozen=True)
class LayerChange:
    """Channels of one layer before, survived and after (survived + rejuvenated); 0 if dropped."""

    name: str
    before: tuple[int, int]  # (input, output)
    survived: tuple[int, int]
    after: tuple[int, int]


@dataclass(frozen=True)
class Report:
    """What rejuvenation did: the utilization before it, the expansion r, and every layer.

    ``utilization``: live is what survives. ``params``: of the whole network, before and after.
    ``budget``: Σ in·out·k² of the new widths (multiply-adds with ``flops``) over that of the old
    ones, with every connection between the streams, whether it exists or not.
    """

    utilization: Utilization
    expansion: float
    layers: tuple[LayerChange, ...]
    dropped: tuple[str, ...]
    params: tuple[int, int]
    budget: float


@torch.inference_mode(False)
def rejuvenate(
    model: Network,
    cross: str = "removed",
    flops: bool = False,
    image_size: int | Size | None = None,
    from_scratch: bool = False,
    round_to: int = 1,
    keep_frozen: bool = False,
) -> Report:
    """Rebuild ``model`` in place at its present budget and return what changed.

    Live channels survive with their weights; r = √(total / live) gives each layer int(live·r)
    channels, the extra ones fresh (spec section 5). ``cross``: the connections between the two
    streams, "removed", "attention" or "full" (section 6); "none": only what survives, in a single
    stream of the live widths (r = 1, the pruned network). ``flops``, ``image_size``: the budget
    is multiply-adds for images of that size (H = W, or (H, W)) instead of parameters.
    ``from_scratch``: a fresh single-stream network of the new widths instead (NR-FS).
    ``round_to``: N > 1 rounds the survivors of prunable layers up to multiples of N, by dead
    channels of the largest |γ|, and each width to the multiple nearest to live·r, at least N more
    than survives. Rejuvenated channels of a layer with frozen weights are frozen too, and a warning
    says that they can never learn; ``keep_frozen`` leaves such layers as they are, whole and
    frozen: only the channels beside them train, unconnected to theirs. A network without a dead
    channel stays as it is (r = 1). Raises ValueError for an unknown mode, a senseless
    ``round_to``, ``keep_frozen`` from scratch, a network that was rejuvenated before or is sharded
    (FSDP2), and one that nr cannot follow. Whatever is raised, the network is then as it was.
    """
    if cross not in (*CROSS, PRUNED):
        raise ValueError(f"cross: {cross!r} is unknown, expected one of {(*CROSS, PRUNED)}")
    if type(round_to) is not int or round_to < 1:
        raise ValueError(f"round_to: {round_to!r} is not a whole number of at least 1")
    if keep_frozen and from_scratch:
        raise ValueError("keep_frozen: from_scratch keeps no weights, frozen ones neither")
    refuse_sharded(model)
    plan = wiring(model, image_size)
    if model.streams != 1:
        raise ValueError("this network was rejuvenated before: it has two streams")
    _refuse_split_sums(plan)
    kept = {*frozen(model, plan)} if keep_frozen else set()
    plan = kept_whole(plan, kept)
    layers, head, _ = plan
    masks = round_up(layers, live_masks(layers), round_to)
    usage = measure(layers, masks, flops)
    dropped = tuple(dict.fromkeys(a.branch for a in layers if not masks[a.name][0].any()))
    total = usage.live if cross == PRUNED else usage.total
    params, cost = count_params(model), _full_cost(layers, flops)
    if usage.live < usage.total:
        if not from_scratch:
            _refuse_lifted(layers)
        if cross != PRUNED and not keep_frozen:
            _warn_of_frozen(frozen(model, plan))
        form = "plain" if from_scratch or cross == PRUNED else cross
        widths = _widths(layers, masks, usage.live, total, form, round_to)
        units, classifier = remade(model, plan, widths, form, kept)
        if not from_scratch:
            for layer in layers:  # as it was wired before, so that dropped inputs count too
                if layer.name in units:
                    _transplant(layer, units[layer.name], masks)
            _transplant_classifier(model.classifier, classifier, gather(masks, head)[0])
        swap(model, layers, units, classifier, dropped)
    expansion = math.sqrt(total / usage.live)
    return Report(
        usage,
        expansion,
        _changes(model, usage),
        dropped,
        params=(params, count_params(model)),
        budget=_full_cost(wiring(model, image_size).layers, flops) / cost,
    )


def _warn_of_frozen(names: list[str]) -> None:
    """Say which layers, if any, get channels that cannot learn."""
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(
            f"nr.rejuvenate: the weights of {names[0]}{others} are frozen, and those of their"
            " rejuvenated channels too, which can never learn: give keep_frozen=True to leave such"
            " layers as they are and to train only what is new beside them",
            stacklevel=4,  # the decorator's frame lies between
        )


def _full_cost(layers: list[Layer], flops: bool) -> int:
    """Σ in·out·k² (times H·W with ``flops``) as if all streams were connected."""
    costs = (
        (layer.unit.group[0] if layer.unit.group else _inputs(layer))
        * sum(layer.unit.out_channels)
        * layer.unit.kernel_size**2
        * (layer.pixels if flops else 1)
        for layer in layers
    )
    return sum(costs)


def _inputs(layer: Layer) -> int:
    """Input channels of all streams; those of the stem read one image, which counts once."""
    channels = layer.unit.in_channels
    return channels[0] if IMAGE in layer.sources else sum(channels)


def _refuse_split_sums(plan: Wiring) -> None:
    """Both sides of a sum have to grow alike, part by part."""
    widths = {layer.name: layer.unit.out_channels for layer in plan.layers}
    for name, sides in plan.sums.items():
        branch, shortcut = ([widths[source] for source in side] for side in sides)
        if branch != shortcut:
            raise ValueError(
                f"{name}: adds a concatenation to other parts, which would not stay aligned: put a"
                " 1x1 nr.ConvBN in the shortcut"
            )


def _refuse_lifted(layers: list[Layer]) -> None:
    """A dead channel must not say anything: what it passes is 0 at 0."""
    for layer in layers:
        if layer.lifted and (layer.branch or not layer.fixed):
            raise ValueError(
                f"{layer.lifted}: is not 0 at 0, so a dead channel of {layer.name} cannot go"
                " without changing the function: use nn.ReLU() there"
            )


def _widths(
    layers: list[Layer], masks: Masks, live: int, total: int, form: str, round_to: int
) -> dict[str, tuple[int, ...]]:
    """Widths of the image and of all layers that stay, rebuilt from ``live`` to ``total``."""
    dead = {layer.branch for layer in layers if not masks[layer.name][0].any()}
    multiple = multiples(layers, round_to)
    widths = {}
    for layer in layers:
        if layer.branch is None or layer.branch not in dead:
            parts = int(masks[layer.name][0].sum()) // layer.part
            pair = new_widths(parts, live, total, multiple[layer.tie])
            widths[layer.name] = tuple(count * layer.part for count in pair)
    if form == "plain":
        widths = {name: (sum(pair),) for name, pair in widths.items()}
    return {IMAGE: (image_channels(layers),) * len(next(iter(widths.values())))} | widths


@torch.no_grad()
def _transplant(layer: Layer, unit: ConvBN, masks: Masks) -> None:
    """Copy the live weights, γ, β and running statistics into the survived stream of ``unit``."""
    (conv,), (norm,) = layer.unit.convs, layer.unit.norms
    (live_in,), (live_out,) = gather(masks, layer.sources), masks[layer.name]
    live_in, live_out = live_in.to(conv.weight.device), live_out.to(conv.weight.device)
    for i, o, block in unit.blocks():
        if (i, o) == (0, 0):
            whole = layer.unit.group is not None  # a group that lives keeps all its inputs
            block.copy_(conv.weight[live_out][:, slice(None) if whole else live_in])  # [o, i, k, k]
    kept = {n: t[live_out] if t.ndim else t for n, t in norm.state_dict().items()}
    unit.norms[0].load_state_dict(kept)


@torch.no_grad()
def _transplant_classifier(classifier: Classifier, new: Classifier, live: Tensor) -> None:
    """Copy the live columns and the bias; the rejuvenated columns stay fresh."""
    old, linear = classifier.linears[0], new.linears[0]
    linear.weight.copy_(old.weight[:, live.to(old.weight.device)])  # [classes, i]
    if old.bias is not None:
        linear.bias.copy_(old.bias)


def _changes(model: Network, usage: Utilization) -> tuple[LayerChange, ...]:
    """Every layer of ``usage`` beside its widths in the rebuilt ``model``."""
    after = {layer.name: layer for layer in wiring(model).layers}

    def change(row: LayerUsage) -> LayerChange:
        before = (row.in_channels, row.out_channels)
        if row.name not in after:
            return LayerChange(row.name, before, (0, 0), (0, 0))
        layer = after[row.name]
        survived = (row.live_in, row.live_out)
        return LayerChange(
            row.name, before, survived, (_inputs(layer), sum(layer.unit.out_channels))
        )

    return tuple(change(row) for row in usage.layers)
