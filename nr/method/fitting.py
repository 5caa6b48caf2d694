"""A plan from elsewhere: whether it fits a network, and what it means there."""

from collections.abc import Mapping
from typing import Any

import torch

from nr.method.cutting import Cut
from nr.method.growth import Families
from nr.method.life import Life
from nr.method.planning import LayerPlan, Plan, check, check_form, rows_of, walked
from nr.network.layers import Network
from nr.network.steps import Wiring

WIDEST = 2**20  # fresh channels of a layer


def fitted(model: Network, given: Plan | Mapping[str, object]) -> tuple[Plan, Cut]:
    """A plan, from itself or its data, and its cut of ``model``. Raises ValueError."""
    found = given if isinstance(given, Plan) else _read(given)
    check_form(found.cross, found.from_scratch)
    wired = walked(model, found.image_size, found.from_scratch)
    _checkrows_of(found, wired)
    families = Families(wired)
    live, copies = (
        torch.zeros_like(families.part, dtype=torch.bool),
        torch.zeros_like(families.part),
    )
    for step in wired.steps.values():  # of the image and of classes
        if step.name not in wired.by_name:
            live[torch.cat(step.numbers)] = True
    live[torch.cat([a.numbers[0] for a in wired.makers])] = False
    for row in found.layers:
        numbers = wired.by_name[row.name].numbers[0][list(row.survivors)]
        live[wired.ties.sum[numbers]] = True
        copies[families.part[numbers]] = torch.tensor(row.fresh, dtype=torch.long, device="cpu")
    dead = frozenset((row.name, 0) for row in found.layers if not row.survivors)
    alive = Life(wired, live[wired.ties.sum], dead)
    cut = Cut(families, alive, copies, found.cross, found.from_scratch)
    for row, own in zip(found.layers, rows_of(cut), strict=True):
        if row != own:
            raise ValueError(
                f"plan: {row.name}: channels that live and grow with those of others, in sums,"
                " groups, products or norms, do not do so in it"
            )
    check(model, cut)
    _check_lists(cut)
    return found, cut


def _read(data: Any) -> Plan:
    """A plan from its data. Raises ValueError if it is none."""
    try:
        layers = tuple(
            LayerPlan(**row | {n: tuple(row[n]) for n in ("survivors", "fresh")})
            for row in data["layers"]
        )
        pairs = {name: tuple(data[name]) for name in ("image_size", "cost", "params", "dropped")}
        return Plan(**{**data, **pairs, "layers": layers})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"plan: not as nr.plan gives it: {type(error).__name__} {error}"
        ) from error


def _checkrows_of(found: Plan, wired: Wiring) -> None:
    """The layers of a plan are those of the network, each of its width."""
    names = [row.name for row in found.layers]
    if odd := sorted({*names} ^ wired.by_name.keys(), key=str):
        where = "the network, not in the plan" if odd[0] in wired.by_name else "it alone"
        raise ValueError(f"plan: is of another network: {odd[0]} is in {where}")
    if names != [layer.name for layer in wired.makers]:
        raise ValueError("plan: its layers are not in the order of the network")
    for row in found.layers:
        width, places = len(wired.by_name[row.name].numbers[0]), [*row.survivors]
        if row.outputs != width:
            raise ValueError(
                f"plan: {row.name} has {row.outputs} outputs in it, in the network {width}"
            )
        whole = all(type(n) is int and n >= 0 for n in (*places, *row.fresh))
        ordered = whole and places == sorted({*places}) and all(n < width for n in places)
        if not ordered or len(row.fresh) != len(places) or sum(row.fresh) > WIDEST:
            raise ValueError(
                f"plan: {row.name}: survivors have to be places of 0 to {width - 1} in order, each"
                " with a number of fresh channels"
            )


def _check_lists(cut: Cut) -> None:
    """Something reaches every output, and every live layer, in each stream."""
    layout = cut.layout
    for name, step in cut.wired.steps.items():
        layer = cut.wired.by_name.get(name)
        if layer is None:
            wanted = step in [head for head, *_ in cut.wired.heads]
        else:
            wanted = bool(cut.alive.masks(layer)[0].any())
        if wanted and cut.changes:
            sides = (layout.lists.get(name, ()), layout.read(name) if name in layout.lists else ())
            if not all(side and all(map(len, side)) for side in sides):
                raise ValueError(f"plan: {name}: has, or reads, no channel in one of its streams")
