"""What a rejuvenation would do, as plain data.

Paper section 3.3, specification section 5.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from torch import Tensor

from nr.method.budget import Budget, Cost, Growth, grows_squared
from nr.method.costs import Budgeted, as_a_whole, name_of, paid, read_budget
from nr.method.cutting import Cut
from nr.method.growth import Families
from nr.method.latency import Latency
from nr.method.life import life
from nr.method.rounding import round_up
from nr.method.selecting import check_picks
from nr.method.utilization import Utilization, measure
from nr.network.checks import refuse_sharded
from nr.network.counting import count_params
from nr.network.layers import Network
from nr.network.plain import Size
from nr.network.steps import Wiring
from nr.network.units import CROSS, PRUNED
from nr.network.wiring import wiring


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of the output channels of a unit, or of a norm before a convolution.

    ``outputs``: how many there are. ``survivors``: the places of those that stay. ``fresh``: how
    many rejuvenated channels follow each of them.
    """

    name: str
    outputs: int
    survivors: tuple[int, ...]
    fresh: tuple[int, ...]

    @property
    def width(self) -> int:
        """Output channels afterwards."""
        return len(self.survivors) + sum(self.fresh)


@dataclass(frozen=True)
class Plan:
    """What nr.rejuvenate would do; str() gives a table.

    ``cross``, ``from_scratch``, ``budget``: as given to nr.plan. ``image_size``: (H, W).
    ``expansion``: r. ``cost``: before and after, in the unit of the budget. ``params``: parameters
    before and after. ``dropped``: the sums and concatenations that lose a branch.
    """

    cross: str
    from_scratch: bool
    budget: str
    image_size: Size
    expansion: float
    cost: tuple[float, float]
    params: tuple[int, int]
    layers: tuple[LayerPlan, ...]
    dropped: tuple[str, ...]

    def data(self) -> dict[str, object]:
        """All of it as dicts, lists, strings and numbers, for JSON; nr.rejuvenate takes it."""
        return json.loads(json.dumps(asdict(self)))

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [("layer", "outputs", "survive", "fresh", "new")]
        rows += [(a.name, a.outputs, len(a.survivors), sum(a.fresh), a.width) for a in self.layers]
        width = max(len(row[0]) for row in rows)
        lines = [f"{name:{width}}" + "".join(f"{x:>9}" for x in cells) for name, *cells in rows]
        gone = f"; without {', '.join(self.dropped)}" if self.dropped else ""
        (before, after), (old, new) = self.params, self.cost
        return "\n".join(lines) + (
            f"\nr {self.expansion:.4f}, {before:,} -> {after:,} parameters, {self.cross}{gone};"
            f" {self.budget} {_number(old)} -> {_number(new)}, {new / old:.1%} of the budget"
        )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


class Options(TypedDict, total=False):
    """The arguments of nr.plan beside the network."""

    cross: str
    flops: bool
    image_size: int | Size | None
    from_scratch: bool
    round_to: int
    published: bool | None
    budget: Budgeted


def plan(
    model: Network,
    cross: str = "removed",
    flops: bool = False,
    image_size: int | Size | None = None,
    from_scratch: bool = False,
    round_to: int = 1,
    published: bool | None = None,
    budget: Budgeted = "params",
) -> Plan:
    """What nr.rejuvenate with these arguments would do; ``model`` stays as it is.

    ``budget`` is one of
    - "params" or "flops", counted with every connection between the streams, even if it does not
      exist;
    - "latency", seconds of a forward pass of one image on the network's device, or an nr.Latency;
    - a function of a network, which gets it on the meta device, without memory.

    For the last two r is found by bisection: the largest at which the finished network does not
    cost more than this one. ``params`` of the result are exact, but for a bias that a layer may get
    to take up what dead scales give. Raises ValueError as nr.rejuvenate does.
    """
    return planned(model, cross, flops, image_size, from_scratch, round_to, published, budget)[0]


def planned(
    model: Network,
    cross: str,
    flops: bool,
    image_size: int | Size | None,
    from_scratch: bool,
    round_to: int,
    published: bool | None,
    budget: Budgeted,
) -> tuple[Plan, Cut]:
    """The plan, and its cut in channel numbers."""
    check_form(cross, from_scratch)
    if type(round_to) is not int or round_to < 1:
        raise ValueError(f"round_to: {round_to!r} is not a whole number of at least 1")
    budget = read_budget(budget, flops)
    wired = walked(model, image_size, from_scratch)
    families = Families(wired)
    alive = round_up(families, life(wired), round_to)
    costs = Budget(families, alive, budget == "flops", round_to)
    usage = measure(wired, alive, budget == "flops")

    def cut_of(copies: Tensor) -> Cut:
        return Cut(families, alive, copies, cross, from_scratch)

    cost: Cost = costs.cost
    total: float = full_cost(wired, budget == "flops")
    if not isinstance(budget, str):
        check(model, cut_of(costs.expanded(2.0)))  # before anything is timed
        cost, total = paid(budget, model, cut_of, wired.image_size)
        published = bool(published)
    growth = _growth(costs, usage, cost, total, cross, published)
    if isinstance(budget, Latency) and budget.timer is None and usage.live < usage.total:
        cost = as_a_whole(budget, model, cut_of(growth.copies), cost, total)
        growth = _growth(costs, usage, cost, total, cross, published)
    cut = cut_of(growth.copies)
    check(model, cut)
    pair = (total, cost(growth.copies) if cut.changes else total)
    return described(model, cut, name_of(budget), growth.expansion, pair), cut


def described(
    model: Network, cut: Cut, budget: str, expansion: float, cost: tuple[float, float]
) -> Plan:
    """A cut as plain data."""
    params = count_params(model)
    return Plan(
        cut.cross,
        cut.from_scratch,
        budget,
        cut.wired.image_size,
        expansion,
        cost,
        (params, cut.params() if cut.changes else params),
        rows_of(cut),
        cut.layout.dropped() if cut.changes else (),
    )


def rows_of(cut: Cut) -> tuple[LayerPlan, ...]:
    return tuple(
        LayerPlan(a.name, len(a.numbers[0]), *map(tuple, cut.survivors(a)))
        for a in cut.wired.makers
    )


def _growth(
    costs: Budget,
    usage: Utilization,
    cost: Cost,
    total: float,
    cross: str,
    published: bool | None,
) -> Growth:
    """The expansion, and how many fresh parts follow each part."""
    if published is None:
        published = grows_squared(costs.families.plan)
    if cross == PRUNED or published or usage.live == usage.total:
        return costs.published(usage.live, usage.live if cross == PRUNED else usage.total)
    return costs.solved(cost, total)


def full_cost(wired: Wiring, flops: bool) -> int:
    """Σ in·out·k² (times H·W with ``flops``) of the network as it is."""
    return sum(
        (a.unit.group[0] if a.unit.group else a.unit.in_channels[0])
        * a.unit.out_channels[0]
        * a.unit.taps
        * (a.pixels if flops else 1)
        for a in wired.layers
    )


def check_form(cross: object, from_scratch: object) -> None:
    if cross not in (*CROSS, PRUNED):
        raise ValueError(f"cross: {cross!r} is unknown, expected one of {(*CROSS, PRUNED)}")
    if type(from_scratch) is not bool:
        raise ValueError(f"from_scratch: {from_scratch!r} is neither True nor False")


def walked(model: Network, image_size: int | Size | None, from_scratch: bool) -> Wiring:
    """The walk over a network; ValueError if it cannot be rejuvenated."""
    refuse_sharded(model)
    wired = wiring(model, image_size)
    if model.streams != 1:
        raise ValueError("this network was rejuvenated before: it has two streams")
    if from_scratch and wired.held.freeze:
        raise ValueError(
            f"freeze: from_scratch keeps no weights, those of {min(wired.held.freeze)} neither"
        )
    return wired


def check(model: Network, cut: Cut) -> None:
    """Raise ValueError for what cannot be done without changing what survives."""
    if cut.changes:
        if not cut.from_scratch:
            _refuse_lifted(cut.wired)
        check_picks(model, cut.layout)


def _refuse_lifted(wired: Wiring) -> None:
    """What a dead channel passes has to be 0 at 0, or the channel would not be silent."""
    for layer in wired.layers:
        if layer.lifted and (layer.branch or (layer.scaled and not layer.fixed)):
            raise ValueError(
                f"{layer.lifted}: is not 0 at 0, so a dead channel of {layer.name} cannot go"
                " without changing the function: use nn.ReLU() there"
            )
