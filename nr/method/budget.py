"""The expansion r that keeps a budget: the published formula, or solved (spec section 5)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nr.method.growth import Families, Family
from nr.method.life import Life
from nr.method.rounding import new_widths, parts_in, rounded
from nr.network.graph import MUL, Pick
from nr.network.steps import Layer, Wiring

Cost = Callable[[Tensor], float]  # of a network with so many fresh parts behind each
LARGEST = 2.0**20  # an r beyond which nothing grows any more
STEPS = 50  # halvings of an interval of r, far below what a width can tell apart


class Growth(NamedTuple):
    """``expansion``: r. ``copies``: fresh parts behind each part, by label [count]."""

    expansion: float
    copies: Tensor


class Budget:
    """What a network costs with all connections between its streams, for any growth.

    Σ in·out·k² over its units, times H·W with ``flops``; the image counts once. ``multiple``:
    layers grow in multiples of so many channels.
    """

    def __init__(self, families: Families, alive: Life, flops: bool, multiple: int):
        self.families, self.alive, self.multiple = families, alive, multiple
        plan = families.plan
        layers = [layer for layer in plan.layers if alive.masks(layer)[0].any()]
        self.survivors = [(family, families.survivors(alive, family)) for family in families.all]
        self.weights = torch.tensor([_weight(layer, flops) for layer in layers], device="cpu")
        grouped = [layer.unit.group[0] if layer.unit.group else 0 for layer in layers]
        self.grouped = torch.tensor(grouped, device="cpu")
        self.reads = [self.labels(layer.reads[0]) for layer in layers]
        self.makes = [self.labels(layer.numbers[0]) for layer in layers]
        self.image = set(range(plan.image_channels))

    def labels(self, numbers: Tensor) -> Tensor:
        """The parts of the live channels among these."""
        return self.families.part[numbers[self.alive.of(numbers)]]

    def cost(self, copies: Tensor) -> int:
        """The cost with so many fresh parts behind each part."""
        grown = copies + 1
        ins = torch.stack([grown[labels].sum() for labels in self.reads])
        outs = torch.stack([grown[labels].sum() for labels in self.makes])
        return int((self.weights * torch.where(self.grouped > 0, self.grouped, ins) * outs).sum())

    def published(self, live: int, total: int) -> Growth:
        """r = √(total / live), and int(live·r) channels in each layer."""

        def fresh(count: int, family: Family) -> int:
            return new_widths(count, live, total, parts_in(family, self.multiple))[1]

        return Growth(math.sqrt(total / live), self.copies(fresh))

    def solved(self, cost: Cost, total: float) -> Growth:
        """The largest r whose cost is not above ``total``; else the least growth there is."""
        low, high = 1.0, 2.0
        least, most = self.expanded(low), self.expanded(high)
        while high < LARGEST and cost(most) <= total:
            low, high, least = high, 2 * high, most
            most = self.expanded(high)
        for _ in range(STEPS):
            middle = (low + high) / 2
            between = self.expanded(middle)
            known = torch.equal(between, least), torch.equal(between, most)
            if known[0] or (not known[1] and cost(between) <= total):
                low, least = middle, between
            else:
                high, most = middle, between
        return Growth(low, least)

    def expanded(self, r: float) -> Tensor:
        """Fresh parts for widths live·r; as few as possible in layers that keep theirs."""
        held = self.families.plan.held.all

        def fresh(count: int, family: Family) -> int:
            own = 1.0 if held.issuperset(family.widths) else r
            return rounded(count, own, parts_in(family, self.multiple)) - count

        return self.copies(fresh)

    def copies(self, fresh: Callable[[int, Family], int]) -> Tensor:
        """Fresh parts behind each part, so that no layer reads nothing."""
        copies = torch.zeros_like(self.families.part)
        for family, survivors in self.survivors:
            if len(survivors):
                copies[survivors] = self.families.followers(
                    len(survivors), fresh(len(survivors), family)
                )
        if copies.any():
            for labels in self.reads:
                if not copies[labels].any() and int(labels[0]) not in self.image:
                    copies[labels[0]] = 1
        return copies


def _weight(layer: Layer, flops: bool) -> int:
    return layer.unit.taps * (layer.pixels if flops else 1)


def grows_squared(plan: Wiring) -> bool:
    """Whether the cost grows as r², as that of the paper's networks does (their stems aside).

    Not if layers keep their widths.
    """
    ops = [step.op for step in plan.steps.values()]
    grouped = any(layer.unit.group for layer in plan.layers)
    moved = any(op == MUL or isinstance(op, Pick) for op in ops)
    return not (grouped or moved or plan.norms or plan.held.all)
