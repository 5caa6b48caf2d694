"""What a budget counts: parameters, multiply-adds, seconds, or what a function says."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nr.method.budget import Cost
from nr.method.cutting import Cut
from nr.method.growth import Families
from nr.method.latency import Latency
from nr.method.operations import operations, operations_after
from nr.method.rebuilding import moves, remade, swap
from nr.network.layers import Network
from nr.network.memory import without_memory
from nr.network.plain import Size
from nr.network.wiring import wiring

WEIGHTS = ("params", "flops")  # counted with all connections between the streams
LATENCY = "latency"
Budgeted = str | Latency | Callable[[Network], float]


def read_budget(budget: object, flops: bool) -> Budgeted:
    """``budget`` and ``flops`` as one. Raises ValueError for what is no budget."""
    if flops and budget not in WEIGHTS:
        raise ValueError(f"flops: is a budget of its own, beside budget={budget!r}: give one")
    if flops:
        return "flops"
    if budget == LATENCY:
        return Latency()
    if budget not in WEIGHTS and not isinstance(budget, Latency) and not callable(budget):
        known = ", ".join(map(repr, (*WEIGHTS, LATENCY)))
        raise ValueError(
            f"budget: {budget!r} is unknown, expected {known}, an nr.Latency, or a function of a"
            " network"
        )
    return budget


def name_of(budget: Budgeted) -> str:
    if isinstance(budget, Latency):
        return LATENCY
    return budget if isinstance(budget, str) else getattr(budget, "__name__", "a function")


def paid(
    budget: Latency | Callable[[Network], float],
    model: Network,
    cut_of: Callable[[Tensor], Cut],
    size: Size,
) -> tuple[Cost, float]:
    """For a network in its new form: the cost of any growth, and what it costs as it is."""
    if isinstance(budget, Latency):
        return (
            lambda copies: budget.add_up(model, operations_after(model, cut_of(copies))),
            budget.add_up(model, operations(model, size)),
        )
    return (
        lambda copies: _value(budget, _after(model, cut_of(copies), size)),
        _value(budget, without_memory(model)),
    )


def as_a_whole(budget: Latency, model: Network, cut: Cut, cost: Cost, total: float) -> Cost:
    """``cost`` times what a whole pass takes beyond the sum of its operations.

    That is what calls and caches add; it is measured on the network that ``cut`` leads to, without
    its weights, against the old one, whose operations take ``total``.
    """
    size, device = cut.wired.image_size, next(model.parameters()).device
    twin = _after(model, cut, size)._apply(
        lambda x: torch.zeros_like(x, device=device) if x.is_meta else x.to(device)
    )
    before = budget.whole(model, size) / total
    share = budget.whole(twin, size) / cost(cut.copies) / before
    return lambda copies: share * cost(copies)


def _value(budget: Callable[[Network], float], network: Network) -> float:
    """What a user's function says. Raises ValueError unless it is a positive number."""
    found = budget(network)
    if not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
        raise ValueError(f"budget: {name_of(budget)} gives {found!r}, not a positive number")
    return found


def _after(model: Network, cut: Cut, size: Size) -> Network:
    """The network that a cut leads to, on the meta device."""
    twin = without_memory(model)
    wired = wiring(twin, size)
    own = Cut(
        Families(wired), cut.alive._replace(plan=wired), cut.copies, cut.cross, cut.from_scratch
    )
    with torch.device("meta"):
        made = remade(own.layout, own.form, wired.held.freeze)
    swap(twin, own.layout, made, moves(own.layout, made))
    return twin
