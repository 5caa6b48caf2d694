"""Live masks and a budget -> new widths -> the rebuilt network.

Paper section 3.3, specification section 5.
"""

import warnings
from dataclasses import dataclass

import torch

from nr.method.budget import Budget, Growth, grows_squared
from nr.method.constants import absorb
from nr.method.growth import Families
from nr.method.life import life
from nr.method.rebuilding import Layout, check_picks, dropped, remade, swap, transplant
from nr.method.rounding import round_up
from nr.method.utilization import LayerUsage, Utilization, measure
from nr.network.checks import refuse_sharded
from nr.network.convolutions import ConvBN
from nr.network.counting import count_params
from nr.network.graph import IMAGE
from nr.network.layers import Classifier, Network
from nr.network.numbers import Lists
from nr.network.plain import Size
from nr.network.steps import Layer, Wiring
from nr.network.units import CROSS, PRUNED
from nr.network.wiring import wiring


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
    published: bool | None = None,
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
    frozen: only the channels beside them train, unconnected to theirs. ``published``: whether the
    published formula says r; where it is False r is the largest whose cost is not above the old
    one, and None is the formula for networks whose cost grows as r², as the paper's. A network
    without a dead channel stays as it is (r = 1). Raises ValueError for an unknown mode, a
    senseless ``round_to``, ``keep_frozen`` from scratch, a network that was rejuvenated before or
    is sharded (FSDP2), and one that nr cannot follow; the network is then as it was.
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
    kept = {*_frozen(plan)} if keep_frozen else set()
    plan = plan.holding(kept)
    families = Families(plan)
    alive = round_up(families, life(plan), round_to)
    usage = measure(plan, alive, flops)
    params, cost, gone = count_params(model), _full_cost(plan, flops), ()
    growth = _growth(Budget(families, alive, flops), usage, cost, cross, round_to, published)
    if usage.live < usage.total:
        if not from_scratch:
            _refuse_lifted(plan)
        if cross != PRUNED and not keep_frozen:
            _warn_of_frozen(_frozen(plan))
        plain = from_scratch or cross == PRUNED

        def made(lists: Lists) -> Lists:
            survived = lists[0][alive.of(lists[0])]
            pair = (survived, families.fresh(survived, growth.copies))
            return (torch.cat(pair),) if plain else pair

        layout = Layout(plan, made).lay()
        check_picks(model, layout)
        units = remade(layout, "plain" if plain else cross, kept)
        if not from_scratch:
            transplant(layout, units)
            absorb(plan, alive, units)
        swap(model, layout, units)
        gone = dropped(layout)
    return Report(
        usage,
        growth.expansion,
        _changes(model, usage),
        gone,
        params=(params, count_params(model)),
        budget=_full_cost(wiring(model, image_size), flops) / cost,
    )


def _growth(
    budget: Budget, usage: Utilization, cost: int, cross: str, multiple: int, published: bool | None
) -> Growth:
    """The expansion, and how many fresh parts follow each part."""
    if published is None:
        published = grows_squared(budget.families.plan)
    if cross == PRUNED or published or usage.live == usage.total:
        total = usage.live if cross == PRUNED else usage.total
        return budget.published(usage.live, total, multiple)
    return budget.solved(cost, multiple)


def _frozen(plan: Wiring) -> list[str]:
    """The units and classifiers whose weights are frozen."""
    return [
        step.name
        for step in plan.steps.values()
        if isinstance(step.op, ConvBN | Classifier) and not next(step.op.parameters()).requires_grad
    ]


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


def _full_cost(plan: Wiring, flops: bool) -> int:
    """Σ in·out·k² (times H·W with ``flops``) as if all streams were connected."""
    costs = (
        (layer.unit.group[0] if layer.unit.group else _inputs(layer))
        * sum(layer.unit.out_channels)
        * layer.unit.taps
        * (layer.pixels if flops else 1)
        for layer in plan.layers
    )
    return sum(costs)


def _inputs(layer: Layer) -> int:
    """Input channels of all streams; those of the stem read one image, which counts once."""
    channels = layer.unit.in_channels
    return channels[0] if IMAGE in layer.sources else sum(channels)


def _refuse_lifted(plan: Wiring) -> None:
    """A dead channel must not say anything: what it passes is 0 at 0."""
    for layer in plan.layers:
        if layer.lifted and (layer.branch or (layer.scaled and not layer.fixed)):
            raise ValueError(
                f"{layer.lifted}: is not 0 at 0, so a dead channel of {layer.name} cannot go"
                " without changing the function: use nn.ReLU() there"
            )


def _changes(model: Network, usage: Utilization) -> tuple[LayerChange, ...]:
    """Every layer of ``usage`` beside its widths in the rebuilt ``model``."""
    after = wiring(model).by_name

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
