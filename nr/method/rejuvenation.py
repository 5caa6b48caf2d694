"""Live masks and a budget -> new widths -> the rebuilt network.

Paper section 3.3, specification section 5.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nr.method.constants import absorb
from nr.method.costs import LATENCY, Budgeted
from nr.method.cutting import Cut
from nr.method.fitting import fitted
from nr.method.latency import Latency
from nr.method.planning import Plan, planned
from nr.method.rebuilding import moves, remade, swap, transplant
from nr.method.utilization import LayerUsage, Utilization, measure
from nr.network.convolutions import ConvBN
from nr.network.counting import count_params
from nr.network.graph import IMAGE
from nr.network.layers import Classifier, Network
from nr.network.plain import Size
from nr.network.steps import Layer, Wiring
from nr.network.units import PRUNED


@dataclass(frozen=True)
class LayerChange:
    """Channels of a layer before, survived and after; 0 if it is dropped."""

    name: str
    before: tuple[int, int]  # (input, output)
    survived: tuple[int, int]
    after: tuple[int, int]


@dataclass(frozen=True)
class Report:
    """What rejuvenation did.

    ``utilization``: before it, where what survives is live. ``expansion``: r. ``params``: of the
    whole network, before and after. ``budget``: the new cost over the old one; parameters and
    multiply-adds are counted with every connection between the streams, even if it does not exist.
    ``latency``: with a budget in seconds those of the new network, predicted (from the old
    network's) and measured.
    """

    utilization: Utilization
    expansion: float
    layers: tuple[LayerChange, ...]
    dropped: tuple[str, ...]
    params: tuple[int, int]
    budget: float
    latency: tuple[float, float] | None = None


@torch.inference_mode(False)
def rejuvenate(
    model: Network,
    cross: str = "removed",
    flops: bool = False,
    image_size: int | Size | None = None,
    from_scratch: bool = False,
    round_to: int = 1,
    published: bool | None = None,
    budget: Budgeted = "params",
    plan: Plan | Mapping[str, object] | None = None,
) -> Report:
    """Rebuild ``model`` in place at its present budget (paper section 3.3) and return what changed.

    Live channels keep their weights. With r = √(total / live) each layer gets int(live·r) channels,
    the others of them fresh (spec section 5). A network without a dead channel stays as it is (r =
    1).

    - ``cross``: the connections between the two streams (spec section 6), "removed", "attention" or
      "full"; "none" makes a single stream of the live channels (r = 1, the pruned network).
    - ``budget``: what stays: "params", "flops", "latency", an nr.Latency or a function; see
      nr.plan.
    - ``flops``: the same as ``budget="flops"``, for images of ``image_size`` (H = W, or (H, W)).
    - ``from_scratch``: a fresh network of one stream with the new widths instead (NR-FS).
    - ``round_to``: N > 1 makes multiples of N. Survivors of prunable layers are rounded up, by the
      dead channels of the largest |γ|; a width is the multiple nearest to live·r, N above the
      survivors at least.
    - ``published``: True takes the r above. False takes the largest r whose cost is not above the
      old one. None takes the formula if the cost grows as r², as in the paper's networks.
    - ``plan``: a Plan of nr.plan, or its ``data()``, for this network or one like it, instead of
      all other arguments. Fresh weights are drawn here: for equal ones seed torch alike.

    If a layer's weights are frozen, so are its rejuvenated channels, and a warning says that they
    cannot learn; not so beside layers that nr.hold freezes. Raises ValueError for an argument that
    makes no sense, from_scratch beside frozen layers, a plan that does not fit, a network that was
    rejuvenated before or is sharded (FSDP2), and one that nr cannot follow; the network is then as
    it was.
    """
    budget = Latency() if budget == LATENCY else budget
    given = (cross, flops, image_size, from_scratch, round_to, published, budget)
    if plan is None:
        found, cut = planned(model, *given)
    elif given != ("removed", False, None, False, 1, None, "params"):
        raise ValueError("plan: says by itself what becomes of the network: give nothing beside it")
    else:
        found, cut = fitted(model, plan)
    if cut.changes and cut.cross != PRUNED:
        _warn_of_frozen(cut.wired)
    clock = budget if isinstance(budget, Latency) else None
    before = clock.measure(model, found.image_size) if clock else 0.0
    usage = measure(cut.wired, cut.alive, found.budget == "flops")
    if cut.changes:
        _apply(model, cut)
    share = found.cost[1] / found.cost[0]
    return Report(
        usage,
        found.expansion,
        _changes(model, cut.wired, usage),
        cut.layout.dropped() if cut.changes else (),
        (found.params[0], count_params(model)),
        share,
        (before * share, clock.measure(model, found.image_size)) if clock else None,
    )


def _apply(model: Network, cut: Cut) -> None:
    """Make what is new and put it in its place."""
    made = remade(cut.layout, cut.form, cut.wired.held.freeze)
    moved = moves(cut.layout, made)
    if not cut.from_scratch:
        transplant(cut.layout, made, moved)
        absorb(cut.wired, cut.alive, made)
    swap(model, cut.layout, made, moved, kept=not cut.from_scratch)


def _warn_of_frozen(wired: Wiring) -> None:
    """Name the layers, if any, that get channels which cannot learn."""
    names = [
        step.name
        for step in wired.steps.values()
        if isinstance(step.op, ConvBN | Classifier) and step.name not in wired.held.freeze
        if not next(step.op.parameters()).requires_grad
    ]
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(
            f"nr.rejuvenate: the weights of {names[0]}{others} are frozen, and those of their"
            " rejuvenated channels too, which can never learn: nr.hold(model, freeze=[...]) leaves"
            " such layers as they are, and trains only what is new beside them",
            stacklevel=4,  # the decorator's frame lies between
        )


def _inputs(layer: Layer) -> int:
    """Input channels of all streams; the stem's read one image, which counts once."""
    channels = layer.unit.in_channels
    return channels[0] if IMAGE in layer.sources else sum(channels)


def _changes(model: Network, wired: Wiring, usage: Utilization) -> tuple[LayerChange, ...]:
    """Every layer of ``usage`` with its widths in the rebuilt ``model``."""
    there = {name for name, _ in model.named_modules()}

    def change(row: LayerUsage) -> LayerChange:
        before = (row.in_channels, row.out_channels)
        if row.name not in there:
            return LayerChange(row.name, before, (0, 0), (0, 0))
        layer = wired.by_name[row.name]
        survived = (row.live_in, row.live_out)
        return LayerChange(
            row.name, before, survived, (_inputs(layer), sum(layer.unit.out_channels))
        )

    return tuple(change(row) for row in usage.layers)
